import asyncio
import itertools
import time
from collections.abc import AsyncGenerator

import pytest

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import AgentTimeoutError, LimitExceededError
from ramify.engine.cancel import Cancellation, deadline, stop
from ramify.engine.clock import SystemClock
from ramify.testing.sim import DeadlockError, LeakError, LivelockError, SimClock, SimLoop, simulate


def test_a_day_of_sleep_takes_no_time() -> None:
    async def main() -> float:
        clock = SystemClock()
        begun = clock.monotonic()
        await clock.sleep(24 * 3600)
        return clock.monotonic() - begun

    begun = time.monotonic()
    assert simulate(main) == 24 * 3600
    assert time.monotonic() - begun < 1


def _order(seed: int) -> str:
    async def main() -> str:
        said: list[str] = []

        async def say(name: str) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                said.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(say(name))
        return "".join(said)

    return simulate(main, seed)


def test_a_seed_is_one_schedule_and_seeds_differ() -> None:
    orders = [_order(seed) for seed in range(50)]
    assert orders == [_order(seed) for seed in range(50)]
    assert len(set(orders)) > 20


def test_a_lost_update_is_found_by_some_seed() -> None:
    async def main() -> int:
        total = 0

        async def add() -> None:
            nonlocal total
            seen = total
            await asyncio.sleep(0)
            total = seen + 1

        first = asyncio.create_task(add())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await add()
        await first
        return total

    assert {simulate(main, seed) for seed in range(50)} == {1, 2}


def test_a_deadlock_is_named() -> None:
    async def stuck_here() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"seed 7: nothing can happen.*stuck_here"):
        simulate(stuck_here, seed=7)


def test_a_livelock_is_named() -> None:
    async def main() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(LivelockError, match="1000 steps"):
        simulate(main, max_steps=1000)


def test_what_is_left_running_is_a_leak() -> None:
    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(1)))

    with pytest.raises(LeakError):
        simulate(main)
    assert kept[0].cancelled()


def test_an_error_nobody_awaited_is_raised() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup) as caught:
        simulate(main)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_threads_run_inline_and_generators_are_closed() -> None:
    closed: list[str] = []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            closed.append("closed")

    async def main() -> int:
        async for number in numbers():
            return await asyncio.to_thread(int.__add__, number, 41)
        return 0

    assert simulate(main) == 42
    assert closed == ["closed"]


def test_timeouts_are_virtual_and_cancelled_timers_do_not_move_time() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1000, print).cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        return loop.time()

    assert simulate(main) == 5


def test_what_a_simulation_cannot_do_is_refused() -> None:
    async def main() -> None:
        await asyncio.open_connection("localhost", 80)

    with pytest.raises(NotImplementedError):
        simulate(main)


def test_a_closed_loop_refuses_work() -> None:
    loop = SimLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)


def test_the_simulations_clock_follows_the_loop() -> None:
    async def main() -> tuple[float, float]:
        clock = SimClock(epoch=100.0)
        await clock.sleep(2.5)
        return clock.now(), clock.monotonic()

    assert simulate(main) == (102.5, 2.5)


def test_a_deadline_says_what_was_late() -> None:
    async def main() -> None:
        with pytest.raises(
            LimitExceededError, match="the work did not finish within 2 s"
        ) as caught:
            async with deadline(2, "the work"):
                await asyncio.sleep(3)
        assert caught.value.limit == "time"
        with pytest.raises(AgentTimeoutError):
            async with deadline(2, "the agent", AgentTimeoutError):
                await asyncio.sleep(3)
        async with deadline(None, "unlimited"):
            await asyncio.sleep(10_000)

    simulate(main)


def test_a_timeout_of_the_body_is_not_the_deadlines() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="my own"):
            async with deadline(2, "outer"):
                raise TimeoutError("my own")

        async def nested() -> None:
            async with deadline(5, "outer"):
                async with deadline(1, "inner", AgentTimeoutError):
                    await asyncio.sleep(3)

        with pytest.raises(AgentTimeoutError, match="inner"):
            await nested()

    simulate(main)


@pytest.mark.parametrize("seed", range(40))
def test_a_cancellation_is_never_taken_for_a_timeout(seed: int) -> None:
    async def late() -> None:
        async with deadline(2, "work"):
            await asyncio.sleep(100)

    async def main() -> None:
        task = asyncio.create_task(late())
        await asyncio.sleep(2)  # the same moment in which the time is up
        told = task.cancel()
        await asyncio.wait([task])
        # Either the deadline had passed before, or it is a cancellation; never anything else.
        if task.cancelled():
            assert told
        else:
            assert isinstance(task.exception(), LimitExceededError)

    simulate(main, seed)


def test_children_are_cancelled_with_their_parent_in_order() -> None:
    async def main() -> None:
        root = Cancellation()
        children = [root.child() for _ in range(3)]
        grandchild = children[0].child()
        woken: list[int] = []

        async def watch(index: int, scope: Cancellation) -> None:
            await scope.wait()
            woken.append(index)

        async with asyncio.TaskGroup() as group:
            for index, scope in enumerate((*children, grandchild)):
                group.create_task(watch(index, scope))
            await asyncio.sleep(1)
            children[1].cancel("alone")
            assert not root.cancelled
            assert not grandchild.cancelled
            root.cancel("stop")
            root.cancel("again")
        assert sorted(woken) == [0, 1, 2, 3]
        assert [scope.reason for scope in (*children, grandchild)] == [
            "stop",
            "alone",
            "stop",
            "stop",
        ]
        assert root.child().reason == "stop"

    simulate(main)


def test_a_grandchild_is_reached_though_nobody_holds_its_parent() -> None:
    async def main() -> None:
        root = Cancellation()
        grandchild = root.child().child()
        root.cancel("stop")
        assert grandchild.reason == "stop"

    simulate(main)


def test_clean_up_is_not_interrupted() -> None:
    async def main() -> None:
        done: list[str] = []

        async def clean() -> None:
            await asyncio.sleep(10)
            done.append("clean")

        task = asyncio.create_task(uninterrupted(clean()))
        for _ in range(3):
            await asyncio.sleep(1)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert done == ["clean"]
        assert asyncio.get_running_loop().time() == 10

    simulate(main)


def test_stop_waits_for_slow_enders_even_when_cancelled() -> None:
    async def main() -> None:
        async def slow() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(5)

        tasks = [asyncio.create_task(slow()) for _ in range(3)]
        await asyncio.sleep(1)
        stopper = asyncio.create_task(stop(tasks))
        await asyncio.sleep(1)
        stopper.cancel()
        await asyncio.wait([stopper])
        assert stopper.cancelled()
        assert all(task.cancelled() for task in tasks)

    simulate(main)
