"""How far a judge agrees with people, and a judge whose marks are corrected by that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

import msgspec

from ramify.contracts.errors import ConfigError, InvalidRewardError, RewardFailedError
from ramify.contracts.model import Model
from ramify.planes.reward.judge_curve import Curve, Fit, fitted
from ramify.planes.reward.judge_scale import Scale
from ramify.planes.reward.judge_verdict import Assessor, Verdict

_PASS_FAIL = Scale(0, 1, {0: "fail", 1: "pass"})


class LabelledExample(msgspec.Struct, frozen=True):
    """Material, and the score from 0 to 1 that people gave it."""

    material: dict[str, str]
    score: float


class Calibration(msgspec.Struct, frozen=True):
    """How a judge's scores compare with people's, on the same examples.

    Attributes:
        judge: whose.
        scores: (people's, the judge's) of each example that it judged, in order.
        failed: why there is no verdict, by number of the example.
        marks: what both are rounded to for `confusion`, `exact` and `kappa`.
        confusion: `confusion[people's][judge's]`: how many, by place on the scale of marks.
        exact: share of examples with the same mark.
        kappa: Cohen's kappa of the marks, agreement beyond chance; None where either always gives
            the same one. `weighted_kappa`: with squared distances.
        bias: mean of (the judge's - people's); above 0 it is lenient.
        error: mean distance.
        fitted_error: mean distance after the correction, each example being left out of what it is
            corrected by; None without one.
        curve: the correction.
    """

    judge: str
    scores: tuple[tuple[float, float], ...]
    failed: dict[int, str]
    marks: tuple[int, int]
    confusion: tuple[tuple[int, ...], ...]
    exact: float
    kappa: float | None
    weighted_kappa: float | None
    bias: float
    error: float
    fitted_error: float | None
    curve: Curve

    def applied(self, judge: Assessor) -> CalibratedJudge:
        """The judge with its scores corrected."""
        return CalibratedJudge(judge, self.curve)

    def table(self) -> str:
        """All of it, for people to read."""
        low, high = self.marks
        names = [str(mark) for mark in range(low, high + 1)]
        width = max(
            len(name) for name in [*names, *(str(n) for row in self.confusion for n in row)]
        )
        lines = [
            f"{self.judge}: {len(self.scores)} examples, {len(self.failed)} without a verdict",
            f"  same mark       {self.exact:.1%}",
            f"  kappa           {_shown(self.kappa)} (weighted {_shown(self.weighted_kappa)})",
            f"  bias            {self.bias:+.3f}",
            f"  mean distance   {self.error:.3f}"
            + (f", corrected {self.fitted_error:.3f}" if self.fitted_error is not None else ""),
            "  people \\ judge  " + " ".join(name.rjust(width) for name in names),
        ]
        for name, row in zip(names, self.confusion, strict=True):
            lines.append(f"  {name.rjust(14)}  " + " ".join(str(n).rjust(width) for n in row))
        lines += [f"  example {number}: {why}" for number, why in self.failed.items()]
        return "\n".join(lines)


class CalibratedJudge:
    """A judge whose scores are corrected by a curve. Implements `Assessor`.

    Its verdicts keep the score before that as `uncalibrated`; the criteria are as they were.
    """

    def __init__(self, judge: Assessor, curve: Curve) -> None:
        self._judge, self._curve = judge, curve

    @property
    def name(self) -> str:
        """The judge's name."""
        return self._judge.name

    def asks(self, model: Model | None) -> bool:
        """Whether the judge would ask this very model without leave."""
        return self._judge.asks(model)

    async def assess(self, material: Mapping[str, str]) -> Verdict:
        """Judge some material, and correct the score. Raises what the judge raises."""
        verdict = await self._judge.assess(material)
        corrected = self._curve(verdict.score)
        return msgspec.structs.replace(verdict, score=corrected, uncalibrated=verdict.score)


async def calibrate(
    judge: Assessor,
    examples: Sequence[LabelledExample],
    *,
    fit: Fit | Literal["none"] = "none",
    scale: Scale = _PASS_FAIL,
    concurrency: int = 8,
) -> Calibration:
    """Let a judge judge what people have judged, and compare.

    Args:
        judge: whose scores.
        examples: two or more.
        fit: the correction: `none`, a `linear` one, or an `isotonic` one, which only keeps the
            order.
        scale: what scores are rounded to where marks are compared; by default pass or fail.
        concurrency: examples that are judged at once.

    Raises:
        ConfigError: fewer than two examples, or a score out of 0 to 1.
        RewardFailedError: fewer than two of them got a verdict.
    """
    if len(examples) < 2 or not all(0.0 <= example.score <= 1.0 for example in examples):
        raise ConfigError("calibrating takes two or more examples, with scores from 0 to 1")
    turn = asyncio.Semaphore(concurrency)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_judged(judge, example, turn)) for example in examples]
    found = [task.result() for task in asked]
    failed = {n: each for n, each in enumerate(found) if isinstance(each, str)}
    pairs = [
        (example.score, each)
        for example, each in zip(examples, found, strict=True)
        if not isinstance(each, str)
    ]
    if len(pairs) < 2:
        why = next(iter(failed.values()))
        raise RewardFailedError(f"{judge.name} cannot be calibrated: {why}")
    return _compared(judge.name, pairs, failed, fit, scale)


async def _judged(
    judge: Assessor, example: LabelledExample, turn: asyncio.Semaphore
) -> float | str:
    async with turn:
        try:
            return (await judge.assess(example.material)).score
        except (RewardFailedError, InvalidRewardError) as error:
            return str(error)


def _compared(
    name: str,
    pairs: Sequence[tuple[float, float]],
    failed: dict[int, str],
    fit: Fit | Literal["none"],
    scale: Scale,
) -> Calibration:
    size = scale.high - scale.low + 1
    confusion = [[0] * size for _ in range(size)]
    for theirs, its in pairs:
        confusion[scale.nearest(theirs) - scale.low][scale.nearest(its) - scale.low] += 1
    curve, fitted_error = Curve(((0.0, 0.0), (1.0, 1.0))), None
    if fit != "none":
        curve = fitted(fit, [(its, theirs) for theirs, its in pairs])
        fitted_error = fmean(_left_out(fit, pairs, number) for number in range(len(pairs)))
    return Calibration(
        judge=name,
        scores=tuple(pairs),
        failed=failed,
        marks=(scale.low, scale.high),
        confusion=tuple(tuple(row) for row in confusion),
        exact=sum(confusion[place][place] for place in range(size)) / len(pairs),
        kappa=_kappa(confusion, squared=False),
        weighted_kappa=_kappa(confusion, squared=True),
        bias=fmean(its - theirs for theirs, its in pairs),
        error=fmean(abs(its - theirs) for theirs, its in pairs),
        fitted_error=fitted_error,
        curve=curve,
    )


def _left_out(fit: Fit, pairs: Sequence[tuple[float, float]], number: int) -> float:
    """Distance of one example after the correction that the others give."""
    others = [(its, theirs) for place, (theirs, its) in enumerate(pairs) if place != number]
    theirs, its = pairs[number]
    return abs(fitted(fit, others)(its) - theirs)


def _kappa(confusion: Sequence[Sequence[int]], *, squared: bool) -> float | None:
    """Cohen's kappa: 1 - observed disagreement / the disagreement that chance would give."""
    size, total = len(confusion), sum(map(sum, confusion))
    rows = [sum(row) for row in confusion]
    columns = [sum(row[place] for row in confusion) for place in range(size)]
    observed = expected = 0.0
    for i in range(size):
        for j in range(size):
            weight = float((i - j) ** 2 if squared else i != j)
            observed += weight * confusion[i][j] / total
            expected += weight * rows[i] * columns[j] / total**2
    return None if expected == 0 else 1.0 - observed / expected


def _shown(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.3f}"
