"""What judges say, and what is made of what several of them say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any, Literal, Protocol

import msgspec

from ramify.contracts.messages import Usage
from ramify.contracts.model import Model

Combine = Literal["mean", "median", "majority"]
"""How several become one: `majority` is the value that most of them gave; of several such, their
median."""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a judge, or a panel of them, says of some material.

    Attributes:
        score: from 0 to 1: the weighted mean of the criteria.
        criteria: each criterion's share of its scale, from 0 to 1.
        reasons: why, by criterion; in the judge's words, which may quote the material.
        judge: who says so.
        calls: how many calls of a model it took; 0 where it was known already.
        usage: what those cost.
        agreement: 1 where all voices said the same, 0 where they could not differ more; None for
            one voice.
        voices: what each of several said.
        failed: who of a panel said nothing usable, and why.
        cut: part of the material → characters of it that were not shown.
        uncalibrated: the score before calibration.
    """

    score: float
    criteria: dict[str, float]
    reasons: dict[str, str] = {}
    judge: str = ""
    calls: int = 0
    usage: Usage = Usage()
    agreement: float | None = None
    voices: tuple[Verdict, ...] = ()
    failed: dict[str, str] = {}
    cut: dict[str, int] = {}
    uncalibrated: float | None = None

    def details(self) -> dict[str, Any]:
        """As it is written down with a reward."""
        return msgspec.to_builtins(self)


class Assessor(Protocol):
    """Whoever judges: a Judge, a JudgePanel, or one of them calibrated.

    Guarantees: a verdict or an error; never a number that nobody gave.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def asks(self, model: Model | None) -> bool:
        """Whether it would ask this very model, and nobody said that it may."""
        ...

    async def assess(self, material: Mapping[str, str]) -> Verdict:
        """Judge some material: name of a part → its text, none of which is trusted.

        Raises: RewardFailedError (no usable verdict, through no fault of the material),
        InvalidRewardError (`malformed`: the material is what keeps it from judging).
        """
        ...


def united(voices: Sequence[Verdict], combine: Combine, name: str) -> Verdict:
    """One verdict of several on the same criteria. Reasons are those of the first nearest to it."""
    names = list(voices[0].criteria)
    criteria = {key: _one([voice.criteria[key] for voice in voices], combine) for key in names}
    score = _one([voice.score for voice in voices], combine)
    speaker = min(voices, key=lambda voice: abs(voice.score - score))
    usage = Usage()
    for voice in voices:
        usage += voice.usage
    return Verdict(
        score=score,
        criteria=criteria,
        reasons=speaker.reasons,
        judge=name,
        calls=sum(voice.calls for voice in voices),
        usage=usage,
        agreement=agreement([voice.score for voice in voices]),
        voices=tuple(voices),
        cut=voices[0].cut,
    )


def first_failure(found: Sequence[Verdict | Exception]) -> list[Verdict]:
    """All of them, where all are verdicts. Raises: the first error."""
    for each in found:
        if isinstance(each, Exception):
            raise each
    return [each for each in found if isinstance(each, Verdict)]


def agreement(scores: Sequence[float]) -> float | None:
    """1 minus the mean distance between any two; None for one score."""
    if len(scores) < 2:
        return None
    return 1.0 - fmean(abs(a - b) for a, b in combinations(scores, 2))


def _one(values: Sequence[float], combine: Combine) -> float:
    match combine:
        case "mean":
            return fmean(values)
        case "median":
            return median(values)
        case "majority":
            counted = Counter(values)
            most = max(counted.values())
            return median(value for value, count in counted.items() if count == most)
