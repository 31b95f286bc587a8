"""A user's own functions, told what happens without being able to disturb it."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ramify.contracts.calls import Call, resolve
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, LimitExceededError, UsageError
from ramify.contracts.events import AnyEvent, Event, LogEvent, Observer
from ramify.contracts.result import RolloutResult
from ramify.engine.cancel import deadline, stop
from ramify.engine.onethread import OneThread

_MOST_HUNG = 8
_TYPES: dict[type, str] = {Event: "event", RolloutResult: "result"}


@dataclass(frozen=True, slots=True)
class _Subscription:
    call: Call
    wanted: tuple[type, ...]


class CallbackObserver:
    """Calls user functions for events and results: `async with CallbackObserver(…) as observer`.

    A function takes one parameter: named `event` or annotated with an event type (or a union of
    them: then only those come), or named `result` or annotated RolloutResult. Sync or async.

    Guarantees: events come in order, one call at a time; `emit` returns at once. A function that
    raises or takes longer than `call_sec` is reported once, as a LogEvent to `report`, and goes
    on being called; but a synchronous one, whose thread cannot be ended, only until it has hung
    8 times. Synchronous ones run in a thread of their own. When more than `queue_size` wait, newer
    ones are dropped, and their number is reported at the end. Leaving waits up to `drain_sec` for
    what is queued.

    Args:
        callbacks: the functions.
        report: where failures are told; not this observer.
        clock: for the time of reports.
        queue_size: events that may wait.
        call_sec, drain_sec: seconds.

    Raises:
        ConfigError: a function that asks for something else, before anything runs.
    """

    def __init__(
        self,
        callbacks: Sequence[Callable[..., Any]],
        report: Observer,
        clock: Clock,
        queue_size: int = 10_000,
        call_sec: float = 30.0,
        drain_sec: float = 30.0,
    ) -> None:
        if queue_size < 1:
            raise UsageError(f"queue_size must be at least 1, not {queue_size}")
        self._subscriptions = tuple(_subscribe(callback) for callback in callbacks)
        self._report, self._clock = report, clock
        self._queue: asyncio.Queue[AnyEvent | RolloutResult] = asyncio.Queue(queue_size)
        self._call_sec, self._drain_sec = call_sec, drain_sec
        self._failed: set[int] = set()
        self._hung: Counter[int] = Counter()
        self._thread = OneThread("callbacks")
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._deliver())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        task, self._task = self._task, None
        try:
            async with deadline(self._drain_sec, "telling callbacks"):
                await self._queue.join()
        except LimitExceededError:
            self._dropped += self._queue.qsize()  # reported below
        finally:
            if task is not None:
                await stop([task])
            self._thread.shutdown()
        if self._dropped:
            self._log("", "callbacks were too slow; events were dropped", dropped=self._dropped)

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        self._put(event)

    def finished(self, result: RolloutResult) -> None:
        """Take one result. Returns at once."""
        self._put(result)

    def _put(self, item: AnyEvent | RolloutResult) -> None:
        if not any(isinstance(item, s.wanted) for s in self._subscriptions):
            return
        if self._task is None or self._queue.full():
            self._dropped += 1
        else:
            self._queue.put_nowait(item)

    async def _deliver(self) -> None:
        while True:
            item = await self._queue.get()
            values = {"result" if isinstance(item, RolloutResult) else "event": item}
            for index, subscription in enumerate(self._subscriptions):
                if isinstance(item, subscription.wanted):
                    await self._call(index, subscription.call, values, item.rollout_id)
            self._queue.task_done()

    async def _call(self, index: int, call: Call, values: dict[str, Any], rollout: str) -> None:
        if self._hung[index] >= _MOST_HUNG:
            return
        try:
            async with deadline(self._call_sec, f"callback {call.name}"):
                await self._run(index, call, values)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # A user's function must not disturb the run, nor by raising a cancellation.
            if index not in self._failed:
                self._failed.add(index)
                self._log(
                    rollout,
                    "a callback failed; further failures of it are not reported",
                    callback=call.name,
                    error=f"{type(error).__name__}: {error}",
                )

    async def _run(self, index: int, call: Call, values: dict[str, Any]) -> None:
        function = call.bind(values)
        if call.is_async:
            await function()
            return
        returns = asyncio.get_running_loop().run_in_executor(self._thread, function)
        try:
            result = await returns
        finally:
            if returns.cancelled():
                self._write_off(index, call)
        if inspect.isawaitable(result):
            await result

    def _write_off(self, index: int, call: Call) -> None:
        """The thread is still in the function; others get a new one."""
        self._thread.shutdown()
        self._thread = OneThread("callbacks")
        self._hung[index] += 1
        if self._hung[index] == _MOST_HUNG:
            said = f"a callback hung {_MOST_HUNG} times and is not called any more"
            self._log("", said, callback=call.name)

    def _log(self, rollout: str, message: str, **fields: str | int) -> None:
        self._report.emit(LogEvent(rollout, self._clock.now(), "warning", message, dict(fields)))


def _subscribe(callback: Callable[..., Any]) -> _Subscription:
    """Resolve a callback; what it asks for decides what it is told."""
    call = resolve(callback, tuple(_TYPES.values()), _TYPES)
    if call.everything and not call.keywords:
        return _Subscription(call, tuple(_TYPES))
    if len(call.keywords) != 1:
        raise ConfigError(
            f"callback {call.name}() must take one of `event` and `result`, not "
            f"{len(call.keywords)} of them"
        )
    [(parameter, source)] = call.keywords.items()
    base = next(kind for kind, name in _TYPES.items() if name == source)
    return _Subscription(call, _annotated(callback, parameter, base) or (base,))


def _annotated(callback: Callable[..., Any], parameter: str, base: type) -> tuple[type, ...]:
    target = callback if inspect.isroutine(callback) else type(callback).__call__
    try:
        hint = typing.get_type_hints(target).get(parameter)
    except (NameError, TypeError):
        return ()  # names that only a type checker sees: no narrowing by type
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return tuple(kind for kind in options if isinstance(kind, type) and issubclass(kind, base))
