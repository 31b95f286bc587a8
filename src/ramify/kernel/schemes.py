"""Advantages by name: what an exporter is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ramify.contracts.errors import UnknownNameError
from ramify.kernel.credit import (
    Advantages,
    forest_advantages,
    gae,
    segment_advantages,
    treerl_advantages,
    vine_advantages,
)
from ramify.kernel.groups import GROUP_RULES
from ramify.kernel.outline import Number
from ramify.kernel.value import Estimator, Values, tree_values


@dataclass(frozen=True, slots=True)
class Credit:
    """Advantages on one tree, of edges or of whole paths.

    Attributes:
        scheme: its name.
        edges: of each edge, under the node that it leads to; empty where the scheme credits paths.
        ends: of each scored end, where the scheme credits paths: all edges above it have it.
    """

    scheme: str
    edges: Advantages = field(default_factory=list["Number | None"])
    ends: Mapping[int, Number | None] = field(default_factory=dict[int, "Number | None"])

    def along(self, path: Sequence[int]) -> Advantages:
        """The advantage of each edge of a path (ids from the root to a leaf), the root aside."""
        if self.edges:
            return [self.edges[node] for node in path[1:]]
        found: Advantages = []
        for node in reversed(path):  # below an end that somebody went on from there is nothing
            known = self.ends.get(node, found[-1] if found else None)
            found.append(known)
        return found[-2::-1]

    def by_node(self, values: Values) -> Advantages:
        """One advantage for each edge: of a scheme that credits paths, the mean over ends below."""
        if self.edges:
            return self.edges
        sums: list[Number] = [0] * len(values)
        counts = [0] * len(values)
        for node in range(len(values) - 1, -1, -1):
            own = self.ends.get(node)
            if own is not None:
                sums[node] += own
                counts[node] += 1
            if node:
                sums[values.outline.parents[node]] += sums[node]
                counts[values.outline.parents[node]] += counts[node]
        return [total / n if n else None for total, n in zip(sums, counts, strict=True)]


_EdgeRule = Callable[[Sequence[Values]], list[Advantages]]

_EDGE_RULES: dict[str, tuple[Estimator, _EdgeRule]] = {
    "node": (Estimator.CHILD_MEAN, forest_advantages),
    "spo": (Estimator.CHILD_MEAN, lambda forest: [segment_advantages(t) for t in forest]),
    "gae": (Estimator.CHILD_MEAN, lambda forest: [gae(t) for t in forest]),
    "vineppo": (Estimator.CHILD_MEAN, lambda forest: [_vine(t) for t in forest]),
    "treerl": (Estimator.LEAF_MEAN, lambda forest: [treerl_advantages(t) for t in forest]),
}

SCHEMES = (*_EDGE_RULES, *GROUP_RULES)
"""Names of all schemes."""


def assign_credit(scheme: str, forest: Sequence[Values]) -> list[Credit]:
    """Advantages of all trees of one task.

    Args:
        scheme: one of SCHEMES. `node` (leave-one-out), `spo`, `gae`, `vineppo` and `treerl` credit
            edges, the others whole paths; those named after systems do as those do by default.
            `vineppo` credits the first path of each tree alone: the others estimate its values.
        forest: the trees, valued by child means.

    Raises:
        UnknownNameError: no such scheme.
        ValueError: the scheme cannot take these rewards.
    """
    if scheme in _EDGE_RULES:
        estimator, rule = _EDGE_RULES[scheme]
        return [Credit(scheme, edges) for edges in rule([_as(t, estimator) for t in forest])]
    if scheme not in GROUP_RULES:
        raise UnknownNameError("advantage", scheme, SCHEMES)
    ends = [_ends(tree) for tree in forest]
    rewards = [[t.value[end] for end in ids] for t, ids in zip(forest, ends, strict=True)]
    return [
        Credit(scheme, ends=dict(zip(ids, found, strict=True)))
        for ids, found in zip(ends, GROUP_RULES[scheme](rewards), strict=True)
    ]


def _vine(tree: Values) -> Advantages:
    """VinePPO on the first path: from the root by the oldest child that was sampled."""
    found: Advantages = [None] * len(tree)
    oldest = {tree.outline.parents[n]: n for n in range(len(tree) - 1, 0, -1) if tree.sampled[n]}
    end = 0
    while end in oldest:
        end = oldest[end]
    for node, advantage in vine_advantages(tree, end).items():
        found[node] = advantage
    return found


def _as(tree: Values, estimator: Estimator) -> Values:
    """The same tree under another estimator."""
    if tree.estimator is estimator:
        return tree
    ends = {n: v for n, v in enumerate(tree.value) if v is not None and not tree.count[n]}
    return tree_values(tree.outline, ends, discount=tree.discount, estimator=estimator)


def _ends(tree: Values) -> list[int]:
    """Nodes that were scored and draws of the policy all the way: the members of a group."""
    chosen = bytearray(len(tree))
    for node in range(1, len(tree)):
        chosen[node] = node in tree.outline.forced or chosen[tree.outline.parents[node]]
    return [
        node
        for node, v in enumerate(tree.value)
        if v is not None and not tree.count[node] and not chosen[node]
    ]
