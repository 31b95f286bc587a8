"""How often at least one of k attempts, or all k, succeed.

Each number is a chance of success in [0, 1]; fractions give exact results.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

from ramify.kernel.outline import Number


def pass_at_k(n: int, c: int, k: int) -> Fraction:
    """At least one of k attempts succeeds: 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv:2107.03374).

    Unbiased for n independent attempts with c successes. Leaves of one tree share their beginning
    and are not independent: use `tree_pass_at_k`.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    _check(n, c, k)
    return 1 - Fraction(comb(n - c, k), comb(n, k))


def pass_hat_k(n: int, c: int, k: int) -> Fraction:
    """All of k attempts succeed: C(c, k) / C(n, k) (tau-bench, arXiv:2406.12045).

    Raises:
        ValueError: as `pass_at_k`.
    """
    _check(n, c, k)
    return Fraction(comb(c, k), comb(n, k))


def tree_pass_at_k(values: Sequence[Number], k: int) -> Number:
    """At least one of k attempts succeeds, from the values of M independent trees.

    1 - e_k(1 - V) / C(M, k), with e_k the elementary symmetric polynomial: the mean over all
    k-subsets of trees of the chance that none of them succeeds. Unbiased where each V is, and
    Chen's estimator where each is 0 or 1.

    Raises:
        ValueError: not 1 <= k <= M, or a value is no chance.
    """
    return 1 - _mean_product([1 - v for v in values], k)


def tree_pass_hat_k(values: Sequence[Number], k: int) -> Number:
    """All of k attempts succeed, from the values of M independent trees: e_k(V) / C(M, k).

    Raises:
        ValueError: as `tree_pass_at_k`.
    """
    return _mean_product(values, k)


def _mean_product(chances: Sequence[Number], k: int) -> Number:
    """Mean over k-subsets of the product."""
    if not 1 <= k <= len(chances):
        raise ValueError(f"k is {k}; it must be within 1 and the number of trees, {len(chances)}")
    if not all(0 <= chance <= 1 for chance in chances):
        raise ValueError("values must be chances within 0 and 1 for pass@k")
    # Weighted as it goes, so that neither a sum of many subsets nor a tiny product loses digits.
    means: list[Number] = [1, *([0] * k)]
    for seen, chance in enumerate(chances, 1):
        for size in range(min(k, seen), 0, -1):
            means[size] = (means[size] * (seen - size) + means[size - 1] * size * chance) / seen
    return means[k]


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"{c} successes among {n} attempts")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be within 1 and the number of attempts, {n}")
