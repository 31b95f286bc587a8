"""The first interrupt ends work in order, the second one at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from ramify.cli.main import INTERRUPTED
from ramify.engine.cancel import Cancellation

_T = TypeVar("_T")

_SECOND_INTERRUPT_SEC = 1.5
"""How long clean-up may still take after the second interrupt."""


class _Loop(asyncio.SelectorEventLoop):
    """A loop that signals may reach while it is being closed.

    CPython closes the pipe that they are written to before it stops writing them there, and then
    complains of a bad descriptor.
    """

    def close(self) -> None:
        if not self.is_closed():
            signal.set_wakeup_fd(-1)
        super().close()


def own_loop() -> asyncio.Runner:
    """What a command runs its work on."""
    return asyncio.Runner(loop_factory=_Loop)


def listen_for_interrupts(cancel: Cancellation, doing: str) -> None:
    """Once: start nothing more, cancel, persist, clean up. Twice: now. `doing`: as it is told."""
    loop = asyncio.get_running_loop()
    main_task = asyncio.current_task()

    def interrupt() -> None:
        if not cancel.cancelled:
            click.echo(f"\ninterrupted: {doing} (again to stop now)", err=True)
            cancel.cancel("interrupted")
            return
        if main_task is not None:
            main_task.cancel()
        # Whatever cannot be cleaned up in this time goes with the supervisors, which end when
        # this process does.
        loop.call_later(_SECOND_INTERRUPT_SEC, os._exit, INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)


def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run work on a loop of its own, which an interrupt ends in order, and a second one soon.

    Without this a second interrupt is an exception in the midst of the loop, and whatever was being
    closed (processes, connections) is torn down by the interpreter, with complaints.

    Raises: KeyboardInterrupt when it was interrupted.
    """
    with own_loop() as runner:
        try:
            return runner.run(_interruptible(work))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _interruptible(work: Coroutine[Any, Any, _T]) -> _T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    told = False

    def interrupt() -> None:
        nonlocal told
        if told:
            loop.call_later(_SECOND_INTERRUPT_SEC, os._exit, INTERRUPTED)
            return
        told = True
        click.echo("\ninterrupted: cleaning up (again to stop now)", err=True)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    return await task
