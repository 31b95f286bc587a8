"""Resources that are costly to make: made when first needed, reused, torn down in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import InfraError, LimitExceededError, UsageError
from ramify.engine.cancel import deadline
from ramify.engine.limits import LimitReport, WeightedSemaphore

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_CLOSED = "the pool is closed; acquire inside `async with ResourcePool(…)`"


@runtime_checkable
class ResourceFactory(Protocol[T]):
    """Makes and unmakes one kind of resource."""

    async def create(self) -> T:
        """Make one. On error or cancellation nothing is left behind."""
        ...

    async def destroy(self, resource: T) -> None:
        """Unmake one, healthy or not. Called once for each resource."""
        ...


@runtime_checkable
class HealthChecked(Protocol[T_contra]):
    """A factory that can tell whether an idle resource is still good."""

    async def healthy(self, resource: T_contra) -> bool:
        """False, or any exception, means it is not: it will be destroyed."""
        ...


class ResourcePool(Generic[T]):
    """A pool: `async with ResourcePool(factory, max_size=10) as pool`.

    Guarantees:

    1. Never more than `max_size` resources exist, counting those being made or destroyed.
    2. Who waits is served first come, first served; an idle resource is preferred to a new one,
       and the one used last to the others.
    3. If the factory also has `healthy` (`HealthChecked`), an idle resource is asked before it
       is used again, and destroyed if it is not.
    4. A resource whose user left with an exception for which `broken` says so (by default any,
       cancellation included) is destroyed, not reused.
    5. Leaving the pool refuses new and waiting users, waits up to `drain_sec` for those inside,
       then destroys everything, last made first. One that fails to be destroyed does not keep
       the others from it; all such errors are raised together at the end. Each destruction has
       `destroy_sec` and is not cut short by cancellation.

    Args:
        factory: makes and unmakes resources.
        max_size: at least 1.
        broken: whether an exception of a user means that its resource is spoilt.
        drain_sec, destroy_sec, health_sec: seconds.

    Raises:
        UsageError: `max_size` below 1, or a factory without the methods it needs.
    """

    def __init__(
        self,
        factory: ResourceFactory[T],
        max_size: int,
        broken: Callable[[BaseException], bool] = lambda error: True,
        drain_sec: float = 30.0,
        destroy_sec: float = 60.0,
        health_sec: float = 10.0,
    ) -> None:
        if not isinstance(factory, ResourceFactory):  # pyright: ignore[reportUnnecessaryIsInstance] (callers without types)
            raise UsageError(
                f"{type(factory).__name__} cannot make resources: it needs `async create()` and "
                "`async destroy(resource)`"
            )
        self._factory = factory
        self._health: HealthChecked[T] | None = (
            factory if isinstance(factory, HealthChecked) else None
        )
        self._slots = WeightedSemaphore("pool", max_size)
        self._broken = broken
        self._drain_sec, self._destroy_sec = drain_sec, destroy_sec
        self._health_sec = health_sec
        self._numbers = count()
        self._alive: dict[int, T] = {}  # in the order in which they were made
        self._idle: list[int] = []
        self._failures: list[Exception] = []
        self._closed = False
        self._quiet = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closed = True
        self._slots.refuse_waiters(_CLOSED)
        await uninterrupted(self._tear_down())
        if self._failures:
            failures, self._failures = self._failures, []
            raise ExceptionGroup("resources of a pool could not be destroyed", failures)

    @property
    def size(self) -> int:
        """Resources that exist now."""
        return len(self._alive)

    def report(self) -> LimitReport:
        """How many are in use and how many wait."""
        return self._slots.report()

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[T]:
        """Have a resource during the body; waits in line.

        Raises:
            UsageError: the pool is closed.
            Exception: what the factory's `create` raised.
        """
        self._refuse_if_closed()
        await self._slots.acquire()
        try:
            self._refuse_if_closed()
            number = await self._take()
            if number not in self._alive:  # the pool was torn down during its health check
                raise UsageError(_CLOSED)
            try:
                yield self._alive[number]
            except BaseException as error:
                if self._broken(error):
                    await self._discard(number)
                raise
            finally:
                if number in self._alive:
                    self._idle.append(number)
        finally:
            self._slots.release()
            if not self._slots.in_use:
                self._quiet.set()

    async def _take(self) -> int:
        while self._idle:
            number = self._idle.pop()
            if await self._still_good(number):
                return number
            await self._discard(number)
        self._refuse_if_closed()  # the last ones may still be being destroyed
        resource = await self._factory.create()
        if self._closed:  # whoever closed the pool may have given up waiting for this one
            await uninterrupted(self._unmake(resource))
            raise UsageError(_CLOSED)
        number = next(self._numbers)
        self._alive[number] = resource
        return number

    async def _still_good(self, number: int) -> bool:
        if self._health is None:
            return True
        try:
            async with deadline(self._health_sec, "the health check of a resource"):
                return await self._health.healthy(self._alive[number])
        except Exception:
            return False  # a check that cannot be made is one that is not passed
        except BaseException:
            self._idle.append(number)  # cancelled: nothing is known against it
            raise

    async def _discard(self, number: int) -> None:
        await uninterrupted(self._destroy(number))

    async def _destroy(self, number: int) -> None:
        resource = self._alive.pop(number, None)
        if resource is None:
            return  # the other of its user and the closing pool was faster
        try:
            await self._unmake(resource)
        except Exception as error:
            self._failures.append(error)  # raised when the pool closes

    async def _unmake(self, resource: T) -> None:
        async with deadline(self._destroy_sec, "destroying a resource", InfraError):
            await self._factory.destroy(resource)

    async def _tear_down(self) -> None:
        if self._slots.in_use:
            self._quiet.clear()
            try:
                async with deadline(self._drain_sec, "draining a pool"):
                    await self._quiet.wait()
            except LimitExceededError:
                pass  # said in the contract: those still inside lose their resource now
        for number in reversed(list(self._alive)):
            await self._destroy(number)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError(_CLOSED)
