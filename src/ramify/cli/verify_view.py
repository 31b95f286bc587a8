"""What a person sees of `ramify verify`: steps while they run, then what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ramify.apps.pipeline.place import network_wish
from ramify.apps.pipeline.records import PipelineSpec, Response, RunEvent, StepReport
from ramify.cli.present import seconds_text

_REDRAW_SEC = 0.125
_TAIL_LINES = 30
_SHOWN = 20
_COLOURS = {"passed": "green", "failed": "bold red", "skipped": "dim", "PASS": "bold green",
            "FAIL": "bold red", "error": "bold red"}  # fmt: skip
_MARKS = {"passed": "✓", "failed": "✗"}


@dataclass(slots=True)
class VerifyView:
    """Takes the events of a run and shows them.

    Attributes:
        console: where it prints.
        steps: names of the steps, in order.
        live: redraw in place (a terminal), or print a line per step.
        follow: print the output of steps as it comes instead.
    """

    console: Console
    steps: tuple[str, ...]
    live: bool
    follow: bool
    _ended: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])
    _running: tuple[int, float] | None = None
    _line: str = ""
    _told: Text | None = None

    def emit(self, event: RunEvent) -> None:
        """Note what happens."""
        match event.kind:
            case "step_started":
                self._running = (event.number, asyncio.get_running_loop().time())
                self._line = ""
                if self.follow:
                    title = Text(f"── {self._title(event.number)}", style="bold")
                    self.console.print(title, soft_wrap=True)
            case "output":
                self._output(event.text)
            case "step_ended":
                self._running = None
                self._ended[event.number] = (event.status, event.duration_ms / 1000)
                if not self.live:
                    self.console.print(self._ending(event), soft_wrap=True)
            case "run_started" | "run_ended":
                pass

    def tell(self, line: str) -> bool:
        """Show a line below the steps; False where there is no live view to show it in."""
        self._told = Text(line, style="yellow")
        return self.live

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Show the live view, where there is a terminal for it."""
        if not self.live:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            drawing = asyncio.create_task(self._draw(live))
            try:
                yield
            finally:
                drawing.cancel()
                await asyncio.wait([drawing])
        if not drawing.cancelled():
            drawing.result()

    def _output(self, text: str) -> None:
        if self.follow:
            self.console.print(Text(text), soft_wrap=True)
        elif lines := [line for line in text.splitlines() if line.strip()]:
            self._line = lines[-1]

    def _title(self, number: int) -> str:
        return f"{number}/{len(self.steps)} {self.steps[number - 1]}"

    def _ending(self, event: RunEvent) -> Text:
        text = Text(f"{self._title(event.number)}  ")
        text.append(event.status, style=_COLOURS.get(event.status, ""))
        if event.exit_code:
            text.append(f" (exit {event.exit_code})")
        return text.append(f"  {seconds_text(event.duration_ms / 1000)}", style="dim")

    async def _draw(self, live: Live) -> None:
        spinner = Spinner("dots", style="cyan")
        while True:
            live.update(self._view(spinner), refresh=True)
            await asyncio.sleep(_REDRAW_SEC)

    def _view(self, spinner: Spinner) -> RenderableType:
        rows = Table.grid(padding=(0, 1))
        rows.add_column(width=1)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_column(no_wrap=True, justify="right", min_width=6)
        now = asyncio.get_running_loop().time()
        room = max(3, self.console.height - 3)
        numbers = range(1, len(self.steps) + 1)
        shown = _around(numbers, self._running[0] if self._running else len(self._ended), room)
        for number in shown:
            name = self.steps[number - 1]
            if number in self._ended:
                status, took = self._ended[number]
                mark = Text(_MARKS.get(status, "-"), style=_COLOURS.get(status, ""))
                rows.add_row(mark, name, Text(seconds_text(took), style="dim"))
            elif self._running and self._running[0] == number:
                took = seconds_text(now - self._running[1])
                rows.add_row(spinner, Text(name, style="bold"), took)
            else:
                rows.add_row("", Text(name, style="dim"), "")
        if self._told is not None:
            return Group(rows, self._told)
        if self._running is None:
            what = "finishing ..." if self._ended else "preparing ..."
            return Group(rows, Text(what, style="dim"))
        line = Text(self._line.strip(), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(rows, line)


def _around(numbers: range, middle: int, room: int) -> range:
    """The part of a long list that fits, with `middle` in it."""
    if len(numbers) <= room:
        return numbers
    first = min(max(1, middle - room // 2), len(numbers) - room + 1)
    return range(first, first + room)


def report_lines(
    response: Response, run: Path, *, why: str, width: int, tail: bool
) -> Iterator[RenderableType]:
    """What came of a run, for a person.

    `run` is its directory, `why` says why the sandbox is not the preferred one, `tail`: with the
    last output where it failed.
    """
    yield _steps_table(response.manifest.steps, run, width)
    yield Text()
    if not response.passed:
        yield from _failure(response, _TAIL_LINES if tail else 0)
    yield _marked(f"{response.status:<10}", _COLOURS[response.status], response.message)
    if tests := response.tests:
        counts = f"{tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped"
        yield Text(f"tests     {counts}")
        for name in tests.unreadable[:_SHOWN]:
            yield Text(f"          report not readable: {_safe(name)}", style="yellow")
    manifest = response.manifest
    if response.unpinned:
        yield Text("unpinned  no commit holds agent.yaml, so the working copy's was used")
    for path in manifest.changed_config:
        yield Text(f"changed   {_safe(path)}: not as the commit has it; no step was run")
    if manifest.restored:
        yield Text(f"restored  {', '.join(_safe(path) for path in manifest.restored[:_SHOWN])}")
    where = manifest.platform.sandbox
    line = Text(f"sandbox   {where}, image {_safe(manifest.platform.container_image)}")
    yield line.append(f"  ({why})" if why else "", style="dim")
    yield Text(f"run       {response.run_id}")
    yield Text(f"artifacts {run}")


def _failure(response: Response, tail: int) -> Iterator[RenderableType]:
    """Why it failed: forbidden writes, failing tests, and the end of the output."""
    for violation in response.write_violations[:_SHOWN]:
        said = f"{_safe(violation.path)}  (step {violation.step})"
        yield _marked(f"{violation.kind:<8}", "bold red", said)
    if (more := len(response.write_violations) - _SHOWN) > 0:
        yield Text(f"... and {more} more")
    if any(violation.kind == "new" for violation in response.write_violations):
        yield Text("what steps make belongs into .gitignore (or: repo_write: discard)")
    if tests := response.tests:
        failing = [case for case in tests.items if case.status in ("failed", "error")]
        for case in failing[:_SHOWN]:
            line = _marked(f"{case.status:<8}", "bold red", _safe(case.id))
            said = case.message.strip().splitlines()
            yield line.append(f"  {_safe(said[0])[:200]}" if said else "", style="dim")
        if (more := len(failing) - _SHOWN) > 0:
            yield Text(f"... and {more} more failing tests")
    if tail and (lines := response.tail_log.splitlines()[-tail:]):
        yield Text("\n".join(f"│ {line}" for line in lines), style="dim")
        yield Text()


def _steps_table(steps: tuple[StepReport, ...], run: Path, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    logs = any(len(str(run / step.log)) + 45 <= width for step in steps if step.log)
    names: tuple[str, ...] = ("step", "status", "exit", "time", *(("log",) if logs else ()))
    for name in names:
        right = name in ("exit", "time")
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    for step in steps:
        ran = step.exit_code is not None
        log = [str(run / step.log) if step.log else "-"] if logs else []
        table.add_row(
            step.name,
            Text(_status(step), style=_COLOURS.get(step.status, "")),
            str(step.exit_code) if ran else "-",
            seconds_text(step.duration_ms / 1000) if ran else "-",
            *log,
        )
    return table


def _status(step: StepReport) -> str:
    """The status, and what a bare exit code would not say."""
    reasons = (
        (step.timed_out, "timed out"),
        (step.oom_killed, "out of memory"),
        (bool(step.write_violations), "forbidden write"),
    )
    why = ", ".join(text for holds, text in reasons if holds)
    return f"{step.status} ({why})" if why else step.status


def plan_lines(spec: PipelineSpec, facts: dict[str, str]) -> Iterator[RenderableType]:
    """What would be run, for `--dry-run`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "network", "timeout", "command"):
        table.add_column(name, overflow="fold")
    for step in spec.steps:
        timeout = "-" if step.timeout_sec is None else seconds_text(step.timeout_sec)
        table.add_row(step.name, network_wish(step), timeout, step.command.strip())
    yield table
    yield Text()
    for name, value in facts.items():
        yield Text(f"{name:<10}{value}")


def _marked(mark: str, style: str, text: str) -> Text:
    return Text().append(mark, style=style).append(text)


def _safe(text: str) -> str:
    """A name from the inside, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
