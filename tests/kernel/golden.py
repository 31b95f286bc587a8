"""The worked example: root → a, b sampled; a → 1, 1, 0 sampled; b → 0 (q 3/4), 1 (q 1/4)."""

from __future__ import annotations

from fractions import Fraction

from ramify.kernel.outline import Number, Outline
from ramify.kernel.value import Estimator, Values, tree_values

F = Fraction

A, B = 1, 2
LEAVES = (3, 4, 5, 6, 7)
RETURNS = {3: F(1), 4: F(1), 5: F(0), 6: F(0), 7: F(1)}
PARENTS = [-1, 0, 0, A, A, A, B, B]


def worked(
    number: type = F, estimator: Estimator = Estimator.CHILD_MEAN, discount: Number = 1
) -> Values:
    """The example in fractions or floats."""
    outline = Outline(PARENTS, {6: number(F(3, 4)), 7: number(F(1, 4))})
    returns = {leaf: number(r) for leaf, r in RETURNS.items()}
    return tree_values(outline, returns, estimator=estimator, discount=discount)


def agrees(found: Number | None, exact: Number, number: type) -> bool:
    """Exactly equal in fractions, to 1e-12 in floats."""
    if found is None:
        return False
    return found == exact if number is F else abs(found - exact) <= 1e-12
