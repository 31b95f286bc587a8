"""A seeded simulation: an asyncio event loop with virtual time and a shuffled schedule.

`simulate(main, seed)` runs `main()` on a `SimLoop`. Everything that waits through asyncio
(`sleep`, `timeout`, tasks, queues, locks) works as usual, with two differences: whenever nothing
can run, time jumps to the next timer, so an hour passes in microseconds; and of all callbacks
that are ready, the seed picks which runs next, so that each seed is another interleaving, and the
same seed the same one again. Hence a race that real runs show once a month is found in seconds,
and then reproduced.

Threads have no place here: `run_in_executor` (and so `asyncio.to_thread`) runs the function at
once on the loop, in its turn, as if it took no time. Sockets, pipes, subprocesses and signals
are refused with NotImplementedError.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from itertools import count
from typing import Any, TypeVar, cast

T = TypeVar("T")


class DeadlockError(AssertionError):
    """Nothing will ever happen again, but the simulation has not ended."""


class LivelockError(AssertionError):
    """Too much happened without an end."""


class LeakError(AssertionError):
    """The simulation ended, but something it started had not."""


_Entry = tuple[asyncio.Handle, Callable[..., object], tuple[Any, ...], contextvars.Context | None]


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of a simulation. Use `simulate`, or `run_until_complete` on your own.

    Args:
        seed: decides the order of callbacks.
        max_steps: callbacks after which it is taken for a livelock.
    """

    def __init__(self, seed: int = 0, max_steps: int = 10_000_000) -> None:
        self._rng = random.Random(seed)
        self._seed, self._max_steps = seed, max_steps
        self._now = 0.0
        self._steps = 0
        self._numbers = count()
        self._ready: list[_Entry] = []
        self._timers: list[tuple[float, int, _Entry]] = []
        self._running = self._stopping = self._closed = False
        # In the order of their making: what is cancelled first must not depend on addresses.
        self._tasks: weakref.WeakValueDictionary[int, asyncio.Task[Any]] = (
            weakref.WeakValueDictionary()
        )
        self._generators: weakref.WeakValueDictionary[int, AsyncGenerator[Any, Any]] = (
            weakref.WeakValueDictionary()
        )
        self._closers: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """Errors that nobody awaited, as reported to the exception handler."""
        return tuple(self._errors)

    @property
    def steps(self) -> int:
        """Callbacks run since `run_forever` began."""
        return self._steps

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run a callback in one of the next steps."""
        self._refuse_if_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((handle, callback, args, context))
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback after `delay` virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a virtual time."""
        self._refuse_if_closed()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        entry = (handle, callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), entry))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio. A cancelled timer is passed over when its turn comes."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """A task of this loop."""
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[next(self._numbers)] = task
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function on the loop, when its turn comes: there are no threads here."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_soon(run)
        return future

    def run_forever(self) -> None:
        """Run until `stop`.

        Raises:
            DeadlockError: nothing can run, no timer is set, and nobody called `stop`.
            LivelockError: more than `max_steps` callbacks ran.
        """
        self._refuse_if_closed()
        if self._running:
            raise RuntimeError("this event loop is already running")
        hooks = sys.get_asyncgen_hooks()
        self._running, self._stopping, self._steps = True, False, 0
        sys.set_asyncgen_hooks(self._generator_begun, self._generator_dropped)
        # Documented for event loops, which this is.
        asyncio._set_running_loop(self)  # pyright: ignore[reportPrivateUsage]
        try:
            while not self._stopping:
                self._step()
        finally:
            asyncio._set_running_loop(None)  # pyright: ignore[reportPrivateUsage]
            sys.set_asyncgen_hooks(*hooks)
            self._running = False

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until a coroutine or future of this loop has ended, and give its result."""
        task = asyncio.ensure_future(cast("Awaitable[T]", future), loop=self)
        task.add_done_callback(self._stop_with)
        try:
            self.run_forever()
        finally:
            task.remove_done_callback(self._stop_with)
        return task.result()

    def pending(self) -> list[asyncio.Task[Any]]:
        """Tasks that have not ended, oldest first."""
        return [task for task in list(self._tasks.values()) if not task.done()]

    async def shutdown_asyncgens(self) -> None:
        """Close every asynchronous generator that was begun and not ended, and wait for it."""
        while self._closers:
            await asyncio.wait(self._closers)
        for generator in list(self._generators.values()):
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""

    def stop(self) -> None:
        """Let `run_forever` return after the current step."""
        self._stopping = True

    def close(self) -> None:
        """Drop what was not run."""
        if self._running:
            raise RuntimeError("cannot close a running event loop")
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def is_running(self) -> bool:
        """Whether `run_forever` is on."""
        return self._running

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def get_debug(self) -> bool:
        """Always False: asyncio's debug mode measures real time."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep an error that nobody awaited; `simulate` raises it at the end."""
        error = context.get("exception")
        if not isinstance(error, BaseException):
            error = AssertionError(context.get("message", "unknown error of the event loop"))
        self._errors.append(error)

    default_exception_handler = call_exception_handler

    def _step(self) -> None:
        while self._timers and (not self._ready or self._timers[0][0] <= self._now):
            when, _, entry = heapq.heappop(self._timers)
            if not entry[0].cancelled():
                self._now = max(self._now, when)
                self._ready.append(entry)
        if not self._ready:
            raise DeadlockError(
                f"seed {self._seed}: nothing can happen any more; {self._waiting()}"
            )
        if self._steps >= self._max_steps:
            raise LivelockError(f"seed {self._seed}: {self._steps} steps; {self._waiting()}")
        index = self._rng.randrange(len(self._ready))
        self._ready[index], self._ready[-1] = self._ready[-1], self._ready[index]
        handle, callback, args, context = self._ready.pop()
        if handle.cancelled():
            return
        self._steps += 1
        try:
            if context is None:
                callback(*args)
            else:
                context.run(callback, *args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.call_exception_handler({"exception": error})

    def _waiting(self) -> str:
        lines: list[str] = []
        for task in self.pending():
            frames = task.get_stack(limit=1)
            at = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "?"
            lines.append(f"{task.get_name()} ({task.get_coro()!r}) at {at}")
        return f"{len(lines)} tasks wait: " + "; ".join(lines[:20])

    def _stop_with(self, future: asyncio.Future[Any]) -> None:
        self.stop()

    def _generator_begun(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[next(self._numbers)] = generator

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            closer = self.create_task(_close(generator))
            self._closers.add(closer)
            closer.add_done_callback(self._closer_ended)

    def _closer_ended(self, closer: asyncio.Task[None]) -> None:
        self._closers.discard(closer)
        if not closer.cancelled() and (error := closer.exception()) is not None:
            self._errors.append(error)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this event loop is closed")


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


def simulate(
    main: Callable[[], Coroutine[Any, Any, T]], seed: int = 0, max_steps: int = 10_000_000
) -> T:
    """Run `main()` to its end in virtual time, under the schedule that `seed` picks.

    Returns:
        What `main` returned.

    Raises:
        Exception: what `main` raised.
        DeadlockError, LivelockError: it will never end; the message names the tasks that wait.
        LeakError: tasks were left when `main` returned. Those that end without the clock moving,
            and generators that were dropped and are being closed, get the chance to do so first.
        ExceptionGroup: errors that nobody awaited.
    """
    loop = SimLoop(seed, max_steps)
    try:
        result = loop.run_until_complete(main())
        loop.run_until_complete(_settle(loop))
        if left := loop.pending():
            raise LeakError(f"seed {seed}: still running at the end: {left}")
        if loop.errors:
            raise BaseExceptionGroup(f"seed {seed}: errors that nobody awaited", loop.errors)
        return result
    finally:
        _abandon(loop)


async def _settle(loop: SimLoop) -> None:
    """Let everything that can end without the clock moving end."""
    own = asyncio.current_task()
    for _ in range(100):
        if all(task is own for task in loop.pending()):
            break
        await asyncio.sleep(0)
    await loop.shutdown_asyncgens()


def _abandon(loop: SimLoop) -> None:
    """After a failure: end what is left, so that nothing is destroyed while pending."""
    for _ in range(10):
        left = loop.pending()
        if not left:
            break
        for task in left:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(left, timeout=3600))
        except (DeadlockError, LivelockError):
            break  # the error that is being raised says why
    loop.close()


class SimClock:
    """A `contracts.context.Clock` on the running loop's time; for simulations.

    Args:
        epoch: what `now` says when the loop's time is 0, in UTC seconds.
    """

    def __init__(self, epoch: float = 1_700_000_000.0) -> None:
        self._epoch = epoch

    def now(self) -> float:
        """UTC seconds."""
        return self._epoch + self.monotonic()

    def monotonic(self) -> float:
        """The running loop's time."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative time is none."""
        await asyncio.sleep(max(0.0, seconds))
