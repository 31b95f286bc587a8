"""What a job amounts to: counts, the mean reward with its standard error, time and money."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add

import msgspec

from ramify.contracts.messages import Usage
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome


class JobSummary(msgspec.Struct, frozen=True):
    """Aggregate of a job's finished rollouts.

    `mean` is over rollouts whose outcome counts (`invalid` at the task's minimum); what was never
    scored is left out of it and stands in `outcomes`. `stderr` is clustered by task (see
    `standard_error`), None where it cannot be estimated. `seconds` is time by phase, summed.
    `reward_errors` counts rollouts by the part of the reward that could not be computed, `pending`
    those whose reward is provisional. `usage` is the policy's, `grading` that of judges.
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
    """Aggregate results, each rollout once."""
    finished = list(results)
    rewards: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for result in finished:
        if result.outcome.counts and result.reward is not None:
            rewards[result.task_id].append(result.reward)
        for phase, took in result.timings.items():
            seconds[phase] += took
    values = [value for group in rewards.values() for value in group]
    outcomes = Counter(result.outcome.value for result in finished)
    return JobSummary(
        planned=planned,
        finished=len(finished),
        counted=len(values),
        mean=math.fsum(values) / len(values) if values else None,
        stderr=standard_error(rewards),
        outcomes={o.value: outcomes[o.value] for o in Outcome if outcomes[o.value]},
        seconds=dict(seconds),
        usage=reduce(add, (result.usage for result in finished), Usage()),
        wall_sec=wall_sec,
        reward_errors=dict(
            sorted(Counter(name for result in finished for name in result.reward_errors).items())
        ),
        pending=sum(bool(result.pending) for result in finished),
        grading=reduce(add, (result.grading for result in finished), Usage()),
    )


def standard_error(rewards: Mapping[str, list[float]]) -> float | None:
    """Standard error of the mean reward, clustered by task.

    SE² = G/(G-1) · Σ_g (Σ_{i∈g} (x_i - x̄))² / n² over G tasks and n rollouts (cluster-robust
    variance of a mean; Miller, "Adding Error Bars to Evals", arXiv:2411.00640). With one rollout
    per task this is s/√n. With a single task its rollouts are the clusters. None below two
    clusters: unknown is not zero.
    """
    groups = [group for group in rewards.values() if group]
    if len(groups) == 1:
        groups = [[value] for value in groups[0]]
    if len(groups) < 2:
        return None
    n = sum(len(group) for group in groups)
    mean = math.fsum(value for group in groups for value in group) / n
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in groups)
    return math.sqrt(len(groups) / (len(groups) - 1) * squares) / n
