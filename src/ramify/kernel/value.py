"""What a state is worth, by the leaves below it: V(s), its standard error, and what to know of it.

One pass over flat arrays, from the last node to the first (a parent precedes its children), so a
million nodes take well under a second. The same code is exact for fractions and fast for floats.

Estimators of V(s) over the children c of s, with X_c = r_c + g V(c):

* child mean (default): the mean of X_c; every child is one draw of what follows s.
* leaf mean (Tree-GRPO arXiv:2509.21240, TreeRL arXiv:2506.11902): the mean over the leaves below s.
  The same in a balanced tree; lower variance, and biased, in others.
* BLUE: weights 1 / (tau^2 + SE_c^2) (`kernel.pooled`).

Options that were enumerated count by their priors; the mean of X_c would be the value under a user
who picks at random. Continuations that somebody forced are left out. Leaves that were never scored
are left out and counted; None is never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import repeat
from math import sqrt
from operator import is_not

from ramify.kernel.outline import Number, Outline, check_finite, outline
from ramify.kernel.pooled import Pool, blue_weights, leaf_weights
from ramify.kernel.tree import Tree

_FORCED, _OPTION, _SELECTED = 1, 2, 4  # of the edge to a node
_CHOICE, _BIASED, _ASSUMED, _PARTIAL, _DROPS = 8, 16, 32, 64, 128  # of a node
_OFF_POLICY = _FORCED | _OPTION
_SURE = 1e-9  # priors may miss 1 by so much


class Estimator(StrEnum):
    """How the values of children become one."""

    CHILD_MEAN = "child-mean"
    """Each child counts the same. Unbiased where outcomes did not decide what was branched."""
    LEAF_MEAN = "leaf-mean"
    """Each leaf counts the same, priors or not."""
    BLUE = "blue"
    """Children count by how well their own values are known."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one state.

    Attributes:
        value: the estimate; None where no leaf below was scored.
        se: standard error between children; None where it cannot be known (one child, a leaf).
        n: children in the estimate.
        leaves: scored leaves below, as far as they are in the estimate.
        dropped: leaves below that were never scored.
        forced: children left out because somebody chose them.
        biased: outcomes decided what was branched, here or below.
        assumed_priors: priors of options were missing, here or below, and taken as equal.
        partial: options are missing, here or below, and the priors of the others were scaled up.
    """

    value: Number | None
    se: float | None
    n: int
    leaves: int
    dropped: int
    forced: int
    biased: bool
    assumed_priors: bool
    partial: bool


@dataclass(frozen=True)
class Values:
    """Values of all nodes of a tree, in arrays by node id; `at` puts one node's together.

    Attributes:
        outline: the tree they belong to.
        discount: g.
        estimator: how they were made.
        value: V; None where nothing below was scored.
        variance: SE^2 of V; None where it cannot be known.
        count: children in the estimate.
        options: nodes whose children were enumerated → child → its share of the prior.
        dropped: leaves below that were never scored, where there are any.
        flags: internal marks; read them through `at`, `sampled` and `biased`.
    """

    outline: Outline
    discount: Number
    estimator: Estimator
    value: list[Number | None]
    variance: list[Number | None]
    count: list[int]
    options: Mapping[int, Mapping[int, Number]]
    dropped: Mapping[int, int]
    flags: bytearray

    def __len__(self) -> int:
        return len(self.value)

    def at(self, node: int) -> Value:
        """What is known of one state."""
        variance, flags = self.variance[node], self.flags[node]
        return Value(
            value=self.value[node],
            se=None if variance is None else sqrt(variance),
            n=self.count[node],
            leaves=self.leaves[node],
            dropped=self.dropped.get(node, 0),
            forced=self._forced[node],
            biased=bool(flags & _BIASED),
            assumed_priors=bool(flags & _ASSUMED),
            partial=bool(flags & _PARTIAL),
        )

    def biased(self, node: int = 0) -> bool:
        """Whether outcomes decided what was branched, at this node or below."""
        return bool(self.flags[node] & _BIASED)

    @cached_property
    def _forced(self) -> Counter[int]:
        return Counter(self.outline.parents[child] for child in self.outline.forced)

    @cached_property
    def arrivals(self) -> list[Number | None]:
        """X of each edge, under the node that it leads to: r + g V."""
        rewards, discount = self.outline.rewards, self.discount
        if discount == 1 and not rewards:
            return self.value
        return [
            None if v is None else rewards.get(node, 0) + discount * v
            for node, v in enumerate(self.value)
        ]

    @cached_property
    def sampled(self) -> bytearray:
        """1 for each edge that is a draw from the policy with a value, else 0."""
        found = bytearray(map(is_not, self.value, repeat(None)))
        parents = self.outline.parents
        found[0] = 0
        for node in (*self.outline.forced, *self.outline.enumerated):
            found[node] = 0
        if self.options:
            for node, parent in enumerate(parents):
                if parent in self.options:
                    found[node] = 0
        return found

    @cached_property
    def leaves(self) -> list[int]:
        """Scored leaves below each node that are in its estimate (1 for such a leaf)."""
        parents, flags = self.outline.parents, self.flags
        found = [int(v is not None and not n) for v, n in zip(self.value, self.count, strict=True)]
        for node in range(len(found) - 1, 0, -1):
            parent = parents[node]
            left_out = flags[node] & _FORCED or self.value[parent] is None
            if parent in self.options:
                left_out |= node not in self.options[parent]
            if found[node] and not left_out:
                found[parent] += found[node]
        return found


def tree_values(
    tree: Tree | Outline,
    returns: Mapping[int, Number],
    *,
    discount: Number = 1,
    estimator: Estimator = Estimator.CHILD_MEAN,
) -> Values:
    """Value every node of a tree.

    Args:
        tree: a recorded tree, or its outline.
        returns: return of each scored leaf (`outline.leaf_returns`); a leaf that is not in it is
            left out and counted. A node with children that count is valued by those.
        discount: g, from 0 to 1.
        estimator: how the values of children become one.

    Raises:
        InvalidRewardError: a return is NaN or infinite.
        ValueError: the discount is out of range, or priors of a node's options add up to more
            than 1.
    """
    check_finite(returns, "the return of node")
    if not 0 <= discount <= 1:
        raise ValueError(f"the discount is {discount}; it must be within 0 and 1")
    shape = tree if isinstance(tree, Outline) else outline(tree)
    work = _Pass(shape, returns, discount, estimator)
    if estimator is Estimator.CHILD_MEAN:
        work.means()
    else:
        work.pooled()
    if len(shape) == 1 and work.value[0] is None:
        work.dropped[0] = 1
    return Values(
        shape,
        discount,
        estimator,
        work.value,
        work.variance,
        work.count,
        work.options,
        work.dropped,
        work.flags,
    )


class _Pass:
    """State of one valuation. Single-use."""

    def __init__(
        self,
        shape: Outline,
        returns: Mapping[int, Number],
        discount: Number,
        estimator: Estimator,
    ) -> None:
        self.shape, self.discount, self.estimator = shape, discount, estimator
        size = len(shape)
        self.value: list[Number | None] = [None] * size
        self.variance: list[Number | None] = [None] * size
        self.count = [0] * size
        self.flags = bytearray(size)
        self.options: dict[int, dict[int, Number]] = {}
        self.dropped: dict[int, int] = {}
        self.sets: dict[int, list[int]] = {}
        self.plain = discount == 1 and not shape.rewards
        self.gone_on = {shape.parents[node] for node in shape.forced}
        for node, number in returns.items():
            self.value[node] = number
        self._mark()

    def _mark(self) -> None:
        shape, flags = self.shape, self.flags
        for node in shape.enumerated:
            flags[node] |= _OPTION
            flags[shape.parents[node]] |= _CHOICE
            self.sets.setdefault(shape.parents[node], []).append(node)
        for node in shape.forced:
            flags[node] = (flags[node] | _FORCED) & ~_OPTION
        for node in shape.outcome_dependent:
            flags[node] |= _SELECTED

    def means(self) -> None:
        """Child means and SE^2 of all nodes, from the last to the first.

        Until its turn comes, a node holds the sum of its children's X and of their squared gaps.
        The next X adds (n X - sum)^2 / (n (n + 1)) to those of n: one look at the parent does for
        both, which is what costs where parents are anywhere in memory.
        """
        value, variance, count, plain = self.value, self.variance, self.count, self.plain
        parents = self.shape.parents
        for node, parent, v, n, odd in zip(  # read while they change: a parent's turn comes later
            range(len(parents) - 1, 0, -1),
            reversed(parents),
            reversed(value),
            reversed(count),
            reversed(self.flags),
            strict=False,
        ):
            if v is None or odd:
                v = self._odd(node, parent)
                if v is None:
                    continue
            elif n > 1:
                v = value[node] = v / n
                variance[node] /= n * (n - 1)  # type: ignore[operator]  # n > 1: there is one
            if not plain:
                v = self._arrival(node, v)
            n = count[parent]
            if n:
                total: Number = value[parent]  # type: ignore[assignment]  # n > 0: there is one
                gap = n * v - total
                gap *= gap / (n * (n + 1))
                variance[parent] = gap if n == 1 else variance[parent] + gap  # type: ignore[operator]  # n > 1
                value[parent] = total + v
                count[parent] = n + 1
            else:
                value[parent] = v
                count[parent] = 1
        self._settle(0)

    def _odd(self, node: int, parent: int) -> Number | None:
        """Finish a node that is out of the ordinary; returns V if it counts as a draw."""
        self._settle(node)
        v = self.value[node]
        self._hand_up(node, parent)
        return None if self.flags[node] & _OFF_POLICY else v

    def _hand_up(self, node: int, parent: int) -> None:
        """Tell the parent what it has to know of its child, unless that is left out."""
        flags = self.flags
        if flags[node] & _FORCED:
            return
        passed = flags[node] & (_BIASED | _ASSUMED | _PARTIAL | _DROPS)
        if flags[node] & _SELECTED:
            passed |= _BIASED
        missing = self.dropped.get(node, 0)
        if self.value[node] is None and not missing and node not in self.gone_on:
            missing = self.dropped[node] = 1
        if missing:
            self.dropped[parent] = self.dropped.get(parent, 0) + missing
            passed |= _DROPS
        flags[parent] |= passed

    def _arrival(self, node: int, v: Number) -> Number:
        return self.shape.rewards.get(node, 0) + self.discount * v

    def _settle(self, node: int) -> None:
        """Make the sums that have come together at a node into its value and SE^2."""
        v, gaps, n = self.value[node], self.variance[node], self.count[node]
        if v is not None and gaps is not None:
            self.value[node], self.variance[node] = v / n, gaps / (n * (n - 1))
        if self.flags[node] & _CHOICE:
            self._choose(node)

    def _choose(self, node: int) -> None:
        """Value a node by its enumerated options."""
        enumerated = self.shape.enumerated
        children = [c for c in self.sets[node] if not self.flags[c] & _FORCED]
        known = [(c, v) for c in children if (v := self.value[c]) is not None]
        if not known:
            return
        priors = {c: q for c in children if (q := enumerated[c]) is not None}
        if len(priors) < len(children):
            priors = dict.fromkeys(children, _share(len(children), known[0][1]))
            self.flags[node] |= _ASSUMED
        whole = sum(priors.values())
        if whole > 1 + _SURE:
            raise ValueError(f"priors of the options at node {node} add up to {float(whole):g}")
        mass = sum(priors[c] for c, _ in known)
        if not mass:
            self.value[node], self.variance[node], self.count[node] = None, None, 0
            return
        if mass < 1 - _SURE:
            self.flags[node] |= _PARTIAL
        shares = {c: priors[c] / mass for c, _ in known}
        self.options[node] = shares
        self.value[node] = sum(shares[c] * self._arrival(c, v) for c, v in known)
        self.variance[node] = self._through(shares)
        self.count[node] = len(known)

    def _through(self, shares: Mapping[int, Number]) -> Number | None:
        """SE^2 of a node by that of its options: the sum of q^2 SE^2."""
        total: Number = 0
        for child, share in shares.items():
            variance = self.variance[child]
            if variance is None:
                return None
            total += (share * self.discount) ** 2 * variance
        return total

    def pooled(self) -> None:
        """Weighted means of all nodes, from the last to the first (leaf mean and BLUE)."""
        by_leaf = self.estimator is Estimator.LEAF_MEAN
        rule = leaf_weights if by_leaf else blue_weights
        children = self.shape.children()
        pools: list[Pool | None] = [None] * len(children)
        for node in range(len(children) - 1, -1, -1):
            known: list[Pool] = []
            for child in children[node]:
                self._hand_up(child, node)
                pool = pools[child]
                left_out = _FORCED if by_leaf else _OFF_POLICY
                if pool is not None and not self.flags[child] & left_out:
                    x = self._arrival(child, pool.value)
                    known.append(pool.at_edge(x, self.discount))
            own = self.value[node]
            if self.flags[node] & _CHOICE and not by_leaf:
                self._choose(node)
            if node in self.options:
                chosen = self.value[node]
                assert chosen is not None
                pools[node] = Pool(chosen, self.variance[node], None, len(self.options[node]))
            elif known:
                pools[node] = made = rule(known)
                self.value[node], self.count[node] = made.value, len(known)
                self.variance[node] = made.variance if len(known) > 1 else None
            elif own is not None:
                pools[node] = Pool(own, None, None, 1)


def _share(n: int, like: Number) -> Number:
    """1/n, in the kind of number that is given."""
    return (like * 0 + 1) / n


def mean_value(roots: Sequence[Values]) -> Value:
    """The value of a task over independent trees: the mean of their roots, each one draw.

    Trees without a scored leaf are left out; their leaves are counted as dropped.
    """
    shape = Outline([-1] + [0] * len(roots))
    returns = {n: v for n, tree in enumerate(roots, 1) if (v := tree.value[0]) is not None}
    found = tree_values(shape, returns).at(0)
    each = [tree.at(0) for tree in roots]
    return Value(
        value=found.value,
        se=found.se,
        n=found.n,
        leaves=sum(one.leaves for one in each),
        dropped=sum(one.dropped for one in each),
        forced=0,
        biased=any(one.biased for one in each),
        assumed_priors=any(one.assumed_priors for one in each),
        partial=any(one.partial for one in each),
    )
