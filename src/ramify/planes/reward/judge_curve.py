"""Corrections of a judge's scores, fitted to what people say."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import Literal

import msgspec

Fit = Literal["linear", "isotonic"]


class Curve(msgspec.Struct, frozen=True):
    """A correction from 0..1 to 0..1: straight lines between knots (score, corrected).

    Before the first knot and after the last it stays as there.
    """

    knots: tuple[tuple[float, float], ...]

    def __call__(self, score: float) -> float:
        """The corrected score."""
        place = bisect_right(self.knots, score, key=lambda knot: knot[0])
        if place == 0:
            return _clipped(self.knots[0][1])
        if place == len(self.knots):
            return _clipped(self.knots[-1][1])
        (x0, y0), (x1, y1) = self.knots[place - 1 : place + 1]
        return _clipped(y0 + (y1 - y0) * (score - x0) / (x1 - x0))


def fitted(fit: Fit, pairs: Sequence[tuple[float, float]]) -> Curve:
    """The curve that is nearest to pairs (judge's, people's), by least squares."""
    return _linear(pairs) if fit == "linear" else _isotonic(pairs)


def _linear(pairs: Sequence[tuple[float, float]]) -> Curve:
    x_mean, y_mean = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    spread = sum((x - x_mean) ** 2 for x, _ in pairs)
    together = sum((x - x_mean) * (y - y_mean) for x, y in pairs)
    slope = together / spread if spread else 0.0
    start = y_mean - slope * x_mean
    return Curve(((0.0, start), (1.0, start + slope)))


def _isotonic(pairs: Sequence[tuple[float, float]]) -> Curve:
    """Pool neighbours until nothing falls; a pool is one level from its first to its last."""
    pools: list[list[tuple[float, float]]] = []
    for _, same in groupby(sorted(pairs), key=lambda pair: pair[0]):
        pools.append(list(same))
        while len(pools) > 1 and _level(pools[-2]) > _level(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    knots: list[tuple[float, float]] = []
    for pool in pools:
        level, first, last = _level(pool), pool[0][0], pool[-1][0]
        knots += [(first, level)] if first == last else [(first, level), (last, level)]
    return Curve(tuple(knots))


def _level(pool: Sequence[tuple[float, float]]) -> float:
    return fmean(y for _, y in pool)


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))
