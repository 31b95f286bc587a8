"""A person who waits is told for what, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def waiting(out: Console, doing: str) -> Generator[Callable[[str], None]]:
    """On a terminal, show below what is printed what is being done, and since when.

    Yields a function that says what is done from now on. It prints nothing that stays, and
    nothing at all where there is no terminal.
    """
    if not out.is_terminal or out.is_dumb_terminal:
        yield _nothing
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as shown:
        task = shown.add_task(doing, total=None)

        def say(text: str) -> None:
            shown.reset(task, description=text)

        yield say


def _nothing(_text: str) -> None:
    """Nobody looks."""
