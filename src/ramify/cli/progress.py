"""What is going on while a job runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ramify.cli.present import reward_text, seconds_text
from ramify.contracts.events import AnyEvent, LeaseEvent, LogEvent, OutcomeEvent, Phase, PhaseEvent
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome
from ramify.engine.job import Job
from ramify.envs.planned import PLAN_MADE

_SHOWN = 8
_REDRAW_SEC = 0.125


@dataclass(slots=True)
class Progress:
    """An observer that knows what each running rollout is doing.

    Attributes:
        console: where it prints.
        live: redraw in place (a terminal), or print a line per finished rollout.
        job: set when the job is open; gives counts and the binding limit.
        limits: limit → what was said about it in each rollout whose agent it ended.
        started: attempts that began; 0 where all was recorded before.
        told: results that were printed, a line each.
        repeats: whether a task is run more than once, so that its name says not which it is.
    """

    console: Console
    live: bool
    job: Job | None = None
    running: dict[str, tuple[Phase, float]] = field(default_factory=dict[str, tuple[Phase, float]])

    limits: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    started: int = 0
    told: int = 0
    repeats: bool = False

    def emit(self, event: AnyEvent) -> None:
        """Note what a rollout is doing. Draws nothing: the view does, at its own pace."""
        match event:
            case LeaseEvent():
                self.started += 1
                now = asyncio.get_running_loop().time()
                self.running[event.rollout_id] = (Phase.SETUP, now)
            case PhaseEvent(duration_sec=None) if event.rollout_id in self.running:
                self.running[event.rollout_id] = (
                    event.phase,
                    self.running[event.rollout_id][1],
                )
            case LogEvent(rollout_id="", level="warning"):
                facts = ", ".join(f"{key} {_plain(value)}" for key, value in event.fields.items())
                self.console.print(f"warning: {event.message} ({facts})", soft_wrap=True)
            case LogEvent(fields={"limit": str(limit), "detail": str(detail)}):
                self.limits.setdefault(limit, []).append(detail)
            case LogEvent(message=message, fields={"task": str(task), "why": str(why)}) if (
                message == PLAN_MADE
            ):
                self.console.print(f"plan: {task}: {why}", soft_wrap=True)
            case OutcomeEvent():
                self.running.pop(event.rollout_id, None)
            case _:
                pass

    def finished(self, result: RolloutResult) -> None:
        """A rollout's result is recorded."""
        if self.live or self.job is None:
            return
        self.told += 1
        planned = len(self.job.plan.slots)
        total = sum(result.timings.values())
        reason = f" ({result.invalid_reason})" if result.invalid_reason else ""
        again = f" #{result.repeat}" if self.repeats else ""
        self.console.print(
            f"[{self.told}/{planned}] {result.task_id}{again} "
            f"{result.outcome.value}{reason} reward {reward_text(result.reward)} "
            f"{seconds_text(total)}"
        )

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Show the live view, if there is a terminal to show it on.

        It is drawn on the event loop: what it shows belongs to that, and changes meanwhile.
        """
        if self.job is not None:
            self.repeats = any(repeat for _, repeat in self.job.plan.slots)
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

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self._view(), refresh=True)
            await asyncio.sleep(_REDRAW_SEC)

    def _view(self) -> RenderableType:
        if self.job is None:
            return Text("planning ...")
        summary = self.job.summary
        size = 40 if self.console.width >= 100 else 20
        bar = ProgressBar(total=max(summary.planned, 1), completed=summary.finished, width=size)
        head = Table.grid(padding=(0, 1))
        mean = "-" if summary.mean is None else f"{summary.mean:.3f}"
        binding = self.job.budgets.binding()
        unscored = [
            f"{count} {outcome}"
            for outcome, count in summary.outcomes.items()
            if outcome != Outcome.SCORED.value
        ]
        head.add_row(
            bar,
            f"{summary.finished}/{summary.planned}",
            f"mean {mean}",
            seconds_text(summary.wall_sec),
            Text(", ".join(unscored), style="yellow"),
            f"limited by {binding}" if binding else "",
        )
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_column(no_wrap=True, min_width=9)
        rows.add_column(no_wrap=True, justify="right", min_width=6)
        now = asyncio.get_running_loop().time()
        for rollout, (phase, since) in list(self.running.items())[:_SHOWN]:
            rows.add_row("  " + rollout, phase.value, seconds_text(now - since))
        if len(self.running) > _SHOWN:
            rows.add_row(f"  ... and {len(self.running) - _SHOWN} more", "", "")
        return Group(head, rows)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(str(entry) for entry in cast("Sequence[object]", value))
    return str(value)
