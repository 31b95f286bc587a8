"""A job over a real store: each rollout once, only our failures retried, exact numbers."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from operator import add
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError, UsageError
from ramify.contracts.events import LeaseEvent, LogEvent, MetricEvent
from ramify.contracts.messages import Usage
from ramify.contracts.result import ErrorInfo, RolloutResult, WorkItem
from ramify.contracts.tree import Outcome
from ramify.engine.cancel import Cancellation
from ramify.engine.job import Complete, Job, JobPlan
from ramify.engine.limits import Budgets, SpendBudget
from ramify.engine.observe import FanOut, Metrics
from ramify.engine.reading import JobRecord, Plan, read_results
from ramify.engine.retry import RetryPolicy
from ramify.engine.store import Store
from ramify.engine.summary import JobSummary, Tally, summarise
from ramify.testing.fakecontext import FakeClock, FakeObserver

RECORD = JobRecord("job", "hash", 1.0, Plan(("s:a",), 1, "nop", None, "fake", 0), {}, {})
SLOTS = [(f"s:{name}", repeat) for name in "abc" for repeat in range(3)]
Work = Callable[[WorkItem], Awaitable[RolloutResult]]


def ended(
    item: WorkItem,
    outcome: Outcome = Outcome.SCORED,
    reward: float | None = 1.0,
    retry: bool = True,
) -> RolloutResult:
    failed = not outcome.counts
    return RolloutResult(
        item.rollout_id, item.job_id, item.task_id, item.repeat, item.attempt, item.fence,
        outcome, item.config_hash, item.seed,
        reward=None if failed else reward,
        error=ErrorInfo("x", "it broke", retry, "start") if failed else None,
    )  # fmt: skip


class Bench:
    """A job directory, and the worker's calls."""

    def __init__(self, path: Path, slots: list[tuple[str, int]] = SLOTS, retries: int = 2) -> None:
        retry = RetryPolicy(max_retries=retries)
        self.path = path
        self.plan = JobPlan("job", "hash", 5, slots, concurrency=3, retry=retry)
        self.calls: list[WorkItem] = []
        self.observer = FakeObserver()
        self.clock = FakeClock()
        self.cancel = Cancellation()
        self.summary = summarise([], 0)
        self.cost: float | None = None
        self.complete: Complete | None = None

    async def run(self, work: Work) -> list[RolloutResult]:
        """Open the directory, run the job to its end, close; the results in order."""

        async def worker(item: WorkItem) -> RolloutResult:
            self.calls.append(item)
            await asyncio.sleep(0)
            return await work(item)

        store = await Store.create_or_open(self.path, RECORD)
        try:
            observer = FanOut([store.observer, self.observer])
            budgets = Budgets({"rollouts": 3})
            job = Job(
                self.plan, store, worker, observer, self.clock, self.cancel, budgets,
                Metrics(), SpendBudget("cost", self.cost), self.complete,
            )  # fmt: skip
            async with aclosing(job.stream()) as stream:
                results = [result async for result in stream]
            self.summary = job.summary
            return results
        finally:
            await store.aclose()


class SlowClock(FakeClock):
    """Sleeps for ever, and has the job cancelled meanwhile."""

    def __init__(self, cancel: Cancellation) -> None:
        super().__init__()
        self.cancel = cancel

    async def sleep(self, seconds: float) -> None:
        self.cancel.cancel("stop")
        await asyncio.Event().wait()


async def scored(item: WorkItem) -> RolloutResult:
    return ended(item, reward=item.repeat / 2)


async def test_each_rollout_once_and_again_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "job")
    results = await bench.run(scored)
    assert Counter((r.task_id, r.repeat) for r in results) == Counter(SLOTS)
    assert len(bench.calls) == len(SLOTS)
    again = Bench(tmp_path / "job")
    assert sorted(await again.run(scored), key=repr) == sorted(results, key=repr)
    assert again.calls == [], "what is final is not run again"
    assert again.summary.mean == bench.summary.mean == 0.5
    assert len((tmp_path / "job" / "results.jsonl").read_text().splitlines()) == len(SLOTS)


async def test_seeds_belong_to_the_slot_not_to_the_schedule(tmp_path: Path) -> None:
    first, second = Bench(tmp_path / "a"), Bench(tmp_path / "b", SLOTS[::-1])
    await first.run(scored)
    await second.run(scored)
    seeds = [{i.rollout_id: i.seed for i in bench.calls} for bench in (first, second)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == len(SLOTS)


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_only_our_failures_are_tried_again(tmp_path: Path, outcome: Outcome) -> None:
    async def work(item: WorkItem) -> RolloutResult:
        return ended(item, outcome, 0.25)

    bench = Bench(tmp_path / "job", SLOTS[:1], retries=2)
    (result,) = await bench.run(work)
    tries = 3 if outcome in (Outcome.ENV_ERROR, Outcome.INFRA_ERROR) else 1
    assert [call.attempt for call in bench.calls] == list(range(1, tries + 1))
    assert result.attempt == tries
    assert result.reward == (0.25 if outcome.counts else None)
    assert bench.summary.mean == (0.25 if outcome.counts else None), "None is not 0"
    again = Bench(tmp_path / "job", SLOTS[:1], retries=0)
    await again.run(scored)
    assert len(again.calls) == (0 if outcome.counts else 1), "never scored: the next run tries"


async def test_what_cannot_be_mended_is_not_tried_again(tmp_path: Path) -> None:
    async def work(item: WorkItem) -> RolloutResult:
        return ended(item, Outcome.INFRA_ERROR, retry=False)

    bench = Bench(tmp_path / "job", SLOTS[:1])
    await bench.run(work)
    assert len(bench.calls) == 1


async def test_a_retry_that_succeeds_replaces_nothing_and_is_reported(tmp_path: Path) -> None:
    async def work(item: WorkItem) -> RolloutResult:
        return ended(item) if item.attempt == 2 else ended(item, Outcome.ENV_ERROR)

    bench = Bench(tmp_path / "job", SLOTS[:4])
    results = await bench.run(work)
    assert all(r.outcome is Outcome.SCORED and r.attempt == 2 for r in results)
    assert len((tmp_path / "job" / "results.jsonl").read_text().splitlines()) == 4
    logs = [e for e in bench.observer.events if isinstance(e, LogEvent)]
    assert Counter(e.message for e in logs) == {"trying again": 4}
    assert sum(e.value for e in bench.observer.events if isinstance(e, MetricEvent)) == 4
    assert bench.clock.time > 1_000_000.0, "it waited in between"


async def test_every_attempt_has_a_higher_fence(tmp_path: Path) -> None:
    async def work(item: WorkItem) -> RolloutResult:
        return ended(item, Outcome.INFRA_ERROR)

    first, second = Bench(tmp_path / "job"), Bench(tmp_path / "job")
    await first.run(work)
    await second.run(work)
    for bench in (first, second):
        leased = [e.fence for e in bench.observer.events if isinstance(e, LeaseEvent)]
        assert leased == sorted(set(leased))
        assert sorted(leased) == sorted(call.fence for call in bench.calls)
    assert min(c.fence for c in second.calls) > max(c.fence for c in first.calls)


async def test_a_result_of_an_older_lease_is_not_recorded(tmp_path: Path) -> None:
    """A worker that answers for a lease that is not its own changes nothing on disk."""
    stolen: list[WorkItem] = []

    async def work(item: WorkItem) -> RolloutResult:
        if not stolen:
            stolen.append(item)
            return ended(item, Outcome.INFRA_ERROR)
        return ended(stolen[0], reward=0.125)

    bench = Bench(tmp_path / "job", SLOTS[:1])
    await bench.run(work)
    assert read_results(tmp_path / "job") == {}
    ignored = [e for e in bench.observer.events if isinstance(e, LogEvent)]
    assert "trying again" in {e.message for e in ignored}


async def test_when_cancelled_nothing_starts_and_what_ran_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "job")

    async def work(item: WorkItem) -> RolloutResult:
        if len(bench.calls) < 4:
            return ended(item)
        bench.cancel.cancel("stop")
        return ended(item, Outcome.CANCELLED)

    results = await bench.run(work)
    outcomes = Counter(r.outcome for r in results)
    assert outcomes[Outcome.SCORED] == 3
    assert outcomes[Outcome.CANCELLED] == len(bench.calls) - 3
    assert len(bench.calls) <= 6, "at most what was in flight"
    again = Bench(tmp_path / "job")
    assert len(await again.run(scored)) == len(SLOTS)
    assert len(again.calls) == len(SLOTS) - 3


async def test_cancelled_while_waiting_for_a_retry(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "job", SLOTS[:1], retries=9)

    async def work(item: WorkItem) -> RolloutResult:
        return ended(item, Outcome.INFRA_ERROR)

    bench.clock = SlowClock(bench.cancel)
    (result,) = await bench.run(work)
    assert len(bench.calls) == 1
    assert result.outcome is Outcome.INFRA_ERROR, "what is known is recorded"
    assert read_results(tmp_path / "job") == {result.rollout_id: result}


async def test_when_the_money_is_spent_nothing_more_starts(tmp_path: Path) -> None:
    async def dear(item: WorkItem) -> RolloutResult:
        return msgspec.structs.replace(ended(item, reward=1.0), usage=Usage(calls=1, cost_usd=0.6))

    bench = Bench(tmp_path / "job")
    bench.cost = 1.0
    results = await bench.run(dear)
    assert 2 <= len(results) < len(SLOTS), "what had started is finished, nothing else"
    richer = Bench(tmp_path / "job")
    assert len(await richer.run(dear)) == len(SLOTS)
    assert len(richer.calls) == len(SLOTS) - len(results)


async def test_what_failed_has_been_paid_for_too(tmp_path: Path) -> None:
    """A retry costs what it costs, in this run and in the one that goes on with the job."""

    async def work(item: WorkItem) -> RolloutResult:
        failed = ended(item, Outcome.INFRA_ERROR)
        return msgspec.structs.replace(failed, usage=Usage(calls=1, cost_usd=0.6))

    bench = Bench(tmp_path / "job", retries=5)
    bench.plan = replace(bench.plan, concurrency=1)
    bench.cost = 1.0
    await bench.run(work)
    assert len(bench.calls) == 2, "two attempts at the first rollout spent it all"
    again = Bench(tmp_path / "job", retries=5)
    again.plan, again.cost = replace(again.plan, concurrency=1), 1.0
    await again.run(work)
    assert len(again.calls) == 1, "of the last attempt it is known that it cost 0.6"


async def test_a_cost_limit_needs_a_known_cost(tmp_path: Path) -> None:
    async def free_of_prices(item: WorkItem) -> RolloutResult:
        return msgspec.structs.replace(ended(item, reward=1.0), usage=Usage(calls=1))

    bench = Bench(tmp_path / "job")
    bench.cost = 1.0
    with pytest.raises(UsageError, match="prices"):
        await bench.run(free_of_prices)


async def test_a_consumer_that_leaves_early_loses_nothing(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", RECORD)
    plan = Bench(tmp_path).plan
    calls: list[WorkItem] = []

    async def worker(item: WorkItem) -> RolloutResult:
        calls.append(item)
        await asyncio.sleep(0)
        return ended(item)

    budgets = Budgets({"rollouts": 3})
    job = Job(
        plan, store, worker, store.observer, FakeClock(), Cancellation(), budgets,
        Metrics(), SpendBudget("cost", None),
    )  # fmt: skip
    seen: list[RolloutResult] = []
    async with aclosing(job.stream()) as stream:
        async for result in stream:
            seen.append(result)
            break
    await store.aclose()
    assert seen[0].rollout_id in read_results(tmp_path / "job"), "durable before it is yielded"
    again = Bench(tmp_path / "job")
    assert len(await again.run(scored)) == len(SLOTS)


async def test_weights_hold_back_what_is_heavy(tmp_path: Path) -> None:
    """Two rollouts that each take two of three places never run together."""
    running, most = 0, 0

    async def work(item: WorkItem) -> RolloutResult:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return ended(item)

    bench = Bench(tmp_path / "job", SLOTS[:4])
    weights = {task_id: {"rollouts": 2} for task_id, _ in SLOTS}
    bench.plan = JobPlan("job", "hash", 5, SLOTS[:4], 3, RetryPolicy(), weights)
    await bench.run(work)
    assert most == 1


outcomes = st.sampled_from(list(Outcome))
quarters = st.integers(-8, 8).map(lambda n: n / 4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcd"), outcomes, quarters), max_size=20))
def test_the_summary_against_fractions(rows: list[tuple[str, Outcome, float]]) -> None:
    results = [
        ended(WorkItem("job", f"s:{task}", number, 0, "hash"), outcome, reward)
        for number, (task, outcome, reward) in enumerate(rows)
    ]
    random.Random(0).shuffle(results)
    summary = summarise(results, planned=30)
    counted = [(task, Fraction(reward)) for task, outcome, reward in rows if outcome.counts]
    assert summary.counted == len(counted)
    assert summary.finished == len(rows)
    assert summary.unscored == len(rows) - len(counted)
    assert summary.outcomes == Counter(outcome.value for _, outcome, _ in rows)
    assert not summary.complete
    if not counted:
        assert summary.mean is None
        assert summary.stderr is None
        return
    mean = sum(value for _, value in counted) / len(counted)
    assert summary.mean == pytest.approx(float(mean), abs=1e-12)
    tasks = {task for task, _ in counted}
    if len(tasks) == 1:  # its rollouts are the clusters
        sums = [value - mean for _, value in counted]
    else:
        sums = [sum((v - mean for t, v in counted if t == task), Fraction(0)) for task in tasks]
    if len(sums) < 2:
        assert summary.stderr is None, "unknown is not zero"
        return
    groups = len(sums)
    variance = Fraction(groups, groups - 1) * sum(s * s for s in sums) / len(counted) ** 2
    assert summary.stderr is not None
    assert summary.stderr**2 == pytest.approx(float(variance), abs=1e-12)


amounts = st.floats(0, 1e6)
usages = st.builds(
    Usage, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 9),
    st.none() | amounts,
)  # fmt: skip


@st.composite
def whole_results(draw: st.DrawFn) -> RolloutResult:
    item = WorkItem("job", f"s:{draw(st.sampled_from('ab'))}", draw(st.integers(0, 2)), 0, "hash")
    return msgspec.structs.replace(
        ended(item, draw(outcomes), draw(st.none() | st.floats(-1e9, 1e9))),
        timings=draw(st.dictionaries(st.sampled_from(["start", "verify"]), amounts)),
        usage=draw(usages),
        grading=draw(usages),
        reward_errors=draw(st.dictionaries(st.sampled_from(["x", "y"]), st.just("why"))),
        pending=draw(st.sampled_from([(), ("rank",)])),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(whole_results(), max_size=12))
def test_the_running_summary_is_the_one_of_what_counts(arriving: list[RolloutResult]) -> None:
    """Later results of a rollout (an attempt more, a reward revised) take the place of earlier."""
    tally, counting = Tally(), dict[str, RolloutResult]()
    for result in arriving:
        tally.add(result)
        if (before := counting.get(result.rollout_id)) is not None:
            tally.remove(before)
        counting[result.rollout_id] = result
        assert tally.summary(6, 1.5) == summarise(counting.values(), 6, 1.5)
        added_up(tally.summary(6), list(counting.values()))
        nan = msgspec.structs.replace(result, outcome=Outcome.SCORED, reward=math.nan)
        with pytest.raises(InvalidRewardError, match="nan"):
            tally.add(nan)


def added_up(summary: JobSummary, results: list[RolloutResult]) -> None:
    """The summary against plain sums over all results."""
    assert summary.finished == len(results)
    assert summary.outcomes == Counter(result.outcome.value for result in results)
    assert summary.pending == sum(bool(result.pending) for result in results)
    assert summary.reward_errors == Counter(n for r in results for n in r.reward_errors)
    rewards = [r.reward for r in results if r.outcome.counts and r.reward is not None]
    assert summary.counted == len(rewards)
    exact = sum(map(Fraction, rewards), Fraction(0))
    assert summary.mean == (float(exact / len(rewards)) if rewards else None)
    for phase in {phase for result in results for phase in result.timings} | set(summary.seconds):
        took = [result.timings[phase] for result in results if phase in result.timings]
        assert summary.seconds[phase] == math.fsum(took)
    for found, spent in (
        (summary.usage, [result.usage for result in results]),
        (summary.grading, [result.grading for result in results]),
    ):
        whole = reduce(add, spent, Usage())
        assert found.cost_usd == pytest.approx(whole.cost_usd)
        assert found == msgspec.structs.replace(whole, cost_usd=found.cost_usd)


async def test_a_job_counts_what_was_revised_once(tmp_path: Path) -> None:
    async def revised(
        plan: JobPlan, results: AsyncGenerator[RolloutResult]
    ) -> AsyncGenerator[RolloutResult]:
        async with aclosing(results):
            async for result in results:
                yield msgspec.structs.replace(result, reward=plan.seed, pending=())

    async def provisional(item: WorkItem) -> RolloutResult:
        return msgspec.structs.replace(await scored(item), pending=("rank",))

    bench = Bench(tmp_path / "job")
    bench.complete = revised
    results = await bench.run(provisional)
    assert bench.summary == summarise(results, len(SLOTS), bench.summary.wall_sec)
    assert (bench.summary.finished, bench.summary.mean, bench.summary.pending) == (9, 5.0, 0)


def test_by_hand() -> None:
    """Two tasks, two rollouts each: 1, 0 and 1, 1. Mean 3/4; SE² = 2 · (1/4 + 1/4) / 16."""
    rewards = [("a", 0, 1.0), ("a", 1, 0.0), ("b", 0, 1.0), ("b", 1, 1.0)]
    results = [ended(WorkItem("job", f"s:{t}", n, 0, "h"), reward=r) for t, n, r in rewards]
    results[0] = RolloutResult(
        *[getattr(results[0], name) for name in RolloutResult.__struct_fields__[:9]],
        reward=1.0, usage=Usage(input_tokens=3), timings={"start": 0.5, "verify": 0.25},
    )  # fmt: skip
    summary = summarise(results, planned=4, wall_sec=2.0)
    assert summary.mean == 0.75
    assert summary.stderr == 0.25
    assert summary.complete
    assert summary.seconds == {"start": 0.5, "verify": 0.25}
    assert summary.usage.input_tokens == 3


def test_invalid_counts_as_its_minimum_and_is_not_left_out() -> None:
    items = [WorkItem("job", "s:a", number, 0, "h") for number in range(3)]
    results = [
        ended(items[0], Outcome.SCORED, 1.0),
        ended(items[1], Outcome.INVALID, -1.0),
        ended(items[2], Outcome.INFRA_ERROR),
    ]
    summary = summarise(results, planned=3)
    assert (summary.mean, summary.counted, summary.unscored) == (0.0, 2, 1)
