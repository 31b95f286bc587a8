"""The first interrupt ends work in order, the second one at once."""

from __future__ import annotations

import asyncio
import os
import signal

import click

from ramify.cli.main import INTERRUPTED
from ramify.engine.cancel import Cancellation

_SECOND_INTERRUPT_SEC = 1.5
"""How long clean-up may still take after the second interrupt."""


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
