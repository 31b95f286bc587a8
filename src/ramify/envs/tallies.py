"""What many scores amount to, part by part, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt

import msgspec

from ramify.kernel.intervals import Mean


class MetricSummary(msgspec.Struct, frozen=True):
    """One part of a reward over many trajectories.

    `low` and `high` bound the mean with a chance of 95 % (Student's t over independent
    trajectories); None below two. `errors` counts those for which it could not be computed.
    """

    name: str
    count: int
    mean: float | None
    low: float | None
    high: float | None
    errors: int


@dataclass(slots=True)
class _Tally:
    """Count, mean and squared deviations (Welford), and errors."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    errors: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        off = value - self.mean
        self.mean += off / self.count
        self.squares += off * (value - self.mean)

    def summary(self, name: str) -> MetricSummary:
        if self.count == 0:
            return MetricSummary(name, 0, None, None, None, self.errors)
        bounds: tuple[float | None, float | None] = (None, None)
        if self.count > 1:
            se = sqrt(self.squares / (self.count - 1) / self.count)
            bounds = Mean(self.mean, se, self.count, self.count - 1).interval() or bounds
        return MetricSummary(name, self.count, self.mean, *bounds, self.errors)


@dataclass(slots=True)
class Tallies:
    """Adds up scores by name, in the order in which the names first came."""

    _by_name: dict[str, _Tally] = field(default_factory=dict[str, _Tally])

    def add(self, values: Mapping[str, float | None], errors: Mapping[str, str]) -> None:
        """Add one trajectory. A value that is None counts as nothing."""
        for name, value in values.items():
            tally = self._by_name.setdefault(name, _Tally())
            if value is not None:
                tally.add(value)
        for name in errors:
            self._by_name.setdefault(name, _Tally()).errors += 1

    def __iter__(self) -> Iterator[MetricSummary]:
        return (tally.summary(name) for name, tally in self._by_name.items())
