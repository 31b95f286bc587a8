"""Tables that can be read at a glance."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ramify.contracts.events import Phase
from ramify.contracts.messages import Usage
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome
from ramify.engine.summary import JobSummary
from ramify.envs.tallies import MetricSummary

_COLOURS = {
    Outcome.SCORED: "green",
    Outcome.AGENT_ERROR: "yellow",
    Outcome.AGENT_TIMEOUT: "yellow",
    Outcome.INVALID: "red",
    Outcome.ENV_ERROR: "magenta",
    Outcome.INFRA_ERROR: "magenta",
    Outcome.CANCELLED: "dim",
}


_WIDE = 400
"""Columns off a terminal: whatever reads that can read long lines, and nothing may be cut."""


def console(*, stderr: bool = False) -> Console:
    """A console for people. Text from sandboxes is printed without markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(stderr=stderr, markup=False, highlight=False, width=width)


def is_terminal() -> bool:
    """Whether standard output goes to a person's terminal."""
    return sys.stdout.isatty()


SHOWN_ROWS = 200
"""Rows of a table that nobody reads further; more of them take long to lay out."""


def first_rows(
    results: Iterable[RolloutResult], limit: int | None = SHOWN_ROWS
) -> tuple[list[RolloutResult], int]:
    """The first so many results by task and repeat, and how many are left out (None: none)."""
    ordered = sorted(results, key=lambda r: (r.task_id, r.repeat))
    shown = ordered[:limit]
    return shown, len(ordered) - len(shown)


def results_table(results: Sequence[RolloutResult], width: int = _WIDE) -> Table:
    """One row per rollout: task, outcome, reward, time split by phase, tokens, cost.

    Where that is wider than `width`, what a person needs least is left out, so that no word is
    cut or broken; a column in which nothing stands is left out in any case.
    """
    rows = [_cells(r) for r in sorted(results, key=lambda r: (r.task_id, r.repeat))]
    columns = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in _COLUMNS}
    if not any(result.repeat for result in results):
        del columns["#"]
    if all(result.leaves == 1 for result in results):
        del columns["leaves"]
    if not any(result.reward_errors for result in results):
        del columns["errors"]
    for name in ("tokens", "cost"):
        if all(str(row[name]) == "-" for row in rows):
            del columns[name]
    for name in _LEFT_OUT_FIRST:
        if sum(columns.values()) + 2 * len(columns) - 2 > width:
            columns.pop(name, None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify=_COLUMNS[name], no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


_LEFT_OUT_FIRST = ("start", "verify", "graded on", "cost", "agent", "tokens", "total")
_COLUMNS: Mapping[str, Literal["left", "right"]] = {
    "task": "left", "#": "right", "outcome": "left", "reward": "right", "leaves": "right",
    "errors": "right",
    "graded on": "left", "start": "right", "agent": "right", "verify": "right",
    "total": "right", "tokens": "right", "cost": "right",
}  # fmt: skip


def _cells(result: RolloutResult) -> dict[str, str | Text]:
    reason = f" ({result.invalid_reason})" if result.invalid_reason else ""
    start, agent, verify, total = (seconds_text(value) for value in phase_split(result))
    return {
        "task": result.task_id,
        "#": str(result.repeat),
        "outcome": Text(result.outcome.value + reason, style=_COLOURS[result.outcome]),
        "reward": _value(result),
        "leaves": _leaves(result),
        "errors": str(len(result.reward_errors) or "-"),
        "graded on": result.grader_isolation or "-",
        "start": start,
        "agent": agent,
        "verify": verify,
        "total": total,
        "tokens": _tokens(result),
        "cost": cost_text(result.cost_usd),
    }


def _value(result: RolloutResult) -> str:
    """The reward; of a tree, the value of its root with its standard error."""
    text = reward_text(result.reward)
    if result.pending:
        text += " provisional"
    if result.reward_se is not None:
        text += f" ± {result.reward_se:.2f}"
    return f"{text} biased" if result.biased else text


def _leaves(result: RolloutResult) -> str:
    return f"{result.leaves} ({result.dropped} dropped)" if result.dropped else str(result.leaves)


def phase_split(result: RolloutResult) -> tuple[float, float, float, float]:
    """Seconds until the agent could start, of the agent, of verification, and in all."""
    took = result.timings
    before = (Phase.SETUP, Phase.START, Phase.PROVISION, Phase.READINESS, Phase.CONNECT)
    start = sum(took.get(phase, 0.0) for phase in before)
    return (
        start,
        took.get(Phase.EXECUTE, 0.0) + took.get(Phase.BRANCH, 0.0),
        took.get(Phase.VERIFY, 0.0),
        sum(took.values()),
    )


def metrics_table(metrics: Iterable[MetricSummary]) -> Table:
    """One row per part of a reward: how many have it, their mean with its interval, errors."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for name in ("count", "mean", "95 % interval", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in metrics:
        known = one.low is not None and one.high is not None
        errors = Text(str(one.errors or "-"), style="red" if one.errors else "")
        table.add_row(
            one.name,
            str(one.count),
            "-" if one.mean is None else f"{one.mean:.3f}",
            f"{one.low:.3f} .. {one.high:.3f}" if known else "-",
            errors,
        )
    return table


def summary_lines(summary: JobSummary) -> Iterable[str]:
    """Totals, for a person."""
    counts = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items()) or "none"
    yield f"rollouts  {summary.finished}/{summary.planned} ({counts})"
    if summary.mean is None:
        yield "reward    not known (no rollout was scored)"
    else:
        error = f" ± {summary.stderr:.3f} (SE)" if summary.stderr is not None else ""
        yield f"reward    mean {summary.mean:.3f}{error} over {summary.counted} counted"
    if summary.unscored:
        yield f"unscored  {summary.unscored} never scored; run the same command again to retry"
    if summary.reward_errors:
        parts = ", ".join(f"{name} on {count}" for name, count in summary.reward_errors.items())
        yield f"errors    parts of the reward could not be computed: {parts}"
    if summary.pending:
        yield (
            f"pending   {summary.pending} rewards are provisional: not all siblings have finished; "
            "run the same command again"
        )
    usage = summary.usage
    if usage.calls or usage.input_tokens:
        tokens = f"{usage.input_tokens:,} in, {usage.output_tokens:,} out"
        yield f"tokens    {tokens}, cost {cost_text(usage.cost_usd)}"
    yield from grading_lines(summary.grading)
    yield f"time      {seconds_text(summary.wall_sec)} wall"


def grading_lines(used: Usage) -> Iterable[str]:
    """What judges and agents that grade cost, where any was asked."""
    if used.calls or used.input_tokens:
        tokens = f"{used.input_tokens:,} in, {used.output_tokens:,} out"
        yield f"judging   {tokens}, cost {cost_text(used.cost_usd)}"


def error_lines(results: Iterable[RolloutResult], limit: int = 10) -> Iterable[str]:
    """What went wrong, a line per rollout that has an error."""
    results = list(results)
    failed = [r for r in results if r.error is not None and r.outcome is not Outcome.CANCELLED]
    for result in failed[:limit]:
        error = result.error
        if error is not None:
            said = _in_a_line(error.message) or error.code
            yield f"{result.task_id} #{result.repeat}: {error.phase}: {said}"
    if len(failed) > limit:
        yield f"... and {len(failed) - limit} more"
    partly = [r for r in results if r.error is None and r.reward_errors]
    for result in partly[:limit]:
        said = "; ".join(f"{name}: {text}" for name, text in result.reward_errors.items())
        yield f"{result.task_id} #{result.repeat}: without {said}"[:400]
    if len(partly) > limit:
        yield f"... and {len(partly) - limit} more that lack parts of the reward"


_LONGEST = 600
"""Of a line about an error; what can be done about it stands at its end."""


def _in_a_line(message: str) -> str:
    """A message's first line; where that announces a log, with the last line of it."""
    lines = message.strip().splitlines() or [""]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{_cut(lines[0])} {_cut(lines[-1].strip())}"
    return _cut(lines[0])


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} … (--json has it whole)"


def reward_text(reward: float | None) -> str:
    """A reward, or a dash: not scored is not 0."""
    return "-" if reward is None else f"{reward:.3f}".rstrip("0").rstrip(".") + (
        ".0" if float(reward).is_integer() else ""
    )  # fmt: skip


def seconds_text(seconds: float) -> str:
    """A duration in at most six characters."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 120:
        return f"{seconds:.1f}s"
    return f"{seconds / 60:.1f}m"


def cost_text(cost: float | None) -> str:
    """Dollars, or a dash where the price is not known."""
    return "-" if cost is None else f"${cost:.4f}"


def _tokens(result: RolloutResult) -> str:
    total = result.usage.input_tokens + result.usage.output_tokens
    return f"{total:,}" if total else "-"
