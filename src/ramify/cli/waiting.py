"""A person who waits is told for what, and for how long."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a person who waits is shown; nothing where nobody looks."""

    doing: str
    shown: Progress | None = None
    task: TaskID = TaskID(0)

    def now(self, doing: str) -> None:
        """Something else is done from now on."""
        if self.shown is not None:
            self.shown.reset(self.task, description=doing)

    def count(self, done: int, total: int) -> None:
        """So much of it is done."""
        if self.shown is not None:
            self.shown.update(self.task, description=f"{self.doing}: {done}/{total}")


@contextmanager
def waiting(out: Console, doing: str) -> Generator[Waiting]:
    """On a terminal, show below what is printed what is being done, and since when.

    It prints nothing that stays, and nothing at all where there is no terminal.
    """
    if not out.is_terminal or out.is_dumb_terminal:
        yield Waiting(doing)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as shown:
        yield Waiting(doing, shown, shown.add_task(doing, total=None))
