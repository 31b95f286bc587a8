"""Weighted estimators of a state's value: by leaves, and by how well each child is known.

BLUE (best linear unbiased estimator) weighs a child by 1 / (tau^2 + SE_c^2), where tau^2 is the
variance between children's true values, by the method of moments (DerSimonian and Laird 1986; with
equal weights as in DerSimonian and Kacker 2007). A child with a single leaf knows no SE_c of its
own. Two or more of those show tau^2 and the variance of a rollout together, by their spread; one
gets the variance of a rollout that its siblings' subtrees show. Where no subtree shows any, all
children count the same, and BLUE is the child mean.

This is what makes continuations of a later state serve the earlier ones on its path, as far as
little is decided between them.
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
    if len(children) == 1:
        return children[0]  # seen from above, a chain is the state it leads to
    single = [c for c in children if c.variance is None or c.rollout is None]
    known = [c for c in children if c.variance is not None and c.rollout is not None]
    if not known:
        return _alike(children)
    rollout = _mean([c.rollout for c in known])
    if len(single) > 1:  # their spread is the whole variance of a rollout
        alone = _spread([c.value for c in single])
        between = max(alone - rollout, alone * 0)
    else:
        within = [c.variance for c in known] + [rollout] * len(single)
        spread = _spread([c.value for c in children])
        between = max(spread - _mean(within), spread * 0)
        alone = between + rollout
    totals = [
        alone if c.variance is None or c.rollout is None else between + c.variance for c in children
    ]
    if not all(totals):
        return _alike(children)
    weights = [1 / total for total in totals]
    mean, _ = _weighted(children, weights)
    if len(single) > 1:  # nearer the truth around the better mean
        alone = _mean([(c.value - mean) ** 2 for c in single])
    return Pool(mean, 1 / sum(weights), alone, sum(child.leaves for child in children))


def _alike(children: Sequence[Pool]) -> Pool:
    """Every child counts the same."""
    mean, variance = _weighted(children, [1] * len(children))
    assert variance is not None
    leaves = sum(child.leaves for child in children)
    return Pool(mean, variance, variance * len(children), leaves)


def _spread(values: Sequence[Number]) -> Number:
    """The sample's variance."""
    mean = _mean(values)
    return sum((x - mean) ** 2 for x in values) / (len(values) - 1)


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
