"""Score the recorded trajectories of a job with a rubric: no agent runs, no sandbox is made."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ramify import compose
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.events import (
    AnyEvent,
    LeaseEvent,
    MetricEvent,
    OutcomeEvent,
    PhaseEvent,
    RewardGiven,
    RewardParts,
    WorldEvent,
)
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import GroupReward, Reward
from ramify.contracts.task import Task, Taskset
from ramify.engine.cancel import Cancellation
from ramify.engine.clock import SystemClock
from ramify.engine.executor import Executor
from ramify.engine.observe import RedactingObserver
from ramify.engine.reading import JobReader, JobRecord, read_job
from ramify.engine.redact import Redactor
from ramify.engine.revisions import LeafScore, Overlay, Revision, comparable
from ramify.engine.store import Store
from ramify.engine.summary import summarise
from ramify.envs.options import RunOptions
from ramify.envs.plan import versions
from ramify.envs.recorded import RecordedRollout, Surroundings, read_rollout, score_together
from ramify.envs.rubrics import describe_reward, load_reward
from ramify.envs.run import JobReport
from ramify.envs.score import Rescored, ScoreReport
from ramify.envs.verifiers import judge_of

_LEFT_BEHIND = (LeaseEvent, PhaseEvent, MetricEvent, OutcomeEvent, WorldEvent)
"""Events of the run that was recorded, not of its trajectories."""


async def score_records(
    job: Path,
    reward: Reward | Callable[..., Any] | str,
    *,
    tasks: str | Path | Taskset | None = None,
    options: RunOptions | None = None,
    scored: Callable[[int, int], None] | None = None,
) -> ScoreReport:
    """Score what was recorded of a job with `reward`, as it would be scored now.

    All leaves of a rollout are scored, and those of all rollouts of a task together where the
    reward compares siblings. What was `invalid` stays so. A function that asks for something that
    is gone, such as the sandbox, is an error of that rollout alone.

    Args:
        job: the run directory; nothing in it is changed. The new scores are a job of their own
            below `scores`, with the same trajectories.
        reward: a rubric, a function, or its place.
        tasks: where the tasks are; by default where the job found them. Where they are not found,
            a task is what was recorded of it: its prompt, and no answer.
        options: judge, resources, concurrency.
        scored: told, as they are scored, how many of how many rollouts are.

    Raises:
        UsageError: the job has no results, or the reward cannot be loaded.
        StoreError: it cannot be read, or the scores cannot be written.
    """
    wanted, clock = options or RunOptions(), SystemClock()
    record = await asyncio.to_thread(read_job, job)
    reader = await asyncio.to_thread(JobReader, job)
    found = {key: r for key, r in sorted(reader.results.items()) if comparable(r)}
    if not found:
        raise ConfigError("no rollout has a result that could be scored again", file=str(job))
    async with AsyncExitStack() as stack:
        judge = judge_of(
            wanted.judge_model,
            wanted.judge_base_url,
            wanted.judge_options,
            (None, None),
            clock,
            wanted.seed,
        )
        if judge is not None and judge is not wanted.judge_model:
            stack.push_async_callback(judge.aclose)
        scorer = load_reward(reward, judge)
        config = {
            "scored": record.job_id,
            "scored_config_hash": record.config_hash,
            "reward": describe_reward(scorer, reward if isinstance(reward, str) else None),
            "judge": judge.name if judge else None,
        }
        out = job / "scores" / secrets.token_hex(4)
        store = await Store.create_or_open(out, _record(record, config, clock, tasks))
        stack.push_async_callback(store.aclose)
        redactor = Redactor(env=os.environ)
        observer = RedactingObserver(store.observer, redactor)
        around = Surroundings(clock, Cancellation(), observer, resources=wanted.resources)
        taskset = _taskset(tasks, record)
        work = _Scoring(job, reader, scorer, store, around, taskset, redactor)
        started = clock.monotonic()
        after = await work.run(found, wanted.concurrency, scored)
        wall = clock.monotonic() - started
    rollouts = [Rescored(found[key], after[key]) for key in found]
    return ScoreReport(
        JobReport(out, summarise(after.values(), len(after), wall), list(after.values()), {}),
        summarise(found.values(), len(found)),
        rollouts,
        [result for key, result in sorted(reader.results.items()) if key not in found],
        sorted(work.unknown),
    )


@dataclass(frozen=True, slots=True)
class _Scoring:
    """What scoring one job needs."""

    job: Path
    reader: JobReader
    reward: Reward
    store: Store
    around: Surroundings
    taskset: Taskset | None
    redactor: Redactor
    unknown: set[str] = field(default_factory=set[str])

    async def run(
        self,
        found: Mapping[str, RolloutResult],
        concurrency: int,
        told: Callable[[int, int], None] | None,
    ) -> dict[str, RolloutResult]:
        """Score all of them, those that are compared at once; the new results by rollout id."""
        groups: dict[str, list[RolloutResult]] = defaultdict(list)
        compares = isinstance(self.reward, GroupReward) and self.reward.compares
        for key, result in found.items():
            groups[result.task_id if compares else key].append(result)
        after: dict[str, RolloutResult] = {}
        async with Executor(self._score, concurrency) as executor:
            async with aclosing(executor.generate(groups.values())) as scored:
                async for results in scored:
                    after.update({result.rollout_id: result for result in results})
                    if told is not None:
                        told(len(after), len(found))
        return dict(sorted(after.items()))

    async def _score(self, results: Sequence[RolloutResult]) -> list[RolloutResult]:
        rollouts = await asyncio.to_thread(self._read, results)
        revisions = self.redactor.clean(await score_together(rollouts, self.reward))
        return [await self._write(*pair) for pair in zip(rollouts, revisions, strict=True)]

    def _read(self, results: Sequence[RolloutResult]) -> list[RecordedRollout]:
        """The rollouts as they were recorded. Blocks."""
        ordered = sorted(results, key=lambda result: result.repeat)
        found: list[RecordedRollout] = []
        for result in ordered:
            task = self._task(result)
            found.append(read_rollout(self.reader, self.job, result, task, self.around))
        return found

    def _task(self, result: RolloutResult) -> Task | None:
        if self.taskset is not None:
            try:
                return self.taskset.get_task(result.task_id)
            except UsageError:
                pass  # it is not among them any more: what was recorded of it is left
        self.unknown.add(result.task_id)
        return None

    async def _write(self, rollout: RecordedRollout, revision: Revision) -> RolloutResult:
        """Keep a rollout with its new scores in the store."""
        result = msgspec.structs.replace(
            revision.result,
            job_id=self.store.job.job_id,
            config_hash=self.store.job.config_hash,
            attempt=1,
            fence=self.store.next_fence(),
        )
        now = self.around.clock.now()
        observer = self.around.observer
        observer.emit(LeaseEvent(result.rollout_id, now, 1, result.fence, result.seed))
        events = await asyncio.to_thread(self._events, rollout, revision)
        for event in events:
            observer.emit(event)
            await self.store.ready()
        observer.emit(OutcomeEvent(result.rollout_id, now, result.outcome, result.reward, 1))
        await self.store.record(result)
        return result

    def _events(self, rollout: RecordedRollout, revision: Revision) -> list[AnyEvent]:
        """Its trajectories, with the new signals in place of all old ones. Blocks."""
        scored = {leaf.node for leaf in revision.leaves}
        kept = Revision(revision.result, (*revision.leaves, *_as_they_were(rollout, scored)))
        events = self.reader.events(rollout.result.rollout_id)
        return list(Overlay(kept).apply(_trajectories(events)))


def _as_they_were(rollout: RecordedRollout, scored: set[int]) -> Iterator[LeafScore]:
    """Leaves that are not scored again; one that is invalid counts as the least reward."""
    for leaf in rollout.leaves:
        if leaf.node not in scored:
            yield LeafScore(leaf.node, leaf.status, rollout.least(leaf.status))


def _trajectories(events: Iterator[AnyEvent]) -> Iterator[AnyEvent]:
    for event in events:
        if not isinstance(event, (*_LEFT_BEHIND, RewardGiven, RewardParts)):
            yield event


def _taskset(tasks: str | Path | Taskset | None, record: JobRecord) -> Taskset | None:
    """The tasks, where they can be found. Raises UsageError where the caller said where."""
    if tasks is not None:
        return compose.taskset(str(tasks)) if isinstance(tasks, str | Path) else tasks
    if not record.plan.tasks:
        return None
    try:
        return compose.taskset(record.plan.tasks)
    except (UsageError, OSError):
        return None  # they were moved, or need options: what was recorded of them is left


def _record(
    record: JobRecord,
    config: dict[str, Any],
    clock: Clock,
    tasks: str | Path | Taskset | None,
) -> JobRecord:
    digest = hashlib.blake2b(msgspec.json.encode(config, order="deterministic"), digest_size=8)
    plan = record.plan
    if isinstance(tasks, str | Path):
        plan = msgspec.structs.replace(plan, tasks=str(tasks))
    return msgspec.structs.replace(
        record,
        job_id=f"{record.job_id}-scored-{digest.hexdigest()[:8]}",
        config_hash=digest.hexdigest(),
        created_at=clock.now(),
        plan=plan,
        config=config,
        versions=versions(),
    )
