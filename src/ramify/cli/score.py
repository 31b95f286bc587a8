"""`ramify score`: score a finished job again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec
from rich.table import Table

from ramify.cli.main import INFRASTRUCTURE
from ramify.cli.options import job_argument
from ramify.cli.present import console, error_lines, reward_text, summary_lines
from ramify.contracts.task import IsolationLevel
from ramify.envs.plan import RunOptions
from ramify.envs.score import ScoreReport, score_job


@click.command("score")
@job_argument
@click.option("--tasks", metavar="TASKS", help="Where the tasks are (default: as recorded).")
@click.option("-s", "--sandbox", metavar="NAME", help="Where to verify (default: as recorded).")
@click.option("--isolation", type=click.Choice([level.value for level in IsolationLevel][:2]),
              help="Verify at this level.")  # fmt: skip
@click.option("-c", "--concurrency", default=4, show_default=True, help="Rollouts at once.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(
    job: Path,
    tasks: str | None,
    sandbox: str | None,
    isolation: str | None,
    concurrency: int,
    as_json: bool,
) -> int:
    """Verify what the rollouts of RUN left behind again, without running agents.

    The tests are those of the tasks as they stand now. The new scores are kept below RUN/scores.
    """
    options = RunOptions(
        concurrency=concurrency, isolation=IsolationLevel(isolation) if isolation else None
    )
    with asyncio.Runner() as runner:
        found = runner.run(score_job(job, tasks=tasks, sandbox=sandbox, options=options))
    if as_json:
        for entry in found.rollouts:
            record = {"before": entry.before, "after": entry.after, "changed": entry.changed}
            click.echo(msgspec.json.encode(record).decode())
        totals = {
            "before": found.before,
            "after": found.report.summary,
            "left_alone": found.left_alone,
        }
        click.echo(msgspec.json.encode({**totals, "path": str(found.report.path)}).decode())
    else:
        _print(found)
    return 0 if found.report.summary.complete else INFRASTRUCTURE


def _print(found: ScoreReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "#", "was", "graded on", "is", "graded on", ""):
        table.add_column(name, overflow="fold")
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
    was = "-" if found.before.mean is None else f"{found.before.mean:.3f}"
    out.print(f"was       mean {was}")
    for line in summary_lines(found.report.summary):
        out.print(line, soft_wrap=True)
    out.print(f"scores    {found.report.path}", soft_wrap=True)
