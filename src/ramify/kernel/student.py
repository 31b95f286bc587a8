"""Student's t distribution."""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log1p
from statistics import NormalDist

_NORMAL_FROM = 1e7
_TINY = 1e-300
_CLOSE = 1e-15


@lru_cache(maxsize=256)
def t_quantile(p: float, dof: float) -> float:
    """The value that a t variable with `dof` degrees of freedom stays below with chance `p`.

    Raises:
        ValueError: `p` is not between 0 and 1, or `dof` is not above 0.
    """
    if not 0 < p < 1 or not dof > 0:
        raise ValueError(f"no quantile at p = {p} with {dof} degrees of freedom")
    normal = NormalDist().inv_cdf(p)
    if dof > _NORMAL_FROM or p == 0.5:
        return normal
    if p < 0.5:
        return -t_quantile(1 - p, dof)
    low, high = 0.0, max(2 * normal, 1.0)
    while t_cdf(high, dof) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high) or high - low < _CLOSE * high:
            break
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, dof: float) -> float:
    """The chance that a t variable with `dof` degrees of freedom is below `t`."""
    tail = _incomplete_beta(dof / 2, 0.5, dof / (dof + t * t)) / 2
    return 1 - tail if t > 0 else tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    return front * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1/(1 + d1/(1 + d2/(1 + ...))) by Lentz's method."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            found *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return found


def _away(number: float) -> float:
    """Not quite 0."""
    return number if abs(number) > _TINY else _TINY
