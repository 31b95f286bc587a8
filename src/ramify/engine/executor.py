"""Many items at once, as a stream: bounded on both sides, nothing left running afterwards."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar, cast

from ramify.contracts.errors import UsageError
from ramify.engine.stream import Stream

T = TypeVar("T")
R = TypeVar("R")


class Executor(Generic[T, R]):
    """Runs a worker over inputs: `async for result in engine.generate(inputs)`.

    Guarantees, for each stream:

    1. Inputs are pulled one at a time, only when there is room; they may be endless.
    2. At most `concurrency` items run, and at most `concurrency + buffer` are running or
       finished without the consumer having taken the result. A slow consumer thus slows the
       work, and slow work the inputs.
    3. When the stream ends, for whatever reason (end of inputs, `break`, `aclose`,
       cancellation, an error), all that it started is cancelled and waited for. After a plain
       `break` Python closes the stream in the background; `async with Executor(…)` waits for
       that too.
    4. An exception of the worker or of the inputs cancels the rest and ends the stream with
       that exception, after the results that had finished before it. A worker that wants
       errors per item returns them.

    Limits that several streams share belong into the worker (`engine.limits.Budgets`).

    Args:
        worker: called once for each item.
        concurrency: items that run at once, at least 1.
        buffer: finished results that may wait, 0 or more; by default as many as `concurrency`.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(
        self,
        worker: Callable[[T], Awaitable[R]],
        concurrency: int,
        buffer: int | None = None,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"concurrency must be at least 1, not {concurrency}")
        if buffer is not None and buffer < 0:
            raise UsageError(f"buffer must be 0 or more, not {buffer}")
        self._worker = worker
        self._concurrency = concurrency
        self._window = concurrency + (concurrency if buffer is None else buffer)
        self._streams: dict[int, Stream[Any, Any, Any]] = {}
        self._draining = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in list(self._streams.values()):
            await stream.abort(UsageError("the executor was closed while a stream was being read"))

    @property
    def running(self) -> int:
        """Items that run now, in all streams."""
        return sum(stream.running for stream in self._streams.values())

    def drain(self) -> None:
        """Pull no more inputs, now or later; what runs finishes and its results still come.

        A group that was begun is finished.
        """
        self._draining = True
        for stream in self._streams.values():
            stream.drain()

    def generate(
        self, inputs: Iterable[T] | AsyncIterable[T], ordered: bool = False
    ) -> AsyncGenerator[R]:
        """Results as they finish, or (`ordered`) in the order of the inputs.

        A synchronous iterable is read on the event loop, so it must not block.

        Raises:
            Exception: what the worker or the inputs raised.
            InfraError: somebody else cancelled a task of this stream.
        """
        return self._stream(self._worker, inputs, _single, ordered)

    async def generate_groups(
        self, groups: Iterable[Iterable[T]] | AsyncIterable[Iterable[T]], ordered: bool = False
    ) -> AsyncGenerator[list[R]]:
        """Like `generate`, but each group comes as one list, in its order, when all of it is done.

        Members run in parallel under the same `concurrency`, and groups overlap. At most
        `concurrency + buffer + 1` groups are unfinished at a time.
        """
        worker = self._worker

        async def run_member(member: _Member[T]) -> _Group:
            if member.index is not None:
                member.group.results[member.index] = await worker(cast("T", member.value))
            return member.group

        async with aclosing(self._stream(run_member, groups, _members, ordered)) as finished:
            async for group in finished:
                group.missing -= 1
                if not group.missing:
                    yield group.results

    async def _stream(
        self,
        worker: Callable[[Any], Awaitable[Any]],
        inputs: Iterable[Any] | AsyncIterable[Any],
        expand: Callable[[Any], Sequence[Any]],
        ordered: bool,
    ) -> AsyncGenerator[Any]:
        stream = Stream(worker, inputs, expand, self._concurrency, self._window, ordered)
        self._streams[id(stream)] = stream
        try:
            stream.open()
            if self._draining:
                stream.drain()
            while await stream.more():
                yield stream.take()
        finally:
            try:
                await stream.close()
            finally:
                del self._streams[id(stream)]


@dataclass(slots=True)
class _Group:
    results: list[Any]
    missing: int


@dataclass(frozen=True, slots=True)
class _Member(Generic[T]):
    group: _Group
    index: int | None = None
    value: T | None = field(default=None)


def _single(item: T) -> tuple[T]:
    return (item,)


def _members(values: Iterable[T]) -> list[_Member[T]]:
    items = list(values)
    if not items:  # one member that does nothing, so that the empty group comes back too
        return [_Member(_Group([], 1))]
    group = _Group([None] * len(items), len(items))
    return [_Member(group, index, value) for index, value in enumerate(items)]
