"""`ramify score`: score a finished job again, or what comes in from production."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from ramify.cli.interrupts import to_its_end
from ramify.cli.main import INFRASTRUCTURE
from ramify.cli.options import is_run_directory, pairs, rubric_options
from ramify.cli.present import (
    console,
    error_lines,
    metrics_table,
    reward_text,
    summary_lines,
)
from ramify.cli.streaming import watch
from ramify.cli.waiting import waiting
from ramify.contracts.errors import UsageError
from ramify.contracts.task import IsolationLevel
from ramify.envs.options import RunOptions
from ramify.envs.rescore import score_records
from ramify.envs.score import ScoreReport, score_job
from ramify.envs.tallies import Tallies


@click.command("score")
@click.argument("job", required=False, callback=is_run_directory, metavar="[RUN]",
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@rubric_options
@click.option("--stream", metavar="FILE",
              help="Score trajectories in this file of JSON lines (- is standard input).",
              )  # fmt: skip
@click.option("--follow", is_flag=True, help="Wait for more lines until interrupted.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where the scores of --stream go (default: standard output).")  # fmt: skip
@click.option("--tasks", metavar="TASKS", help="Where the tasks are (default: as recorded).")
@click.option("-s", "--sandbox", metavar="NAME", help="Where to verify (default: as recorded).")
@click.option("--isolation", type=click.Choice([level.value for level in IsolationLevel][:2]),
              help="Verify at this level.")  # fmt: skip
@click.option("-c", "--concurrency", default=4, show_default=True, help="Rollouts at once.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(
    job: Path | None,
    rubric: str | None,
    judge_model: str | None,
    judge_base_url: str | None,
    judge_option: tuple[str, ...],
    stream: str | None,
    follow: bool,
    out: Path | None,
    tasks: str | None,
    sandbox: str | None,
    isolation: str | None,
    concurrency: int,
    as_json: bool,
) -> int:
    """Score what was recorded, without running agents.

    Of RUN, the tests verify again what the rollouts left behind, as they stand now; with --rubric,
    that scores the trajectories. The new scores are kept below RUN/scores. With --stream, the
    rubric scores trajectories as they come: lines of `ramify export`, or {"messages": [...]} with
    "task", "answer" and "info" where they are known.
    """
    options = RunOptions(
        concurrency=concurrency,
        isolation=IsolationLevel(isolation) if isolation else None,
        judge_model=judge_model,
        judge_base_url=judge_base_url,
        judge_options=pairs(judge_option, "-J"),
    )
    if stream is not None:
        if rubric is None:
            raise UsageError("--stream needs the rubric to score with; give --rubric PLACE")
        if job is not None or sandbox is not None or isolation is not None:
            raise UsageError("--stream scores lines, not a RUN, and makes no sandbox")
        return watch(stream, rubric, tasks, options, follow=follow, out=out, as_json=as_json)
    if job is None:
        raise UsageError("name the RUN to score, or a FILE of trajectories with --stream")
    if follow or out is not None:
        raise UsageError("--follow and --out go with --stream; scores of a RUN are kept below it")
    if rubric is not None and (sandbox is not None or isolation is not None):
        raise UsageError("--rubric scores records and makes no sandbox; leave it out to verify")
    with waiting(console(stderr=True), f"scoring {job}") as shown:
        if rubric is None:
            again = score_job(
                job, tasks=tasks, sandbox=sandbox, options=options, scored=shown.count
            )
        else:
            again = score_records(job, rubric, tasks=tasks, options=options, scored=shown.count)
        found = to_its_end(again)
    if as_json:
        _print_json(found)
    elif rubric is None:
        _print(found)
    else:
        _print_scores(found)
    return 0 if found.report.summary.complete else INFRASTRUCTURE


def _print_json(found: ScoreReport) -> None:
    for entry in found.rollouts:
        record = {"before": entry.before, "after": entry.after, "changed": entry.changed}
        click.echo(msgspec.json.encode(record).decode())
    totals = {
        "before": found.before,
        "after": found.report.summary,
        "left_alone": found.left_alone,
        "unknown_tasks": found.unknown_tasks,
    }
    click.echo(msgspec.json.encode({**totals, "path": str(found.report.path)}).decode())


def _print(found: ScoreReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "#", "was", "graded on", "is", "graded on", ""):
        table.add_column(name, overflow="fold", no_wrap=name == "task")
    for entry in found.rollouts:
        before, after = entry.before, entry.after
        table.add_row(
            before.task_id,
            str(before.repeat),
            reward_text(before.reward),
            before.grader_isolation or "-",
            reward_text(after.reward),
            after.grader_isolation or "-",
            "changed" if entry.changed else "",
        )
    out = console()
    out.print(table)
    out.print()
    for line in error_lines([entry.after for entry in found.rollouts]):
        out.print(line, soft_wrap=True)
    for result in found.left_alone:
        level = result.grader_isolation
        out.print(f"{result.task_id} #{result.repeat}: left alone: it needs level `{level}`")
    _print_summary(found)


def _print_scores(found: ScoreReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "#", "outcome", "was", "is", "errors", ""):
        right = name in ("#", "was", "is", "errors")
        side = "right" if right else "left"
        table.add_column(name, overflow="fold", justify=side, no_wrap=name == "task")
    parts = Tallies()
    for entry in found.rollouts:
        before, after = entry.before, entry.after
        parts.add({**after.items, "reward": after.reward}, after.reward_errors)
        table.add_row(
            before.task_id,
            str(before.repeat),
            after.outcome.value,
            reward_text(before.reward),
            reward_text(after.reward),
            str(len(after.reward_errors) or "-"),
            "changed" if entry.changed else "",
        )
    out = console()
    out.print(table)
    out.print()
    out.print(metrics_table(parts))
    out.print()
    for line in error_lines([entry.after for entry in found.rollouts]):
        out.print(line, soft_wrap=True)
    for result in found.left_alone:
        said = f"{result.task_id} #{result.repeat}: left alone: it ended with {result.outcome}"
        out.print(said, soft_wrap=True)
    if found.unknown_tasks:
        names = ", ".join(found.unknown_tasks[:3]) + (" ..." if found.unknown_tasks[3:] else "")
        said = f"{len(found.unknown_tasks)} tasks were not found ({names}): of them only the "
        out.print(f"{said}prompt is known, no answer; name them with --tasks", soft_wrap=True)
    _print_summary(found)


def _print_summary(found: ScoreReport) -> None:
    out = console()
    was = "-" if found.before.mean is None else f"{found.before.mean:.3f}"
    out.print(f"was       mean {was}")
    for line in summary_lines(found.report.summary):
        out.print(line, soft_wrap=True)
    out.print(f"scores    {found.report.path}", soft_wrap=True)
