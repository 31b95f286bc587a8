"""What a judge is asked: criteria, and the scale of their marks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ramify.contracts.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that is judged.

    Attributes:
        name: lower-case letters, digits and underscores.
        description: what is looked at, and what earns a high mark.
        weight: its share of the score; 0 makes it a metric.

    Raises:
        ConfigError: another name, no description, or a weight that is no finite number from 0.
    """

    name: str
    description: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} is no criterion's name; use lower-case letters, digits and _"
            )
        if not self.description.strip():
            raise ConfigError(f"the criterion {self.name} has no description")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(f"the weight of {self.name} must be a number from 0")


@dataclass(frozen=True, slots=True)
class Scale:
    """Whole numbers that a judge may give, and what some of them mean.

    A mark becomes a number from 0 (the lowest) to 1 (the highest).

    Raises:
        ConfigError: the highest is not above the lowest, or a meaning is given to what is no mark.
    """

    low: int = 0
    high: int = 10
    meanings: Mapping[int, str] = field(default_factory=dict[int, str])

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"a scale from {self.low} to {self.high} has no marks to choose from")
        if outside := [mark for mark in self.meanings if not self.low <= mark <= self.high]:
            raise ConfigError(f"{outside[0]} is no mark of a scale {self.low} to {self.high}")

    def share(self, mark: int) -> float:
        """A mark as a number from 0 to 1."""
        return (mark - self.low) / (self.high - self.low)

    def nearest(self, share: float) -> int:
        """The mark nearest to a number from 0 to 1."""
        return self.low + round(min(1.0, max(0.0, share)) * (self.high - self.low))


def criteria_of(asked: str | Sequence[Criterion]) -> tuple[Criterion, ...]:
    """The criteria; a text is one question, called `verdict`.

    Raises: ConfigError (none, two of one name, or nothing but metrics).
    """
    if isinstance(asked, str):
        return (Criterion("verdict", asked),)
    names = [criterion.name for criterion in asked]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"there are two criteria called {min(twice)}; names are unique")
    if not any(criterion.weight for criterion in asked):
        raise ConfigError("a judge needs a criterion of weight above 0")
    return tuple(asked)
