"""What `ramify verify` draws on a terminal."""

from __future__ import annotations

import asyncio
import io
import re

from rich.console import Console

from ramify.apps.pipeline.records import RunEvent
from ramify.cli.verify_view import VerifyView


def screen(height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=height, markup=False)


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def view_of(console: Console, *steps: str) -> VerifyView:
    return VerifyView(console, steps, live=True, follow=False)


def started(number: int, step: str) -> RunEvent:
    return RunEvent("step_started", "r", step=step, number=number)


def ended(number: int, step: str, status: str) -> RunEvent:
    return RunEvent("step_ended", "r", step=step, number=number, status=status, duration_ms=1500)


async def test_steps_are_marked_as_they_end() -> None:
    console = screen()
    view = view_of(console, "install", "[red]te[/red]", "deploy")
    async with view.shown():
        await asyncio.sleep(0.01)
        view.emit(started(1, "install"))
        view.emit(ended(1, "install", "passed"))
        view.emit(started(2, "[red]te[/red]"))
        view.emit(RunEvent("output", "r", text="first\nlast line [bold]\n\n"))
        await asyncio.sleep(0.3)
        assert view.tell("interrupted")
        await asyncio.sleep(0.3)
    out = drawn(console)
    assert "preparing ..." in out
    assert re.search(r"✓ install +1.5s", out)
    assert "[red]te[/red]" in out
    assert "last line [bold]" in out
    assert "interrupted" in out


async def test_a_long_pipeline_shows_what_runs() -> None:
    console = screen(height=10)
    names = [f"step{n}" for n in range(1, 51)]
    view = view_of(console, *names)
    for number, name in enumerate(names[:30], 1):
        view.emit(started(number, name))
        view.emit(ended(number, name, "passed"))
    view.emit(started(31, "step31"))
    async with view.shown():
        await asyncio.sleep(0.05)
    out = drawn(console)
    assert "step31" in out
    assert "step1 " not in out
    assert "step50" not in out


async def test_off_a_terminal_there_is_a_line_for_each_step() -> None:
    console = Console(file=io.StringIO(), width=80)
    view = VerifyView(console, ("a", "b"), live=False, follow=False)
    async with view.shown():
        view.emit(started(1, "a"))
        view.emit(RunEvent("output", "r", text="quiet"))
        view.emit(ended(1, "a", "passed"))
        view.emit(started(2, "b"))
        view.emit(RunEvent("step_ended", "r", step="b", number=2, status="failed", exit_code=124))
        assert not view.tell("interrupted")
    assert drawn(console) == "1/2 a  passed  1.5s\n2/2 b  failed (exit 124)  0ms\n"
