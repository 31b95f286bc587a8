"""Weighted estimators of a state's value: by leaves, and by how well each child is known.

BLUE (best linear unbiased estimator) weighs a child by 1 / (tau^2 + SE_c^2), where tau^2 is the
variance between children's true values, by the method of moments (DerSimonian and Laird 1986; the
general form is DerSimonian and Kacker 2007). A child with one leaf knows no SE_c of its own: it
gets the variance of a single rollout that its siblings' subtrees show. Where none shows any, all
children count the same, and BLUE is the child mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ramify.kernel.outline import Number


@dataclass(frozen=True, slots=True)
class Pool:
    """What a subtree says of its root.

    Attributes:
        value: the estimate.
        variance: of the estimate (SE^2); None where it cannot be known.
        rollout: variance of a single rollout from here; None where it cannot be known.
        leaves: scored leaves.
    """

    value: Number
    variance: Number | None
    rollout: Number | None
    leaves: int

    def at_edge(self, x: Number, discount: Number) -> Pool:
        """The same, seen from the parent: X instead of V."""
        scale = discount * discount
        return replace(
            self,
            value=x,
            variance=None if self.variance is None else scale * self.variance,
            rollout=None if self.rollout is None else scale * self.rollout,
        )


def leaf_weights(children: Sequence[Pool]) -> Pool:
    """Pool children by their leaves. SE between children (cluster-robust)."""
    leaves = sum(child.leaves for child in children)
    weights = [child.leaves for child in children]
    return Pool(*_weighted(children, weights), None, leaves)


def blue_weights(children: Sequence[Pool]) -> Pool:
    """Pool children by how well each is known."""
    leaves = sum(child.leaves for child in children)
    if len(children) == 1:
        return children[0]  # seen from above, a chain is the state it leads to
    known = [c for c in children if c.rollout is not None and c.variance is not None]
    if not known:
        mean, variance = _weighted(children, [1] * len(children))
        assert variance is not None
        return Pool(mean, variance, variance * len(children), leaves)
    rollout = _mean([c.rollout for c in known])
    within = [rollout if c.variance is None else c.variance for c in children]
    tau2 = _between([c.value for c in children], within)
    totals = [tau2 + variance for variance in within]
    if not all(totals):
        mean, variance = _weighted(children, [1] * len(children))
        return Pool(mean, variance, tau2 + rollout, leaves)
    weights = [1 / total for total in totals]
    mean, _ = _weighted(children, weights)
    return Pool(mean, 1 / sum(weights), tau2 + rollout, leaves)


def _between(values: Sequence[Number], within: Sequence[Number]) -> Number:
    """tau^2 by the method of moments with equal weights: S^2 less the mean variance within."""
    mean, count = _mean(values), len(values)
    spread = sum((x - mean) ** 2 for x in values) / (count - 1)
    return max(spread - _mean(within), spread * 0)


def _weighted(children: Sequence[Pool], weights: Sequence[Number]) -> tuple[Number, Number | None]:
    """Weighted mean, and n/(n-1) sum w^2 (X - mean)^2 with weights that add up to 1."""
    whole, count = sum(weights), len(children)
    mean = sum(w * c.value for w, c in zip(weights, children, strict=True)) / whole
    if count < 2:
        return mean, None
    spread = sum((w * (c.value - mean)) ** 2 for w, c in zip(weights, children, strict=True))
    return mean, spread * count / ((count - 1) * whole * whole)


def _mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)
