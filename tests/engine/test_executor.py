import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from ramify.contracts.errors import InfraError, UsageError
from ramify.engine.executor import Executor
from ramify.testing.sim import simulate


async def double(value: int) -> int:
    await asyncio.sleep(value % 3)
    return value * 2


def test_seed_snippet() -> None:
    async def stream(engine: Executor[int, int], inputs: list[int]) -> AsyncGenerator[int]:
        async for result in engine.generate(inputs):
            yield result  # Backpressure-aware

    async def main() -> list[int]:
        return [result async for result in stream(Executor(double, 4), list(range(10)))]

    assert sorted(simulate(main)) == [value * 2 for value in range(10)]


def test_results_come_as_they_finish_or_in_order() -> None:
    async def wait(seconds: int) -> int:
        await asyncio.sleep(seconds)
        return seconds

    async def main() -> None:
        engine = Executor(wait, 10)
        inputs = [5, 1, 4, 2, 3]
        assert [r async for r in engine.generate(inputs)] == [1, 2, 3, 4, 5]
        assert [r async for r in engine.generate(inputs, ordered=True)] == inputs
        assert [r async for r in engine.generate([])] == []

    simulate(main)


def test_async_and_endless_inputs_are_pulled_lazily() -> None:
    async def main() -> None:
        pulled = 0

        async def numbers() -> AsyncIterator[int]:
            nonlocal pulled
            for number in itertools.count():
                await asyncio.sleep(0.1)
                pulled += 1
                yield number

        async def work(value: int) -> int:
            await asyncio.sleep(1)
            return value

        async with aclosing(Executor(work, 3, buffer=2).generate(numbers())) as results:
            seen: list[int] = []
            async for result in results:
                seen.append(result)
                await asyncio.sleep(100)  # a slow consumer
                # Running or finished and waiting: concurrency + buffer. Nothing is pulled ahead.
                assert pulled <= len(seen) + 3 + 2
                if len(seen) == 5:
                    break
        at_break = pulled
        await asyncio.sleep(100)
        assert pulled == at_break
        assert seen == [0, 1, 2, 3, 4]

    simulate(main)


class _Storm:
    """Random work, buffers, consumers, failures and exits; the invariants of a stream."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.concurrency, self.buffer = rng.randint(1, 5), rng.randint(0, 4)
        self.total, self.at = rng.randint(0, 25), rng.randint(0, 20)
        self.ordered, self.asynchronous = rng.random() < 0.5, rng.random() < 0.5
        self.ending = rng.choice(("end", "end", "break", "cancel", "worker", "inputs", "drain"))
        self.cancelled = self.cleaned = 0
        self.running: set[int] = set()
        self.pulled: list[int] = []
        self.done: list[int] = []
        self.taken: list[int] = []
        self.engine = Executor(self.work, self.concurrency, self.buffer)

    async def work(self, value: int) -> int:
        self.running.add(value)
        assert len(self.running) <= self.concurrency
        try:
            await asyncio.sleep(self.rng.choice((0, 0, 1, 2)))
            if self.ending == "worker" and value == self.at:
                raise ValueError("worker")
            self.done.append(value)
            return value
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(self.rng.choice((0, 1)))  # clean-up
            self.cleaned += 1
            raise
        finally:
            self.running.discard(value)

    def inputs(self) -> Iterator[int]:
        for value in range(self.total):
            if self.ending == "inputs" and value == self.at:
                raise KeyError("inputs")
            self.pulled.append(value)
            assert len(self.pulled) - len(self.taken) <= self.concurrency + self.buffer
            yield value

    async def slow_inputs(self) -> AsyncIterator[int]:
        for value in self.inputs():
            await asyncio.sleep(self.rng.choice((0, 1)))
            yield value

    async def consume(self) -> None:
        async with self.engine as engine:
            source = self.slow_inputs() if self.asynchronous else self.inputs()
            async for value in engine.generate(source, self.ordered):
                self.taken.append(value)
                if self.ending == "break" and len(self.taken) > self.at:
                    break
                if self.ending == "drain" and len(self.taken) == self.at:
                    engine.drain()
                await asyncio.sleep(self.rng.choice((0, 0, 1)))

    async def run(self) -> None:
        task = asyncio.create_task(self.consume())
        if self.ending == "cancel":
            await asyncio.sleep(self.at / 4)
            task.cancel()
        await asyncio.wait([task])
        assert not self.running, "everything was waited for"
        assert self.engine.running == 0
        assert self.cleaned == self.cancelled, "no clean-up was cut short"
        assert len(set(self.taken)) == len(self.taken)
        assert self.taken == sorted(self.taken) or not self.ordered
        self.check(None if task.cancelled() else task.exception())

    def check(self, error: BaseException | None) -> None:
        if self.ending in ("worker", "inputs") and self.at < self.total:
            assert isinstance(error, ValueError if self.ending == "worker" else KeyError)
        elif self.ending == "drain":
            assert error is None
            assert sorted(self.taken) == sorted(self.done), "what ran came out"
        elif self.ending != "cancel":
            assert error is None
            if self.ending == "end" or self.at >= self.total:
                assert sorted(self.taken) == list(range(self.total))


def test_no_schedule_breaks_a_stream() -> None:
    for seed in range(2000):
        simulate(_Storm(seed).run, seed)


@pytest.mark.proof
def test_no_schedule_breaks_a_stream_in_full() -> None:
    for seed in range(20_000):
        simulate(_Storm(seed).run, seed)


def test_a_plain_break_stops_the_workers() -> None:
    async def main() -> None:
        ended: list[int] = []

        async def work(value: int) -> int:
            try:
                await asyncio.sleep(value)
            finally:
                ended.append(value)
            return value

        engine = Executor(work, 4)
        async for result in engine.generate(itertools.count(1)):
            assert result == 1
            break
        await asyncio.sleep(0.5)  # Python closes a dropped generator in the background
        assert engine.running == 0
        assert sorted(ended) == [1, 2, 3, 4, 5] or sorted(ended) == [1, 2, 3, 4]

    simulate(main)


def test_an_error_ends_the_stream_after_what_finished_before_it() -> None:
    async def main() -> None:
        cancelled: list[int] = []

        async def work(value: int) -> int:
            try:
                await asyncio.sleep(value)
            except asyncio.CancelledError:
                cancelled.append(value)
                raise
            if value == 3:
                raise ValueError("three")
            return value

        seen: list[int] = []

        async def consume() -> None:
            results = Executor(work, 10).generate([1, 2, 3, 4, 5])
            seen.extend([await anext(results), await anext(results)])
            await anext(results)

        with pytest.raises(ValueError, match="three"):
            await consume()
        assert seen == [1, 2]
        assert sorted(cancelled) == [4, 5]

    simulate(main)


def test_a_worker_cancelled_from_outside_is_not_a_cancelled_consumer() -> None:
    async def main() -> None:
        async def work(value: int) -> int:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)
            return value

        with pytest.raises(InfraError, match="cancelled by somebody else"):
            _ = [r async for r in Executor(work, 1).generate([1])]

    simulate(main)


def test_groups_come_whole_and_in_member_order() -> None:
    async def main() -> None:
        running = most = 0

        async def work(value: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(value)
            running -= 1
            return value

        engine = Executor(work, 3)
        groups = [[9, 1, 2], [], [3], [1, 1, 1, 1, 1]]
        seen = [group async for group in engine.generate_groups(groups)]
        assert sorted(seen) == sorted(groups)
        assert seen[-1] == [1, 1, 1, 1, 1] or seen[-1] == [9, 1, 2]
        assert most == 3  # members of one group run in parallel, and never more than allowed
        assert [g async for g in engine.generate_groups(groups, ordered=True)] == groups

    for seed in range(50):
        simulate(main, seed)


def test_draining_finishes_the_group_that_was_begun() -> None:
    async def main() -> None:
        engine = Executor(double, 2, buffer=0)

        async def groups() -> AsyncIterator[list[int]]:
            for first in itertools.count():
                yield [first, first + 1, first + 2, first + 3]

        async def drain() -> None:
            await asyncio.sleep(0.5)
            engine.drain()

        draining = asyncio.create_task(drain())
        seen = [group async for group in engine.generate_groups(groups())]
        await draining
        assert seen == [[0, 2, 4, 6]]
        assert [r async for r in engine.generate([1, 2])] == []  # nothing is pulled any more

    simulate(main)


def test_draining_interrupts_a_waiting_input() -> None:
    async def main() -> None:
        engine = Executor(double, 2)

        async def inputs() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()  # no second one will ever come

        asyncio.get_running_loop().call_later(10, engine.drain)
        assert [r async for r in engine.generate(inputs())] == [2]

    simulate(main)


def test_leaving_the_executor_ends_open_streams() -> None:
    async def main() -> None:
        async with Executor(double, 2) as engine:
            results = engine.generate(itertools.count())
            assert await anext(results) == 0
        assert engine.running == 0
        with pytest.raises(UsageError, match="executor was closed"):
            _ = [r async for r in results]

    simulate(main)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="concurrency"):
        Executor(double, 0)
    with pytest.raises(UsageError, match="buffer"):
        Executor(double, 1, buffer=-1)


async def test_ten_thousand_in_flight_and_little_overhead() -> None:
    async def noop(value: int) -> int:
        return value

    inside, release = asyncio.Event(), asyncio.Event()

    async def hold(value: int) -> int:
        if engine.running == 10_000:
            inside.set()
        await release.wait()
        return value

    engine = Executor(hold, 10_000)
    results = engine.generate(range(10_000))
    first = asyncio.ensure_future(anext(results))
    await asyncio.wait_for(inside.wait(), 60)
    assert engine.running == 10_000
    release.set()
    assert await first is not None
    assert len([r async for r in results]) == 9_999

    begun = time.process_time()
    count = 0
    async for _ in Executor(noop, 64).generate(range(20_000)):
        count += 1
    assert count == 20_000
    # About 6 µs on the development machine; the bound leaves room for slow and busy ones.
    assert (time.process_time() - begun) / count < 100e-6
