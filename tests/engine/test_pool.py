import asyncio
import random
from dataclasses import dataclass, field

import pytest

from ramify.contracts.errors import SandboxStartError, UsageError
from ramify.engine.pool import ResourcePool
from ramify.testing.sim import simulate


@dataclass
class Sandbox:
    number: int
    users: int = 0
    destroyed: bool = False


@dataclass
class SandboxFactory:
    """Counts, and refuses what a pool must never do."""

    max_size: int = 10
    made: list[Sandbox] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    making: int = 0
    told: int = 0

    async def create(self) -> Sandbox:
        self.making += 1
        try:
            assert self.alive + self.making <= self.max_size
            await asyncio.sleep(1)
            self.made.append(Sandbox(len(self.made)))
            return self.made[-1]
        finally:
            self.making -= 1

    async def destroy(self, resource: Sandbox) -> None:
        self.told += 1
        assert not resource.destroyed
        await asyncio.sleep(1)
        resource.destroyed = True
        self.gone.append(resource.number)

    @property
    def alive(self) -> int:
        return len(self.made) - len(self.gone)


async def execute_code(sandbox: Sandbox, code: str) -> str:
    await asyncio.sleep(1)
    return f"{code} in {sandbox.number}"


def test_seed_snippet() -> None:
    code = "print(1)"

    async def main() -> str:
        async with ResourcePool(SandboxFactory(), max_size=10) as pool:
            async with pool.acquire() as sandbox:
                result = await execute_code(sandbox, code)
        return result

    assert simulate(main) == "print(1) in 0"


def test_made_when_needed_reused_last_first_torn_down_in_reverse() -> None:
    async def main() -> None:
        factory = SandboxFactory()
        async with ResourcePool(factory, max_size=3) as pool:
            assert not factory.made
            async with pool.acquire(), pool.acquire(), pool.acquire() as third:
                assert pool.size == 3
                assert third.number == 2
            async with pool.acquire() as again:
                assert again.number == 0  # given back last
        assert factory.gone == [2, 1, 0]

    simulate(main)


def test_waiters_are_served_in_order() -> None:
    async def main() -> list[int]:
        served: list[int] = []
        async with ResourcePool(SandboxFactory(), max_size=1) as pool:

            async def use(index: int) -> None:
                await asyncio.sleep(index)
                async with pool.acquire():
                    served.append(index)
                    await asyncio.sleep(10)

            async with asyncio.TaskGroup() as group:
                for index in range(6):
                    group.create_task(use(index))
        return served

    assert simulate(main) == [0, 1, 2, 3, 4, 5]


def test_a_spoilt_resource_is_not_reused() -> None:
    async def main() -> None:
        factory = SandboxFactory()
        pool = ResourcePool(
            factory, max_size=1, broken=lambda error: not isinstance(error, KeyError)
        )

        async def fail(error: Exception) -> None:
            async with pool.acquire():
                raise error

        async with pool:
            with pytest.raises(KeyError):
                await fail(KeyError("harmless"))
            assert factory.gone == []
            with pytest.raises(ValueError, match="spoilt"):
                await fail(ValueError("spoilt"))
            assert factory.gone == [0]
            async with pool.acquire() as sandbox:
                assert sandbox.number == 1

    simulate(main)


def test_an_unhealthy_resource_is_not_reused() -> None:
    @dataclass
    class Checked(SandboxFactory):
        sick: set[int] = field(default_factory=set)

        async def healthy(self, resource: Sandbox) -> bool:
            if resource.number == 1:
                raise ConnectionError("gone")
            return resource.number not in self.sick

    async def main() -> None:
        factory = Checked(sick={0})
        async with ResourcePool(factory, max_size=3) as pool:
            async with pool.acquire(), pool.acquire(), pool.acquire():
                pass
            async with pool.acquire() as sandbox:  # idle: 2, 1, 0; used last: 0
                assert sandbox.number == 2
            assert sorted(factory.gone) == [0, 1]

    simulate(main)


def test_one_that_cannot_be_destroyed_does_not_keep_the_others() -> None:
    class Stubborn(SandboxFactory):
        async def destroy(self, resource: Sandbox) -> None:
            if resource.number == 1:
                raise OSError("device is busy")
            if resource.number == 2:
                await asyncio.sleep(10_000)
            await super().destroy(resource)

    async def main() -> None:
        factory = Stubborn()

        async def use_four() -> None:
            async with ResourcePool(factory, max_size=4) as pool:
                async with pool.acquire(), pool.acquire(), pool.acquire(), pool.acquire():
                    pass

        with pytest.raises(ExceptionGroup, match="could not be destroyed") as caught:
            await use_four()
        busy = [str(error) for error in caught.value.exceptions]
        assert busy == ["destroying a resource did not finish within 60 s", "device is busy"]
        assert factory.gone == [3, 0]

    simulate(main)


def test_a_failing_create_reaches_the_user_and_frees_the_place() -> None:
    class Failing(SandboxFactory):
        tries = 0

        async def create(self) -> Sandbox:
            self.tries += 1
            if self.tries == 1:
                raise SandboxStartError("no space")
            return await super().create()

    async def main() -> None:
        async with ResourcePool(Failing(), max_size=1) as pool:
            with pytest.raises(SandboxStartError):
                async with pool.acquire():
                    pass
            async with pool.acquire() as sandbox:
                assert sandbox.number == 0

    simulate(main)


def test_after_closing_nobody_gets_in_and_those_inside_are_waited_for() -> None:
    async def main() -> None:
        factory = SandboxFactory()
        pool = ResourcePool(factory, max_size=1, drain_sec=100)
        finished: list[str] = []

        async def use(name: str) -> None:
            async with pool.acquire() as sandbox:
                await asyncio.sleep(20)
                assert not sandbox.destroyed
                finished.append(name)

        async with pool:
            inside = asyncio.create_task(use("inside"))
            await asyncio.sleep(2)
            waiting = asyncio.create_task(use("waiting"))
            await asyncio.sleep(2)
        await inside
        with pytest.raises(UsageError, match="pool is closed"):
            await waiting
        with pytest.raises(UsageError, match="pool is closed"):
            await use("late")
        assert finished == ["inside"]
        assert factory.gone == [0]

    simulate(main)


def test_who_does_not_leave_in_time_loses_the_resource() -> None:
    async def main() -> None:
        factory = SandboxFactory()

        async def use() -> None:
            async with pool.acquire():
                await asyncio.sleep(1000)

        async with ResourcePool(factory, max_size=2, drain_sec=5) as pool:
            stuck = asyncio.create_task(use())
            await asyncio.sleep(2)
        assert factory.gone == [0]
        stuck.cancel()
        await asyncio.wait([stuck])
        assert (factory.gone, factory.told) == ([0], 1), "destroyed once"

    simulate(main)


async def test_what_cannot_make_resources_is_refused() -> None:
    with pytest.raises(UsageError, match="async create"):
        ResourcePool(object(), max_size=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1"):
        ResourcePool(SandboxFactory(), max_size=0)


@dataclass
class CheckedFactory(SandboxFactory):
    rng: random.Random = field(default_factory=random.Random)

    async def healthy(self, resource: Sandbox) -> bool:
        assert not resource.destroyed
        await asyncio.sleep(self.rng.choice((0, 1)))
        return self.rng.random() < 0.8


class _Storm:
    """Random users, failures, cancellations and closing times; the invariants of a pool."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.size = rng.randint(1, 4)
        checked = CheckedFactory(max_size=self.size, rng=rng)
        self.factory = rng.choice((SandboxFactory(max_size=self.size), checked))
        self.early = rng.random() < 0.3
        drain_sec = rng.choice((0.5, 3, 100))
        self.pool = ResourcePool(self.factory, max_size=self.size, drain_sec=drain_sec)
        self.served = 0

    async def use(self) -> None:
        await asyncio.sleep(self.rng.randint(0, 4))
        async with self.pool.acquire() as sandbox:
            sandbox.users += 1
            assert sandbox.users == 1
            assert not sandbox.destroyed
            await asyncio.sleep(self.rng.choice((0, 1, 2)))
            if self.rng.random() < 0.2:
                raise ValueError("spoilt")
            sandbox.users -= 1
        self.served += 1

    async def run(self) -> None:
        async with self.pool:
            tasks = [asyncio.create_task(self.use()) for _ in range(12)]
            for task in tasks:
                if self.rng.random() < 0.3:
                    await asyncio.sleep(self.rng.choice((0, 0.5, 1)))
                    task.cancel()
            if not self.early:
                await asyncio.wait(tasks)
                assert self.pool.report().in_use == 0
                assert self.pool.size == self.factory.alive <= self.size
        await asyncio.wait(tasks)
        allowed = (ValueError, UsageError) if self.early else ValueError
        ended = [task.exception() for task in tasks if not task.cancelled()]
        assert all(error is None or isinstance(error, allowed) for error in ended), ended
        assert self.served == ended.count(None)
        assert (self.factory.alive, self.factory.making) == (0, 0)
        assert self.factory.told == len(self.factory.made)


def test_no_schedule_breaks_the_pool() -> None:
    for seed in range(2500):  # 2256 once made a resource too many after closing
        simulate(_Storm(seed).run, seed)


@pytest.mark.proof
def test_no_schedule_breaks_the_pool_in_full() -> None:
    for seed in range(20_000):
        simulate(_Storm(seed).run, seed)
