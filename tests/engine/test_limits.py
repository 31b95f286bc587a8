import asyncio
import random

import pytest

from ramify.contracts.errors import LimitExceededError, UnknownNameError, UsageError
from ramify.engine.limits import Budgets, SpendBudget, WeightedSemaphore
from ramify.testing.sim import simulate


async def test_a_request_above_capacity_is_refused_at_once() -> None:
    semaphore = WeightedSemaphore("memory_mb", 512)
    with pytest.raises(UsageError, match="memory_mb.*513 asked for.*512"):
        await semaphore.acquire(513)
    with pytest.raises(UsageError, match="cannot take 0"):
        await semaphore.acquire(0)
    with pytest.raises(UsageError, match="at least 1"):
        WeightedSemaphore("none", 0)
    with pytest.raises(UsageError, match="1 given back, 0 taken"):
        semaphore.release()


def test_a_heavy_waiter_is_not_starved_by_light_ones() -> None:
    async def main() -> list[str]:
        semaphore = WeightedSemaphore("slots", 3)
        order: list[str] = []

        async def use(name: str, weight: int, start: float) -> None:
            await asyncio.sleep(start)
            async with semaphore.hold(weight):
                order.append(name)
                await asyncio.sleep(10)

        async with asyncio.TaskGroup() as group:
            group.create_task(use("first", 2, 0))
            group.create_task(use("heavy", 3, 1))
            for index in range(5):
                group.create_task(use(f"light{index}", 1, 2 + index))  # one unit is free
        return order

    order = simulate(main)
    assert order[:2] == ["first", "heavy"]
    assert sorted(order[2:]) == [f"light{i}" for i in range(5)]


def test_waiting_time_adds_up_over_all_waiters() -> None:
    async def main() -> None:
        semaphore = WeightedSemaphore("slots", 1)
        await semaphore.acquire()
        waiters = [asyncio.create_task(semaphore.acquire()) for _ in range(2)]
        await asyncio.sleep(10)
        report = semaphore.report()
        assert (report.in_use, report.waiting, report.waited_sec) == (1, 2, 20)
        semaphore.release()
        await asyncio.sleep(5)
        semaphore.release()
        await asyncio.wait(waiters)
        assert semaphore.report().waited_sec == 25

    simulate(main)


def _storm(seed: int) -> None:
    """Many users with random weights, times and cancellations; the invariants of a semaphore."""
    rng = random.Random(seed)
    capacity = rng.randint(1, 5)

    async def main() -> None:
        semaphore = WeightedSemaphore("slots", capacity)
        in_use = 0
        served = 0

        async def use(weight: int, start: float, length: float) -> None:
            nonlocal in_use, served
            await asyncio.sleep(start)
            async with semaphore.hold(weight):
                in_use += weight
                assert in_use <= capacity
                try:
                    await asyncio.sleep(length)
                finally:
                    in_use -= weight
            served += 1

        tasks = [
            asyncio.create_task(
                use(rng.randint(1, capacity), rng.randint(0, 3), rng.choice((0, 0, 1, 2)))
            )
            for _ in range(12)
        ]
        doomed = [task for task in tasks if rng.random() < 0.4]

        async def kill(task: asyncio.Task[None]) -> None:
            await asyncio.sleep(rng.randint(0, 6))
            task.cancel()

        async with asyncio.TaskGroup() as group:
            for task in doomed:
                group.create_task(kill(task))
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        assert served == sum(not task.cancelled() for task in tasks)
        assert served >= len(tasks) - len(doomed)
        assert (semaphore.in_use, semaphore.waiting) == (0, 0)
        await semaphore.acquire(capacity)  # all of it is there again

    simulate(main, seed)


def test_no_schedule_breaks_the_semaphore() -> None:
    for seed in range(1500):
        _storm(seed)


@pytest.mark.proof
def test_no_schedule_breaks_the_semaphore_in_full() -> None:
    for seed in range(20_000):
        _storm(seed)


def test_those_behind_a_cancelled_waiter_move_up() -> None:
    async def main() -> None:
        semaphore = WeightedSemaphore("slots", 3)
        await semaphore.acquire(2)
        heavy = asyncio.create_task(semaphore.acquire(3))
        await asyncio.sleep(1)
        light = asyncio.create_task(semaphore.acquire(1))
        await asyncio.sleep(1)
        assert not light.done()
        heavy.cancel()
        await asyncio.sleep(1)  # nothing was released meanwhile
        assert light.done()

    simulate(main)


def test_waiters_can_be_refused() -> None:
    async def main() -> None:
        semaphore = WeightedSemaphore("slots", 1)
        await semaphore.acquire()
        waiter = asyncio.create_task(semaphore.acquire())
        await asyncio.sleep(1)
        semaphore.refuse_waiters("closed for today")
        with pytest.raises(UsageError, match="closed for today"):
            await waiter
        assert semaphore.in_use == 1

    simulate(main)


def test_budgets_refuse_before_taking_anything() -> None:
    async def main() -> None:
        budgets = Budgets({"sandboxes": 2, "memory_mb": 1024})
        with pytest.raises(UnknownNameError, match="did you mean 'sandboxes'"):
            async with budgets.hold({"memory_mb": 1, "sandboxs": 1}):
                pass
        with pytest.raises(UsageError, match="memory_mb"):
            async with budgets.hold({"sandboxes": 1, "memory_mb": 2048}):
                pass
        async with budgets.hold({"sandboxes": 2, "memory_mb": 0}):
            pass
        assert [limit.in_use for limit in budgets.report()] == [0, 0]

    simulate(main)


def test_the_binding_limit_is_named() -> None:
    async def main() -> None:
        budgets = Budgets({"sandboxes": 4, "memory_mb": 1000})
        assert budgets.binding() is None

        async def use(**amounts: int) -> None:
            async with budgets.hold(amounts):
                await asyncio.sleep(100)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(use(sandboxes=1, memory_mb=500))
            await asyncio.sleep(1)
            # All 4 sandbox slots are taken and have waiters too, but two of those that hold one
            # wait for memory: more sandboxes would not help.
            report = {limit.name: limit for limit in budgets.report()}
            assert (report["sandboxes"].in_use, report["sandboxes"].waiting) == (4, 4)
            assert budgets.binding() == "memory_mb"
        assert budgets.binding() is None

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(use(sandboxes=1, memory_mb=1))
            await asyncio.sleep(1)
            assert budgets.binding() == "sandboxes"

    simulate(main)


def test_budgets_never_deadlock_and_give_back_on_cancellation() -> None:
    def run(seed: int) -> None:
        rng = random.Random(seed)

        async def main() -> None:
            budgets = Budgets({"a": 2, "b": 3, "c": 2})

            async def use() -> None:
                names = rng.sample("abc", rng.randint(1, 3))  # asked for in any order
                async with budgets.hold({name: rng.randint(1, 2) for name in names}):
                    await asyncio.sleep(rng.random())

            tasks = [asyncio.create_task(use()) for _ in range(10)]
            for task in tasks:
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random())
                    task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() or task.exception() is None for task in tasks)
            assert all((r.in_use, r.waiting) == (0, 0) for r in budgets.report())
            assert budgets.binding() is None

        simulate(main, seed)

    for seed in range(500):
        run(seed)


def test_a_spend_budget_names_itself() -> None:
    budget = SpendBudget("tokens", 100)
    budget.check()
    budget.charge(100)
    assert budget.remaining == 0
    with pytest.raises(LimitExceededError, match="tokens budget is spent: 100 of 100") as caught:
        budget.check()
    assert caught.value.limit == "tokens"
    with pytest.raises(LimitExceededError):
        budget.charge(1)
    assert budget.spent == 101
    with pytest.raises(UsageError):
        budget.charge(-1)
    with pytest.raises(UsageError):
        budget.charge(float("nan"))
    unlimited = SpendBudget("cost", None)
    unlimited.charge(1e9)
    unlimited.check()
    assert unlimited.remaining is None
    with pytest.raises(UsageError):
        SpendBudget("cost", -1)
