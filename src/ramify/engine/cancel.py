"""Stopping work: cancel scopes, deadlines that say their name, and ends that are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ramify.contracts.errors import LimitExceededError

T = TypeVar("T")


class Cancellation:
    """A cancel scope (`contracts.context.CancelScope`) with children.

    Cancelling a scope cancels everything below it, in the order in which it was made. A child
    keeps its parent alive, never the other way round, so finished work leaves nothing behind.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._event = asyncio.Event()
        self._parent: Cancellation | None = None
        self._numbers = count()
        self._children: WeakValueDictionary[int, Cancellation] = WeakValueDictionary()

    @property
    def cancelled(self) -> bool:
        """True once this scope or one above it was cancelled."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why, in a few words; the first reason given."""
        return self._reason

    def cancel(self, reason: str) -> None:
        """Ask everything in this scope to stop. Idempotent; the first reason stays."""
        if self._reason is not None:
            return
        self._reason = reason
        self._event.set()
        for child in list(self._children.values()):
            child.cancel(reason)

    async def wait(self) -> None:
        """Return when cancelled."""
        await self._event.wait()

    def child(self) -> Cancellation:
        """A scope that is cancelled with this one, and can be cancelled alone."""
        child = Cancellation()
        child._parent = self
        self._children[next(self._numbers)] = child
        if self._reason is not None:
            child.cancel(self._reason)
        return child


@asynccontextmanager
async def deadline(
    seconds: float | None, what: str, error: Callable[[str], Exception] | None = None
) -> AsyncGenerator[None]:
    """Give the body a time limit, and a name to its passing.

    Only this deadline's own passing becomes the named error. A cancellation from outside stays
    a CancelledError, even if the time ran out as well, and a TimeoutError that the body itself
    raised passes through unchanged.

    Args:
        seconds: the limit; None for none. Zero or less has passed already.
        what: what did not finish, for the message.
        error: makes the error from the message; by default a LimitExceededError naming `time`.

    Raises:
        LimitExceededError: or what `error` makes, when the time is over.
    """
    if seconds is None:
        yield
        return
    body_error: BaseException | None = None
    try:
        async with asyncio.timeout(seconds):
            try:
                yield
            except BaseException as raised:
                body_error = raised
                raise
    except TimeoutError as raised:
        if raised is body_error:
            raise
        message = f"{what} did not finish within {seconds:g} s"
        made = LimitExceededError("time", message) if error is None else error(message)
        raise made from None


async def stop(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until every one has ended, even if the caller is cancelled too.

    Errors that the tasks end with are theirs to report; they are marked as seen.
    """
    for task in tasks:
        task.cancel()
    await settle(tasks)


async def settle(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Like `stop`, for tasks that were cancelled already: a second time might cut their
    clean-up short.
    """
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error  # raised below: a task without an owner would be worse
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled is not None:
        raise cancelled
