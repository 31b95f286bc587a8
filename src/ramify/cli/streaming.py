"""`ramify score --stream`: a rubric as a monitor over what comes in from production."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from rich.console import Console

from ramify import compose
from ramify.cli.interrupts import listen_for_interrupts, own_loop
from ramify.cli.main import FAILED, INTERRUPTED
from ramify.cli.present import console, grading_lines, metrics_table
from ramify.contracts.errors import ConfigError
from ramify.contracts.scratch import Scratch
from ramify.edges.inbound.trajectories import TrajectoryReader
from ramify.engine.cancel import Cancellation
from ramify.engine.clock import SystemClock
from ramify.engine.observe import FanOut, LoggingObserver
from ramify.envs.monitor import Monitor, Watched, WatchSummary
from ramify.envs.options import RunOptions
from ramify.envs.recorded import Surroundings
from ramify.envs.rubrics import load_reward
from ramify.envs.tail import STANDARD_INPUT, tail
from ramify.envs.verifiers import judge_of

_SHOWN_PROBLEMS = 10


def watch(
    stream: str,
    rubric: str,
    tasks: str | None,
    options: RunOptions,
    *,
    follow: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Score the lines of a file as they come; the exit code.

    0: each has its score; 1: some could not be scored; 130: interrupted.

    Raises:
        UsageError: there is no such file or rubric.
    """
    with own_loop() as runner:
        try:
            return runner.run(_watch(stream, rubric, tasks, options, follow, out, as_json))
        except asyncio.CancelledError:  # the second interrupt
            return INTERRUPTED


async def _watch(
    stream: str,
    rubric: str,
    tasks: str | None,
    options: RunOptions,
    follow: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    clock, cancel, summary = SystemClock(), Cancellation(), WatchSummary()
    listen_for_interrupts(cancel, "scoring what was read")
    told = console(stderr=True)
    async with AsyncExitStack() as stack:
        judge = judge_of(
            options.judge_model,
            options.judge_base_url,
            options.judge_options,
            (None, None),
            clock,
            options.seed,
        )
        if judge is not None:
            stack.push_async_callback(judge.aclose)
        reader = TrajectoryReader(compose.taskset(tasks) if tasks else None)
        # What is scored has ended; its scope is not that of the stream.
        around = Surroundings(clock, Cancellation(), FanOut([LoggingObserver()]))
        folder = await stack.enter_async_context(Scratch())
        reward = load_reward(rubric, judge)
        monitor = Monitor(reader.read, reward, around, folder, options.concurrency)
        lines = await stack.enter_async_context(aclosing(tail(stream, cancel, follow=follow)))
        target = stack.enter_context(_open(out)) if out else sys.stdout.buffer
        scored = await stack.enter_async_context(aclosing(monitor.watch(lines)))
        async for found in scored:
            summary.add(found)
            _tell_problems(told, stream, found, summary)
            await asyncio.to_thread(_write, target, found)
    if as_json:
        click.echo(_as_json(summary), err=True)
    else:
        _print(told, summary, out)
    if cancel.cancelled:
        return INTERRUPTED
    return 0 if summary.whole else FAILED


def _open(out: Path) -> BinaryIO:
    try:
        return out.open("wb")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(out)) from None


def _write(target: BinaryIO, found: Sequence[Watched]) -> None:
    """One line per trajectory. Blocks: whoever reads may be slow."""
    target.write(b"".join(msgspec.json.encode(one) + b"\n" for one in found))
    target.flush()


def _tell_problems(
    told: Console, stream: str, found: Sequence[Watched], summary: WatchSummary
) -> None:
    """Say which lines hold nothing, as far as that can be read; the summary counts them all."""
    name = "standard input" if stream == STANDARD_INPUT else stream
    for one in found:
        if one.problem and summary.bad <= _SHOWN_PROBLEMS:
            told.print(f"{name}: line {one.line} {one.problem}", soft_wrap=True)
    if summary.bad == _SHOWN_PROBLEMS + 1 and any(one.problem for one in found):
        told.print(f"{name}: more such lines are counted, and stand in the output")


def _as_json(summary: WatchSummary) -> str:
    counts = {
        name: getattr(summary, name)
        for name in ("lines", "scored", "unscored", "skipped", "bad", "suspect", "grading")
    }
    return msgspec.json.encode({**counts, "metrics": list(summary.metrics)}).decode()


def _print(told: Console, summary: WatchSummary, out: Path | None) -> None:
    told.print()
    told.print(metrics_table(summary.metrics))
    told.print()
    told.print(f"lines     {summary.lines}")
    counts = [f"{summary.scored} scored"]
    counts += [f"{summary.unscored} could not be scored"] if summary.unscored else []
    counts += [f"{summary.skipped} never had a score"] if summary.skipped else []
    told.print(f"paths     {', '.join(counts)}")
    if summary.bad:
        told.print(f"bad       {summary.bad} lines hold no trajectory", style="red")
    if summary.pending:
        names = ", ".join(sorted(summary.pending))
        told.print(f"left out  {names}: compare siblings, which a line has none of", soft_wrap=True)
    for text in grading_lines(summary.grading):
        told.print(text)
    style = "bold red" if summary.suspect else ""
    told.print(f"alerts    {summary.suspect} suspect", style=style)
    if out is not None:
        told.print(f"scores    {out}", soft_wrap=True)
