"""Credit on a tree: an advantage for each edge, kept under the node that it leads to.

None stands for an edge below which nothing was scored. What is computed here stops before the
gradient; what a token weighs in it is said by `kernel.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from math import inf, sqrt

from ramify.kernel.outline import Number
from ramify.kernel.value import Estimator, Values

Advantages = list[Number | None]


def node_advantages(values: Values, baseline: Number | None = None) -> Advantages:
    """Leave-one-out advantages of segments: the default.

    A segment runs from a child of a branch to the next branch or leaf. A(segment) = X - mean of
    the siblings' X at the nearest ancestor with two or more sampled children; every edge of it
    has the same. The trunk has V(root) - `baseline`, the mean of the other trees of the task
    (`forest_advantages`), or 0 without one. Options that a user chose from are segments of their
    own, held against the same siblings as the segment above. A forced edge has 0.

    The baseline never contains the segment it is subtracted from, so the gradient stays unbiased
    (RLOO, arXiv:2402.14740, on a tree). With V of the same sample, V(s') - V(s) would be exactly 0
    on every edge that is an only child.
    """
    parents, x, sampled = values.outline.parents, values.arrivals, values.sampled
    means, counts = _draws(values)
    root = values.value[0]
    trunk = None if root is None else root * 0 if baseline is None else root - baseline
    found: Advantages = [trunk]
    each = zip(
        parents,
        x,
        sampled,
        map(counts.__getitem__, parents),
        map(means.__getitem__, parents),
        strict=True,
    )
    for parent, v, draw, n, mean in islice(each, 1, None):
        if draw and n > 1:
            found.append((v - mean) * n / (n - 1))  # type: ignore[operator]  # known
        elif draw:
            found.append(found[parent])
        elif v is None:
            found.append(None)
        else:
            node = len(found)
            held = None if node in values.outline.forced else _held_against(values, node, baseline)
            found.append(v * 0 if held is None else v - held)
    return found


def _draws(values: Values) -> tuple[Sequence[Number | None], Sequence[int]]:
    """Plain mean of X over the sampled children of each node, and their number."""
    if values.estimator is Estimator.CHILD_MEAN:
        return values.value, values.count
    counts = [0] * len(values)
    sums: list[Number] = [0] * len(values)
    for parent, v, draw in zip(
        values.outline.parents, values.arrivals, values.sampled, strict=True
    ):
        if draw and v is not None:
            counts[parent] += 1
            sums[parent] += v
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)], counts


def _held_against(values: Values, node: int, baseline: Number | None) -> Number | None:
    """Mean X of the siblings at the nearest ancestor that was sampled beside others."""
    parents, sampled, x = values.outline.parents, values.sampled, values.arrivals
    means, counts = values.value, values.count
    if values.estimator is not Estimator.CHILD_MEAN:
        means, counts = _draws(values)
    node = parents[node]
    while node > 0:
        n, mean, own = counts[parents[node]], means[parents[node]], x[node]
        if node in values.outline.forced:
            return None
        if sampled[node] and n > 1 and mean is not None and own is not None:
            return (n * mean - own) / (n - 1)
        node = parents[node]
    return baseline


def forest_advantages(forest: Sequence[Values]) -> list[Advantages]:
    """`node_advantages` of all trees of a task; each trunk is held against the other trees."""
    roots = [tree.value[0] for tree in forest]
    known = [v for v in roots if v is not None]
    return [
        node_advantages(
            tree,
            (sum(known) - root) / (len(known) - 1) if root is not None and len(known) > 1 else None,
        )
        for tree, root in zip(forest, roots, strict=True)
    ]


def treerl_advantages(values: Values) -> Advantages:
    """TreeRL (arXiv:2506.11902): [(V(n) - V(root)) + (V(n) - V(parent))] / sqrt(leaves of n).

    Raises:
        ValueError: the values are not leaf means, which the formula is defined on.
    """
    if values.estimator is not Estimator.LEAF_MEAN:
        raise ValueError("TreeRL is defined on leaf means; value the tree with Estimator.LEAF_MEAN")
    root = values.value[0]
    found: Advantages = [None] * len(values)
    for node in range(1, len(values)):
        v, above = values.value[node], values.value[values.outline.parents[node]]
        if v is not None and above is not None and root is not None:
            found[node] = float((v - root) + (v - above)) / sqrt(values.leaves[node])
    return found


def vine_advantages(values: Values, leaf: int) -> dict[int, Number | None]:
    """VinePPO (arXiv:2410.01679): A_t = r_t + g V(s_t+1) - V(s_t) along one path, by node.

    V is estimated from continuations of each state, which are not trained on themselves, so only
    the edges of the path have an advantage.
    """
    return {
        node: _delta(values, node, values.value) for node in values.outline.path(leaf) if node > 0
    }


def segment_advantages(values: Values) -> Advantages:
    """SPO (arXiv:2505.23564): V(end) - V(start) of each segment, on every edge of it."""
    found: Advantages = [None] * len(values)
    root = values.value[0]
    found[0] = None if root is None else root * 0
    for node in range(1, len(values)):
        parent = values.outline.parents[node]
        if values.value[node] is None:
            continue
        if values.count[parent] > 1 or node in values.outline.forced:
            found[node] = _delta(values, node, values.value)
        else:
            found[node] = found[parent]
    return found


def gae(values: Values, lam: Number = 1, critic: Mapping[int, Number] | None = None) -> Advantages:
    """GAE(lambda) (arXiv:1506.02438) on a tree: A(e) = delta_e + g lam mean of A below.

    delta_e = r + g V(s') - V(s); the mean goes over the children that count (by prior where they
    are options). With V from the tree itself the mean is 0 everywhere, so A = delta for every
    lambda: it takes a `critic` (node → V of inner states; ends keep their return) to differ.

    Raises:
        ValueError: the critic lacks a state.
    """
    v = values.value if critic is None else _criticised(values, critic)
    below: list[Number] = [0] * len(values)
    found: Advantages = [None] * len(values)
    step = values.discount * lam
    for node in range(len(values) - 1, 0, -1):
        delta = _delta(values, node, v)
        if delta is None:
            continue
        parent = values.outline.parents[node]
        found[node] = advantage = delta + step * below[node] if values.count[node] else delta
        if parent in values.options:
            below[parent] += values.options[parent].get(node, 0) * advantage
        elif values.sampled[node]:
            below[parent] += advantage / values.count[parent]
    return found


def _criticised(values: Values, critic: Mapping[int, Number]) -> Sequence[Number | None]:
    found = list(values.value)
    for node, n in enumerate(values.count):
        if n and node not in critic:
            raise ValueError(f"the critic has no value for node {node}")
        if n:
            found[node] = critic[node]
    return found


def _delta(values: Values, node: int, v: Sequence[Number | None]) -> Number | None:
    after, before = v[node], v[values.outline.parents[node]]
    if after is None or before is None:
        return None
    return values.outline.rewards.get(node, 0) + values.discount * after - before


@dataclass(frozen=True, slots=True)
class Pair:
    """Two continuations of one state, one better than the other.

    Attributes:
        node: the state; the prompt is the path to it.
        chosen, rejected: ids of the nodes of each segment, in order.
        gap: X of the chosen less X of the rejected.
        z: gap over its standard error; None where that is not known.
    """

    node: int
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    gap: Number
    z: float | None


def preference_pairs(values: Values, *, margin: Number = 0, min_z: float = 0.0) -> Iterator[Pair]:
    """Pairs of sampled siblings for preference learning (step-level DPO).

    A pair is given where X_i - X_j is above 0 and at least `margin`, and at least `min_z` of its
    standard errors sqrt(SE_i^2 + SE_j^2). With `min_z` above 0 only pairs whose errors are known
    are given. That gradients of groups within a tree are those of step-level DPO: arXiv:2509.21240.
    """
    children = values.outline.children()
    for node, found in enumerate(children):
        draws = [child for child in found if values.sampled[child]]
        for good, bad in permutations(draws, 2):
            gap = _gap(values, good, bad)
            if not gap > 0 or gap < margin:
                continue
            z = _z(values, good, bad, gap)
            if min_z <= 0 or (z is not None and z >= min_z):
                segments = _segment(children, good), _segment(children, bad)
                yield Pair(node, *segments, gap, z)


def _gap(values: Values, good: int, bad: int) -> Number:
    high, low = values.arrivals[good], values.arrivals[bad]
    assert high is not None
    assert low is not None
    return high - low


def _z(values: Values, good: int, bad: int, gap: Number) -> float | None:
    first, second = values.variance[good], values.variance[bad]
    if first is None or second is None:
        return None
    error = float(values.discount) * sqrt(first + second)
    return float(gap) / error if error else inf


def _segment(children: Sequence[Sequence[int]], node: int) -> tuple[int, ...]:
    """Nodes from a child of a branch to the next branch or leaf."""
    found = [node]
    while len(children[found[-1]]) == 1:
        found.append(children[found[-1]][0])
    return tuple(found)
