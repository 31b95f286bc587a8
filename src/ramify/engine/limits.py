"""What may run at once, and what may be spent, with an answer to "which limit binds?"."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ramify.contracts.errors import LimitExceededError, UnknownNameError, UsageError


@dataclass(frozen=True, slots=True)
class LimitReport:
    """One limit at one moment. `waited_sec` is the sum over all waiters, present ones included."""

    name: str
    capacity: int
    in_use: int
    waiting: int
    waited_sec: float


class WeightedSemaphore:
    """At most `capacity` units in use at once.

    Guarantees: first come, first served by all weights (a light waiter never overtakes a heavy
    one, so nobody starves); a waiter that is cancelled at any moment leaves nothing taken, and
    those behind it move up. Units are whole numbers, so that nothing drifts. One event loop.

    Args:
        name: for messages and reports.
        capacity: units, at least 1.

    Raises:
        UsageError: a capacity below 1.
    """

    def __init__(self, name: str, capacity: int) -> None:
        if capacity < 1:
            raise UsageError(f"limit {name!r}: capacity must be at least 1, not {capacity}")
        self.name, self.capacity = name, capacity
        self._used = 0
        self._waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()
        self._waited_sec = 0.0
        self._counted_to = 0.0

    @property
    def in_use(self) -> int:
        """Units taken now."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    @property
    def next_weight(self) -> int:
        """Units that the first waiter wants; 0 if nobody waits."""
        return next(iter(self._waiters.values()), 0)

    def check(self, weight: int) -> None:
        """Refuse what could never be granted.

        Raises:
            UsageError: weight below 1, or above the capacity.
        """
        if weight < 1:
            raise UsageError(f"limit {self.name!r}: cannot take {weight} units")
        if weight > self.capacity:
            raise UsageError(
                f"limit {self.name!r}: {weight} asked for, but the whole capacity is "
                f"{self.capacity}; raise the limit or ask for less"
            )

    async def acquire(self, weight: int = 1) -> None:
        """Take `weight` units, waiting in line.

        Raises:
            UsageError: at once, for a weight that can never be granted.
        """
        self.check(weight)
        if not self._waiters and self._used + weight <= self.capacity:
            self._used += weight
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count()
        self._waiters[future] = weight
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(weight)  # granted and cancelled in the same moment
            elif future in self._waiters:
                self._count()
                del self._waiters[future]
                self._grant()  # whoever stood behind may fit now
            raise

    def release(self, weight: int = 1) -> None:
        """Give back `weight` units.

        Raises:
            UsageError: more than is taken: a bug of the caller.
        """
        if weight > self._used:
            raise UsageError(f"limit {self.name!r}: {weight} given back, {self._used} taken")
        self._used -= weight
        self._grant()

    @asynccontextmanager
    async def hold(self, weight: int = 1) -> AsyncGenerator[None]:
        """Have `weight` units during the body."""
        await self.acquire(weight)
        try:
            yield
        finally:
            self.release(weight)

    def refuse_waiters(self, message: str) -> None:
        """Let everyone who waits now fail with a UsageError: what they wait for will not come."""
        self._count()
        while self._waiters:
            future, _ = self._waiters.popitem(last=False)
            if not future.done():
                future.set_exception(UsageError(message))

    def report(self) -> LimitReport:
        """Where it stands. Needs the running loop, for the time."""
        self._count()
        return LimitReport(
            self.name, self.capacity, self._used, len(self._waiters), self._waited_sec
        )

    def _grant(self) -> None:
        while self._waiters:
            future, weight = next(iter(self._waiters.items()))
            if not future.done():
                if self._used + weight > self.capacity:
                    return
                self._used += weight
                future.set_result(None)
            self._count()
            del self._waiters[future]

    def _count(self) -> None:
        # Seconds waited by all = the number of waiters, integrated over time.
        now = asyncio.get_running_loop().time()
        self._waited_sec += len(self._waiters) * (now - self._counted_to)
        self._counted_to = now


class Budgets:
    """Several limits, held together.

    Guarantees: no deadlock, because limits are taken in one fixed order (as declared); on
    cancellation whatever was taken already is given back.

    Args:
        capacities: name → units.
    """

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self._limits = {name: WeightedSemaphore(name, size) for name, size in capacities.items()}
        self._idle = dict.fromkeys(self._limits, 0)

    @asynccontextmanager
    async def hold(self, amounts: Mapping[str, int]) -> AsyncGenerator[None]:
        """Have all `amounts` during the body. An amount of 0 takes no part.

        Raises:
            UnknownNameError: no such limit.
            UsageError: more than a whole limit; both before anything is taken.
        """
        wanted = self._wanted(amounts)
        held: list[tuple[WeightedSemaphore, int]] = []
        try:
            for limit, weight in wanted:
                await self._take(limit, weight, held)
                held.append((limit, weight))
            yield
        finally:
            for limit, weight in reversed(held):
                limit.release(weight)

    def binding(self) -> str | None:
        """The limit that holds work back now, or None.

        A limit counts only if its first waiter would not fit even without the units held by
        those that are themselves waiting for a later limit: then the later one is the cause.
        Of several, the one with most waiters.
        """
        causes = [
            limit
            for name, limit in self._limits.items()
            if limit.waiting
            and limit.in_use - self._idle[name] + limit.next_weight > limit.capacity
        ]
        return max(causes, key=lambda limit: limit.waiting).name if causes else None

    def report(self) -> tuple[LimitReport, ...]:
        """Every limit, in declared order. Needs the running loop."""
        return tuple(limit.report() for limit in self._limits.values())

    def _wanted(self, amounts: Mapping[str, int]) -> list[tuple[WeightedSemaphore, int]]:
        for name, weight in amounts.items():
            if name not in self._limits:
                raise UnknownNameError("limit", name, self._limits)
            if weight:
                self._limits[name].check(weight)
        return [(limit, amounts[name]) for name, limit in self._limits.items() if amounts.get(name)]

    async def _take(
        self, limit: WeightedSemaphore, weight: int, held: list[tuple[WeightedSemaphore, int]]
    ) -> None:
        for earlier, units in held:
            self._idle[earlier.name] += units
        try:
            await limit.acquire(weight)
        finally:
            for earlier, units in held:
                self._idle[earlier.name] -= units


class SpendBudget:
    """Something that is used up and never given back: cost, tokens.

    Args:
        name: for the error: `cost`, `tokens`, `turns`, `context`.
        limit: how much may be spent; None for no limit.
    """

    def __init__(self, name: str, limit: float | None) -> None:
        if limit is not None and not limit >= 0:
            raise UsageError(f"budget {name!r}: the limit must be 0 or more, not {limit}")
        self.name, self.limit = name, limit
        self._spent = 0.0

    @property
    def spent(self) -> float:
        """Sum of all charges."""
        return self._spent

    @property
    def remaining(self) -> float | None:
        """What is left, never below 0; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self._spent)

    def charge(self, amount: float) -> None:
        """Record what was spent. It is recorded even if it goes over: it happened.

        Raises:
            LimitExceededError: more than the limit is spent now.
            UsageError: a negative or not finite amount.
        """
        if not 0 <= amount < float("inf"):
            raise UsageError(f"budget {self.name!r}: cannot charge {amount}")
        self._spent += amount
        if self.limit is not None and self._spent > self.limit:
            raise self._error()

    def check(self) -> None:
        """Ask before spending more.

        Raises:
            LimitExceededError: nothing is left.
        """
        if self.limit is not None and self._spent >= self.limit:
            raise self._error()

    def _error(self) -> LimitExceededError:
        return LimitExceededError(
            self.name, f"{self.name} budget is spent: {self._spent:g} of {self.limit:g}"
        )
