"""Completes rewards that compare siblings, once all rollouts of their task have ended."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field

from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import GroupReward, Reward
from ramify.engine.executor import Executor
from ramify.engine.job import JobPlan
from ramify.engine.reading import JobReader
from ramify.engine.revisions import Revised, Revisions, comparable
from ramify.engine.store import Store
from ramify.envs.plan import PlannedTask
from ramify.envs.recorded import RecordedRollout, Surroundings, read_rollout, score_together
from ramify.envs.rubrics import compares_siblings


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is handed on together. Where it has a reward, that completes the scores first."""

    results: Sequence[RolloutResult]
    reward: Reward | None = None


@dataclass(slots=True)
class Siblings:
    """Holds results back until the score of each is final.

    Attributes:
        tasks: those of the job.
        store: the job's, whose results are read and which stays as it is.
        revisions: where completed scores are written.
        around: what the contexts of rewards have in common.
        concurrency: tasks that are completed at once.
        clean: keeps secrets out of what is written.
    """

    tasks: Mapping[str, PlannedTask]
    store: Store
    revisions: Revisions
    around: Surroundings
    concurrency: int
    clean: Callable[[Revised], Revised]
    _before: Set[str] = field(default_factory=set[str])
    _reader: JobReader | None = None
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def completed(
        self, plan: JobPlan, ended: AsyncGenerator[RolloutResult]
    ) -> AsyncGenerator[RolloutResult]:
        """Each result of a job once, as it is final: those of compared siblings come together.

        Where not all of a task's rollouts end (the job is cancelled), their results come last, as
        they are: provisional, `pending` names what is missing. Running the job again completes
        them, as it does where it was killed in between.
        """
        self._before = set(self.store.results())
        executor = Executor(self._finish, self.concurrency)
        async with executor, aclosing(ended):
            async with aclosing(executor.generate(self._batches(plan, ended))) as finished:
                async for batch in finished:
                    for result in batch:
                        yield result

    async def _batches(
        self, plan: JobPlan, results: AsyncIterator[RolloutResult]
    ) -> AsyncGenerator[_Batch]:
        planned = Counter(task_id for task_id, _ in plan.slots)
        waiting: dict[str, list[RolloutResult]] = defaultdict(list)
        async for result in results:
            task_id = result.task_id
            reward = self.tasks[task_id].final
            if compares_siblings(self.tasks[task_id].task, reward):
                waiting[task_id].append(result)
                if len(waiting[task_id]) == planned[task_id]:  # each comes once
                    yield self._batch(waiting.pop(task_id), reward)
            else:
                # One that has just failed is not tried again at once, but by the next run.
                again = result.unscored_by_us and result.rollout_id in self._before
                again = again and task_id in plan.rescored
                yield _Batch([result], reward if again else None)
        for left in waiting.values():
            yield _Batch(left)

    def _batch(self, results: Sequence[RolloutResult], reward: Reward) -> _Batch:
        ours = [result for result in results if comparable(result)]
        done = all(not result.pending and result.outcome.counts for result in ours)
        return _Batch(results, None if done else reward)

    async def _finish(self, batch: _Batch) -> Sequence[RolloutResult]:
        if batch.reward is None or self.around.cancel.cancelled:
            return batch.results
        compares = isinstance(batch.reward, GroupReward) and batch.reward.compares
        async with self._reading:
            rollouts = await asyncio.to_thread(self._read, batch.results)
        scored = await score_together(rollouts, batch.reward, once=True)
        siblings = sorted((one.result.rollout_id, one.result.fence) for one in rollouts)
        revised = self.clean(
            Revised(
                task_id=batch.results[0].task_id,
                at=self.around.clock.now(),
                rollouts=tuple(scored),
                siblings=tuple(siblings) if compares else (),
            )
        )
        await self.revisions.record(revised)
        final = {one.result.rollout_id: one.result for one in revised.rollouts}
        return [final.get(result.rollout_id, result) for result in batch.results]

    def _read(self, results: Sequence[RolloutResult]) -> list[RecordedRollout]:
        """The rollouts as they were when they ended. Blocks."""
        if self._reader is None:
            self._reader = JobReader(self.store.path, revised=False)
        else:
            self._reader.update()
        reader = self._reader
        return [
            read_rollout(
                reader,
                self.store.path,
                reader.results[result.rollout_id],
                self.tasks[result.task_id].task,
                self.around,
            )
            for result in sorted(results, key=lambda one: one.repeat)
            if comparable(result)
        ]
