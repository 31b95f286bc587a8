"""A job: plan → schedule → run → aggregate. Running the same job again finishes what is missing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
    Set,
)
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from ramify.contracts.context import CancelScope, Clock
from ramify.contracts.errors import LimitExceededError, UsageError
from ramify.contracts.events import LeaseEvent, LogEvent, MetricEvent, Observer
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.tree import Outcome
from ramify.engine.executor import Executor
from ramify.engine.limits import Budgets, SpendBudget
from ramify.engine.observe import Metrics
from ramify.engine.retry import RetryPolicy
from ramify.engine.store import Store
from ramify.engine.summary import JobSummary, Tally

Worker = Callable[[WorkItem], Awaitable[RolloutResult]]


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job consists of.

    Attributes:
        job_id: names it in every record.
        config_hash: identifies everything that may change a result.
        seed: the job's; each rollout's is derived from it.
        slots: (task id, repeat) of each rollout, in the order in which they start.
        concurrency: rollouts that run at once.
        retry: for outcomes that are never scored.
        weights: task id → what one rollout of it takes of each budget, besides one of `rollouts`.
        rescored: tasks whose rollouts, where nothing but their score is missing, are not run again:
            somebody else scores what was recorded of them.
    """

    job_id: str
    config_hash: str
    seed: int
    slots: Sequence[tuple[str, int]]
    concurrency: int
    retry: RetryPolicy
    weights: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    rescored: Set[str] = frozenset()

    def item(self, task_id: str, repeat: int) -> WorkItem:
        """The work item of one slot, before it is leased."""
        text = f"{self.seed}:{task_id}:{repeat}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
        return WorkItem(self.job_id, task_id, repeat, seed, self.config_hash)


Complete = Callable[[JobPlan, AsyncGenerator[RolloutResult]], AsyncGenerator[RolloutResult]]


class Job:
    """Runs a plan over a store.

    Guarantees: a rollout that has a final result is neither run nor counted again; a result is on
    disk before it is yielded; retries use up their own budget, never the agent's; when `cancel`
    is set, nothing new starts and what runs ends as `cancelled`.

    Args:
        plan: what to run.
        store: the job directory, held by this engine.
        worker: runs one attempt of one rollout. Must return a result, not raise.
        observer: sees leases, retries and everything that the worker emits.
        clock: time.
        cancel: ends the job.
        budgets: shared limits; must hold `rollouts`.
        metrics: what `observer` adds up, kept here for who reads the job.
        cost: what the whole job may cost; when it is spent, nothing new starts.
        complete: gets each result when its rollout has ended, and gives each once, with the score
            it has in the end.
    """

    def __init__(
        self,
        plan: JobPlan,
        store: Store,
        worker: Worker,
        observer: Observer,
        clock: Clock,
        cancel: CancelScope,
        budgets: Budgets,
        metrics: Metrics,
        cost: SpendBudget,
        complete: Complete | None = None,
    ) -> None:
        self.plan = plan
        self.budgets = budgets
        self.metrics = metrics
        self._cost = cost
        self._complete = complete
        self._store = store
        self._worker = worker
        self._observer = observer
        self._clock = clock
        self._cancel = cancel
        self._results: dict[str, RolloutResult] = {}
        self._tally = Tally()
        self._started = clock.monotonic()

    @property
    def summary(self) -> JobSummary:
        """Aggregate of what is finished by now; as cheap after many rollouts as after few."""
        wall = self._clock.monotonic() - self._started
        return self._tally.summary(len(self.plan.slots), wall)

    async def stream(self) -> AsyncGenerator[RolloutResult]:
        """Each rollout's result once: first those found in the store, then as they finish."""
        results = self._ended()
        if self._complete is not None:
            results = self._complete(self.plan, results)
        async with aclosing(results):
            async for result in results:
                self._keep(result)
                yield result

    async def _ended(self) -> AsyncGenerator[RolloutResult]:
        items = [self.plan.item(*slot) for slot in self.plan.slots]
        stored = self._store.results()
        finished = {
            rollout: result
            for rollout, result in stored.items()
            if result.outcome.final
            or (result.unscored_by_us and result.task_id in self.plan.rescored)
        }
        for item in items:
            if (before := stored.get(item.rollout_id)) is not None:
                self._charge(before)  # also what failed, and so is run again
            if (result := finished.get(item.rollout_id)) is not None:
                self._keep(result)
                yield result
        missing = (item for item in items if item.rollout_id not in finished)
        allowed = itertools.takewhile(lambda _: self._may_start(), missing)
        executor = Executor(self._attempts, self.plan.concurrency)
        async with executor, aclosing(executor.generate(allowed)) as stream:
            async for result in stream:
                if result is not None:
                    self._keep(result)
                    yield result

    def _charge(self, result: RolloutResult, before: float = 0.0) -> None:
        """Count what an attempt cost, whether it is the one that counts or not.

        `before`: what of it is counted already.
        """
        try:
            self._cost.charge(max(0.0, (result.cost_usd or 0.0) - before))
        except LimitExceededError as error:
            # Said once for each rollout that goes over; nothing more is started.
            now = self._clock.now()
            self._observer.emit(LogEvent(result.rollout_id, now, "warning", str(error)))

    def _keep(self, result: RolloutResult) -> None:
        kept = self._results.get(result.rollout_id)
        if kept is not None and kept.grading != result.grading:  # its score was completed since
            self._charge(result, kept.cost_usd or 0.0)
        if kept is not result:
            self._tally.add(result)
            if kept is not None:
                self._tally.remove(kept)
        self._results[result.rollout_id] = result
        for who, usage, flag in (("model", result.usage, "-M"), ("judge", result.grading, "-J")):
            if self._cost.limit is not None and usage.calls and usage.cost_usd is None:
                raise UsageError(
                    f"the job's cost is limited, but what the {who} costs is not known; give its "
                    f"prices ({flag} input_price=... {flag} output_price=..., dollars per million "
                    "tokens)"
                )

    def _may_start(self) -> bool:
        return not self._cancel.cancelled and self._cost.remaining != 0

    async def _attempts(self, item: WorkItem) -> RolloutResult | None:
        """Run one rollout until it is scored or its retries are used up; None if never started."""
        rng = random.Random(item.seed)
        needs = {"rollouts": 1, **self.plan.weights.get(item.task_id, {})}
        async with self.budgets.hold(needs):
            while not self._cancel.cancelled:
                result = await self._attempt(item)
                self._charge(result)
                if self._is_worth_retrying(result):
                    wait = self.plan.retry.delay(item.attempt, rng)
                    self._retrying(result, wait)
                    await self._pause(wait)
                    if self._may_start():
                        item = msgspec.structs.replace(item, attempt=item.attempt + 1)
                        continue
                await self._store.record(result)
                return result
        return None

    def _is_worth_retrying(self, result: RolloutResult) -> bool:
        return (
            result.error is not None
            and result.error.retryable
            and result.outcome in (Outcome.ENV_ERROR, Outcome.INFRA_ERROR)
            and self.plan.retry.allows(result.attempt)
            and self._may_start()
        )

    async def _pause(self, seconds: float) -> None:
        """Wait before a retry; the job's cancellation ends the wait at once."""
        async with asyncio.TaskGroup() as group:
            waits = [
                group.create_task(self._clock.sleep(seconds)),
                group.create_task(self._cancel.wait()),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _attempt(self, item: WorkItem) -> RolloutResult:
        leased = msgspec.structs.replace(item, fence=self._store.next_fence())
        self._observer.emit(
            LeaseEvent(
                leased.rollout_id, self._clock.now(), leased.attempt, leased.fence, leased.seed
            )
        )
        return await self._worker(leased)

    def _retrying(self, result: RolloutResult, wait: float) -> None:
        now, rollout = self._clock.now(), result.rollout_id
        fields = {"outcome": result.outcome.value, "attempt": result.attempt, "wait_sec": wait}
        if result.error is not None:
            fields |= {"code": result.error.code, "error": result.error.message}
        self._observer.emit(LogEvent(rollout, now, "warning", "trying again", fields))
        self._observer.emit(MetricEvent(rollout, now, "retries", 1, "count"))
