"""One stream of an executor: a feeder, the tasks it started, and the results that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from typing import Any, Generic, TypeVar, cast

from ramify.contracts.errors import InfraError
from ramify.engine.cancel import settle

I = TypeVar("I")  # noqa: E741  (an input)
T = TypeVar("T")
R = TypeVar("R")

_END = object()
_BREATH = 256


class Stream(Generic[I, T, R]):
    """State and control flow of one `Executor.generate`. Single use.

    `open`, then `take` while `more` is true, then `close` in any case.

    Args:
        worker: called once for each item.
        inputs: read lazily, one at a time.
        expand: the items of one input; all of them are run, even when draining.
        concurrency: items that run at once.
        window: items running, or finished and not yet taken.
        ordered: results in the order of the items.
    """

    def __init__(
        self,
        worker: Callable[[T], Awaitable[R]],
        inputs: Iterable[I] | AsyncIterable[I],
        expand: Callable[[I], Sequence[T]],
        concurrency: int,
        window: int,
        ordered: bool,
    ) -> None:
        self._worker, self._inputs, self._expand = worker, inputs, expand
        self._concurrency, self._window, self._ordered = concurrency, window, ordered
        self._running: dict[int, asyncio.Future[R]] = {}
        self._finished: deque[R] = deque()
        self._held: dict[int, R] = {}  # ordered only: finished before their turn
        self._started = 0
        self._taken = 0
        self._next = 0
        self._error: BaseException | None = None
        self._closed = self._draining = self._pulling = self._fed = False
        self._cancelled = self._feeder_cancelled = False
        self._feeder: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def running(self) -> int:
        """Items that run now."""
        return len(self._running)

    def open(self) -> None:
        """Start to pull inputs."""
        self._feeder = asyncio.get_running_loop().create_task(self._feed())
        self._feeder.add_done_callback(self._feeding_ended)

    async def more(self) -> bool:
        """Wait for a result; False at the end of the stream. Raises the stream's error."""
        while not self._finished:
            if self._error is not None:
                await self.close()
                raise self._error
            if self._fed and not self._running:
                return False
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return True

    def take(self) -> R:
        """The next result; there is one after `more` said so."""
        self._taken += 1
        _wake(self._room)
        return self._finished.popleft()

    def drain(self) -> None:
        """Pull no more; what runs finishes."""
        self._draining = True
        _wake(self._room)
        if self._pulling:
            self._cancel_feeder()

    async def abort(self, error: Exception) -> None:
        """End the stream with `error`, for whoever still reads it."""
        self._fail(error)
        await self.close()

    async def close(self) -> None:
        """Cancel and wait for everything this stream started. May be called again."""
        self._cancel_all()
        self._closed = True
        feeder = [self._feeder] if self._feeder is not None else []
        try:
            await settle([*feeder, *self._running.values()])
        finally:
            self._running.clear()  # all have ended, though not all may have reported it yet

    async def _feed(self) -> None:
        pull = _puller(self._inputs)
        while True:
            await self._wait_for_room()
            if self._draining:
                return
            self._pulling = True
            try:
                value = await pull()
            except asyncio.CancelledError:
                if self._draining and not self._closed:
                    return
                raise
            finally:
                self._pulling = False
            if value is _END or self._cancelled:  # inputs may swallow a cancellation
                return
            for item in self._expand(cast("I", value)):
                await self._wait_for_room()
                self._start(item)

    async def _wait_for_room(self) -> None:
        if self._started % _BREATH == _BREATH - 1:
            await asyncio.sleep(0)  # a burst of starts must not hold up everything else
        while (
            len(self._running) >= self._concurrency or self._started - self._taken >= self._window
        ):
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _start(self, item: T) -> None:
        index = self._started
        self._started += 1
        task = asyncio.ensure_future(self._worker(item))
        self._running[index] = task
        task.add_done_callback(partial(self._ended, index))

    def _ended(self, index: int, task: asyncio.Future[R]) -> None:
        self._running.pop(index, None)
        if task.cancelled():
            self._fail(InfraError("a task of this stream was cancelled by somebody else"))
        elif (error := task.exception()) is not None:
            self._fail(error)
        elif not self._closed and self._error is None:
            self._keep(index, task.result())
        _wake(self._room)
        _wake(self._news)

    def _keep(self, index: int, result: R) -> None:
        if not self._ordered:
            self._finished.append(result)
            return
        self._held[index] = result
        while self._next in self._held:
            self._finished.append(self._held.pop(self._next))
            self._next += 1

    def _feeding_ended(self, feeder: asyncio.Task[None]) -> None:
        self._fed = True
        if feeder.cancelled():
            self._fail(InfraError("the feeder of this stream was cancelled by somebody else"))
        elif (error := feeder.exception()) is not None:
            self._fail(error)
        _wake(self._news)

    def _fail(self, error: BaseException) -> None:
        if self._closed or self._error is not None:
            return
        self._error = error
        self._cancel_all()
        _wake(self._news)

    def _cancel_all(self) -> None:
        # Tasks are cancelled once only: a second time might cut their clean-up short.
        self._cancel_feeder()
        if not self._cancelled:
            self._cancelled = True
            for task in self._running.values():
                task.cancel()

    def _cancel_feeder(self) -> None:
        # The same holds for the clean-up of inputs, but a feeder outside them only waits.
        if self._feeder is not None and not (self._feeder_cancelled and self._pulling):
            self._feeder_cancelled = True
            self._feeder.cancel()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _puller(inputs: Iterable[I] | AsyncIterable[I]) -> Callable[[], Awaitable[I | object]]:
    if isinstance(inputs, AsyncIterable):
        asynchronous: AsyncIterator[I] = aiter(inputs)

        async def pull() -> Any:
            return await anext(asynchronous, _END)
    else:
        synchronous: Iterator[I] = iter(inputs)

        async def pull() -> Any:
            return next(synchronous, _END)

    return pull
