"""Score a finished job again, from what its rollouts left behind, without running agents."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify import compose
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import SandboxProvider
from ramify.contracts.task import IsolationLevel
from ramify.engine.reading import read_job, read_results
from ramify.engine.summary import JobSummary, summarise
from ramify.envs.options import RunOptions
from ramify.envs.run import JobReport, open_job


@dataclass(frozen=True, slots=True)
class Rescored:
    """A rollout's result as it was, and as it is now."""

    before: RolloutResult
    after: RolloutResult

    @property
    def changed(self) -> bool:
        """The reward or the outcome is another one."""
        return (self.before.reward, self.before.outcome) != (self.after.reward, self.after.outcome)


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What scoring again came to.

    Attributes:
        report: the new scores, as a job of their own below the run directory.
        before: summary of the same rollouts as they were.
        rollouts: each rollout, before and after, by rollout id.
        left_alone: rollouts that cannot be scored again from what was kept.
        unknown_tasks: tasks that were not found, so that only their prompt is known.
    """

    report: JobReport
    before: JobSummary
    rollouts: Sequence[Rescored]
    left_alone: Sequence[RolloutResult]
    unknown_tasks: Sequence[str] = ()


async def score_job(
    job: Path,
    *,
    tasks: str | Path | None = None,
    sandbox: str | SandboxProvider | None = None,
    options: RunOptions | None = None,
    scored: Callable[[int, int], None] | None = None,
) -> ScoreReport:
    """Verify the recorded final states of a job again.

    The tests are those of the tasks as they stand now, so a mended verifier can be tried on what
    agents did before. A state is restored into a fresh sandbox (the work directory and declared
    outputs), so verification is at level `workdir` or stricter; each new reward says which. Tasks
    that are known to need more (the agent's file system, or its processes) are left alone, and so
    are rollouts that branched.

    Args:
        job: the run directory.
        tasks: where the tasks are; by default where the job found them.
        sandbox: where to verify; by default where the job ran.
        options: concurrency, retries, isolation.
        scored: told, as they are scored again, how many of how many rollouts are.

    Raises:
        UsageError: the job has no results, or its tasks cannot be found.
    """
    record = read_job(job)
    found = {key: value for key, value in read_results(job).items() if value.outcome.final}
    if not found:
        raise ConfigError("no rollout has a result that could be scored again", file=str(job))
    place = tasks or record.plan.tasks
    if not place:
        raise ConfigError("the job does not say where its tasks are; name them with --tasks")
    provider = sandbox or record.plan.sandbox
    name = provider if isinstance(provider, str) else provider.name
    needy = _need_more(place, {result.task_id for result in found.values()}, name)
    left_alone = [r for r in found.values() if r.task_id in needy or r.leaves > 1]
    again = found.keys() - {r.rollout_id for r in left_alone}
    slots = sorted((found[key].task_id, found[key].repeat) for key in again)
    if not slots:
        raise UnsupportedError(
            f"{job}: the tests of all its tasks need the agent's file system or processes, of "
            "which only the work directory was kept"
        )

    def same_slots(task_ids: Sequence[str]) -> Sequence[tuple[str, int]]:
        known = set(task_ids)
        return [slot for slot in slots if slot[0] in known]

    wanted = msgspec.structs.replace(
        options or RunOptions(),
        task_ids=tuple(dict.fromkeys(task_id for task_id, _ in slots)),
        limit=None,
        sampler=same_slots,
        seed=record.plan.seed,
        shares_at_most=IsolationLevel.WORKDIR,
        out=job / "scores" / secrets.token_hex(4),
    )
    agent = compose.agent("recorded", {"run": str(job)})
    async with open_job(place, agent=agent, sandbox=provider, options=wanted) as (scoring, path):
        results: list[RolloutResult] = []
        async with aclosing(scoring.stream()) as stream:
            async for result in stream:
                results.append(result)
                if scored is not None:
                    scored(len(results), len(slots))
        report = JobReport(path, scoring.summary, results, scoring.metrics.report())
    after = {result.rollout_id: result for result in report.results}
    rollouts = [Rescored(found[key], after[key]) for key in sorted(found) if key in after]
    before = summarise((entry.before for entry in rollouts), len(rollouts))
    return ScoreReport(report, before, rollouts, left_alone)


def _need_more(tasks: str | Path, task_ids: Set[str], provider: str) -> set[str]:
    """Tasks whose tests need more than the final work directory.

    Those known to, those that are scored after each of several steps, and Compose projects and
    worlds, whose services had a state of their own.
    """
    taskset = compose.taskset(str(tasks))
    needy: set[str] = set()
    for task_id in task_ids:
        package = taskset.get_task(task_id).package
        if package is None:
            continue
        found = compose.remembered(package.digest, provider)
        known = package.verifier.isolation or (found.level if found else None)
        shares = known in (IsolationLevel.FILESYSTEM, IsolationLevel.LIVE)
        alive = package.sandbox.compose is not None or package.world is not None
        if shares or package.steps or alive:
            needy.add(task_id)
    return needy
