"""What a job amounts to: counts, the mean reward with its standard error, time and money."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from ramify.contracts.messages import Usage
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome
from ramify.kernel.exact import UNITS, units
from ramify.kernel.intervals import Clustered


class JobSummary(msgspec.Struct, frozen=True):
    """Aggregate of a job's finished rollouts.

    `mean` is over rollouts whose outcome counts (`invalid` at the task's minimum); what was never
    scored is left out of it and stands in `outcomes`. `stderr` is clustered by task (see
    `kernel.intervals.Clustered`), None where it cannot be estimated. `seconds` is time by phase,
    summed. `reward_errors` counts rollouts by the part of the reward that could not be computed,
    `pending` those whose reward is provisional. `usage` is the policy's, `grading` that of judges.
    """

    planned: int
    finished: int
    counted: int
    mean: float | None
    stderr: float | None
    outcomes: dict[str, int]
    seconds: dict[str, float]
    usage: Usage
    wall_sec: float = 0.0
    reward_errors: dict[str, int] = {}
    pending: int = 0
    grading: Usage = Usage()

    @property
    def complete(self) -> bool:
        """Every planned rollout has a result that counts."""
        return self.counted >= self.planned

    @property
    def unscored(self) -> int:
        """Rollouts that ended without a score."""
        return self.finished - self.counted


def summarise(results: Iterable[RolloutResult], planned: int, wall_sec: float = 0.0) -> JobSummary:
    """Aggregate results, each rollout once. Raises InvalidRewardError (NaN, infinite)."""
    tally = Tally()
    for result in results:
        tally.add(result)
    return tally.summary(planned, wall_sec)


class Tally:
    """Results added up as they come, so that a summary of a million costs what one of ten does.

    Sums are exact: a result that was taken back, because a newer one of its rollout counts, leaves
    no trace.
    """

    def __init__(self) -> None:
        self._finished = 0
        self._pending = 0
        self._rewards = Clustered()
        self._outcomes = Counter[str]()
        self._errors = Counter[str]()
        self._seconds = defaultdict[str, _Sum](_Sum)
        self._usage = _Spent()
        self._grading = _Spent()

    def add(self, result: RolloutResult) -> None:
        """Count a result. Raises InvalidRewardError (NaN, infinite); it is not counted then."""
        if (reward := _counted(result)) is not None:
            self._rewards.add(result.task_id, reward)
        self._change(result, 1)

    def remove(self, result: RolloutResult) -> None:
        """Take back a result that was added."""
        if (reward := _counted(result)) is not None:
            self._rewards.remove(result.task_id, reward)
        self._change(result, -1)

    def summary(self, planned: int, wall_sec: float = 0.0) -> JobSummary:
        """What all of it amounts to, of `planned` rollouts, after so many seconds."""
        rewards = self._rewards.estimate()
        return JobSummary(
            planned=planned,
            finished=self._finished,
            counted=rewards.n if rewards else 0,
            mean=rewards.mean if rewards else None,
            stderr=rewards.se if rewards else None,
            outcomes={o.value: self._outcomes[o.value] for o in Outcome if self._outcomes[o.value]},
            seconds={phase: took.value for phase, took in self._seconds.items() if took.count},
            usage=self._usage.total(),
            wall_sec=wall_sec,
            reward_errors={name: count for name, count in sorted(self._errors.items()) if count},
            pending=self._pending,
            grading=self._grading.total(),
        )

    def _change(self, result: RolloutResult, count: int) -> None:
        self._finished += count
        self._pending += count * bool(result.pending)
        self._outcomes[result.outcome.value] += count
        for name in result.reward_errors:
            self._errors[name] += count
        for phase, took in result.timings.items():
            self._seconds[phase].change(took, count)
        self._usage.change(result.usage, count)
        self._grading.change(result.grading, count)


def _counted(result: RolloutResult) -> float | None:
    """The reward, where the mean is over it."""
    return result.reward if result.outcome.counts else None


@dataclass(slots=True)
class _Sum:
    """How many numbers there are, and their exact sum."""

    count: int = 0
    whole: int = 0  # in `units`

    @property
    def value(self) -> float:
        return self.whole / UNITS

    def change(self, number: float, count: int) -> None:
        self.count += count
        self.whole += count * units(number)


@dataclass(slots=True)
class _Spent:
    """Usages added up."""

    counts: Usage = Usage()
    dollars: _Sum = field(default_factory=_Sum)

    def total(self) -> Usage:
        cost = self.dollars.value if self.dollars.count else None
        return msgspec.structs.replace(self.counts, cost_usd=cost)

    def change(self, used: Usage, count: int) -> None:
        self.counts += Usage(
            count * used.input_tokens,
            count * used.output_tokens,
            count * used.cached_tokens,
            count * used.calls,
        )
        if used.cost_usd is not None:
            self.dollars.change(used.cost_usd, count)
