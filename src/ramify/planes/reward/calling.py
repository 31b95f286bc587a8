"""Call a user's function so that neither its failure nor its silence reaches anybody else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from ramify.planes.reward.threads import Returned, ThreadJob, WorkerThreads

_MAX_WRITTEN_OFF = 128
_GRACE_SEC = 1.0


class CallTimeoutError(TimeoutError):
    """A function did not return in time; says what became of it."""


class TooManyHangError(RuntimeError):
    """So many functions hang in their threads that no further thread is started."""


class Caller:
    """Calls functions, at most `concurrency` at once in each event loop; the others wait.

    A synchronous function gets a thread of this caller's own. A function's time begins when it
    starts, so waiting for its turn costs it nothing. After that a coroutine is cancelled; a thread
    is written off, since it cannot be killed. Never more than 128 threads are written off at a
    time: then synchronous functions are refused until one of them returns.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._threads = WorkerThreads()
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )
        self._stubborn: set[asyncio.Future[Any]] = set()

    async def call(
        self, function: Callable[[], Any], is_async: bool, timeout_sec: float
    ) -> Returned:
        """What the function returns or raises. An awaitable that it returns is awaited.

        Raises nothing of the function's own; `Returned.raised` is a CallTimeoutError or
        TooManyHangError where it did not come to an end. A cancelled caller cancels it.
        """
        loop = asyncio.get_running_loop()
        if (slots := self._slots.get(loop)) is None:
            slots = self._slots[loop] = asyncio.Semaphore(self._concurrency)
        async with slots:
            deadline = loop.time() + timeout_sec
            if is_async:
                returned = await self._on_loop(function, timeout_sec)
            else:
                returned = await self._in_thread(function, timeout_sec)
            if inspect.isawaitable(returned.value):
                awaitable = returned.value
                left = max(0.0, deadline - loop.time())
                returned = await self._on_loop(lambda: awaitable, left)
        return returned

    async def _in_thread(self, function: Callable[[], Any], timeout_sec: float) -> Returned:
        if (hang := self._threads.written_off) >= _MAX_WRITTEN_OFF:
            return Returned(None, TooManyHangError(f"not called: {hang} earlier calls still hang"))
        job = ThreadJob(function, self._threads)
        future = asyncio.get_running_loop().run_in_executor(self._threads, job)
        try:
            async with asyncio.timeout(timeout_sec):
                return await future
        except TimeoutError:  # a job itself never raises
            job.write_off()
        except asyncio.CancelledError:
            job.write_off()
            raise
        return Returned(
            None,
            CallTimeoutError(
                f"no result within {timeout_sec:g} s; its thread cannot be stopped and was written "
                f"off ({self._threads.written_off} so far)"
            ),
        )

    async def _on_loop(self, function: Callable[[], Any], timeout_sec: float) -> Returned:
        task = asyncio.create_task(_awaited(function))
        try:
            await asyncio.wait({task}, timeout=timeout_sec)
        finally:
            in_time = task.done()
            if not in_time:
                await self._stop(task)
        if not in_time:
            what = "was cancelled" if task.done() else "ignores being cancelled"
            return Returned(
                None, CallTimeoutError(f"no result within {timeout_sec:g} s; it {what}")
            )
        if task.cancelled():
            return Returned(None, RuntimeError("it cancelled itself"))
        return task.result()

    async def _stop(self, task: asyncio.Task[Returned]) -> None:
        self._stubborn.add(task)
        task.add_done_callback(self._stubborn.discard)
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE_SEC)


async def _awaited(function: Callable[[], Any]) -> Returned:
    try:
        value: Any = function()
        return Returned(await value if inspect.isawaitable(value) else value)
    except (Exception, SystemExit) as error:  # SystemExit would end the loop
        return Returned(None, error)
