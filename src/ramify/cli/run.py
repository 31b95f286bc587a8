"""`ramify run`: a thin caller of `ramify.run`."""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import msgspec

from ramify.cli.interrupts import listen_for_interrupts, own_loop
from ramify.cli.main import FAILED, INFRASTRUCTURE, INTERRUPTED
from ramify.cli.options import (
    model_options,
    pairs,
    rubric_options,
    task_options,
    tasks_argument,
)
from ramify.cli.present import (
    console,
    error_lines,
    first_rows,
    is_terminal,
    results_table,
    summary_lines,
)
from ramify.cli.progress import Progress
from ramify.contracts.config import RolloutConfig, Sampling
from ramify.contracts.errors import UsageError
from ramify.contracts.events import AnyEvent, LogEvent
from ramify.contracts.result import RolloutResult
from ramify.contracts.task import IsolationLevel
from ramify.contracts.tree import Fidelity, Outcome
from ramify.engine.cancel import Cancellation
from ramify.engine.summary import JobSummary
from ramify.envs.options import RunOptions
from ramify.envs.run import SKIPPED, UNCHECKED, open_job


def _finite(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Checks a number that was given. Raises UsageError: it is none."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"--fail-under must be a finite number, not {value}")
    return value


@click.command("run")
@tasks_argument
@click.option("-a", "--agent", default="oracle", show_default=True, metavar="NAME",
              help="Who acts; see `ramify agents list`.")  # fmt: skip
@click.option("-A", "agent_option", multiple=True, metavar="KEY=VALUE", help="Option of the agent.")
@model_options
@click.option("-n", "--repeats", type=int, metavar="N",
              help="Rollouts per task (default: 1, or 4 with --branch).")  # fmt: skip
@click.option("--branch", metavar="WHERE",
              help="Fork rollouts: group:8@step:3, depth:8,16x2, values:8x4, entropy:2x3 or plan.",
              )  # fmt: skip
@click.option("--fidelity", type=click.Choice([rung.value for rung in Fidelity]),
              default=Fidelity.LIVE.value, show_default=True,
              help="What each child of a branch gets of the session, at least.")  # fmt: skip
@click.option("--isolation", type=click.Choice([level.value for level in IsolationLevel]),
              help="Verify at this level (default: what `tasks check` found).")  # fmt: skip
@click.option("--image", metavar="NAME", help="Image for tasks that name none.")
@click.option("--world", type=click.Path(path_type=Path), metavar="MANIFEST",
              help="Manifest of the world of tasks that name none.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of the job.")
@click.option("--shuffle", is_flag=True, help="Start tasks in an order drawn from the seed.")
@click.option(
    "--max-retries", default=2, show_default=True, help="Retries of what is never scored."
)
@click.option("--max-cost", type=float, metavar="USD", help="What the whole job may cost.")
@click.option("--timeout", type=float, help="Seconds for the agent, at most.")
@click.option("--timeout-multiplier", default=1.0, show_default=True,
              help="Scales the tasks' own timeouts.")  # fmt: skip
@click.option(
    "--fail-under",
    type=float,
    callback=_finite,
    help="Exit with 1 if the mean reward is below this.",
)
@click.option("--skip-unsupported", is_flag=True,
              help="Leave out, by name, tasks that agent or sandbox cannot serve.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Run directory (default: runs/<taskset>-<agent>-<hash>).")  # fmt: skip
@rubric_options
@task_options
def command(
    tasks: str,
    agent: str,
    agent_option: tuple[str, ...],
    model: str | None,
    base_url: str | None,
    model_option: tuple[str, ...],
    temperature: float | None,
    max_tokens: int | None,
    max_total_tokens: int | None,
    max_turns: int | None,
    max_context: int | None,
    repeats: int | None,
    branch: str | None,
    fidelity: str,
    isolation: str | None,
    image: str | None,
    world: Path | None,
    seed: int,
    shuffle: bool,
    max_retries: int,
    max_cost: float | None,
    timeout: float | None,
    timeout_multiplier: float,
    fail_under: float | None,
    skip_unsupported: bool,
    out: Path | None,
    rubric: str | None,
    judge_model: str | None,
    judge_base_url: str | None,
    judge_option: tuple[str, ...],
    limit: int | None,
    task_id: tuple[str, ...],
    exclude: tuple[str, ...],
    taskset_option: tuple[str, ...],
    sandbox: str,
    concurrency: int,
    as_json: bool,
) -> int:
    """Run an agent on TASKS, score the results where it cannot reach, and print what happened.

    TASKS is a task directory, a directory of them, or a taskset; run again, it does what is left.
    Exit code: 0, 1 unscored or --fail-under, 2 configuration, 3 infrastructure, 130 interrupted.
    """
    rollout = RolloutConfig(
        max_turns=max_turns,
        max_tokens=max_total_tokens,
        max_context=max_context,
        timeout_sec=timeout,
        timeout_multiplier=timeout_multiplier,
        sampling=Sampling(temperature=temperature, max_tokens=max_tokens),
    )
    options = RunOptions(
        repeats=repeats,
        branch=branch,
        fidelity=Fidelity(fidelity),
        limit=limit,
        task_ids=task_id,
        exclude=exclude,
        skip_unsupported=skip_unsupported,
        shuffle=shuffle,
        concurrency=concurrency,
        seed=seed,
        out=out,
        max_cost_usd=max_cost,
        max_retries=max_retries,
        image=image,
        world=world,
        isolation=IsolationLevel(isolation) if isolation else None,
        agent_options=pairs(agent_option, "-A"),
        taskset_options=pairs(taskset_option, "-T"),
        model=model,
        base_url=base_url,
        judge_model=judge_model,
        judge_base_url=judge_base_url,
        judge_options=pairs(judge_option, "-J"),
        model_options=pairs(model_option, "-M"),
        rollout=rollout,
    )
    return _to_its_end(_run(tasks, agent, sandbox, rubric, options, as_json, fail_under))


def _to_its_end(work: Coroutine[Any, Any, int]) -> int:
    """The exit code of what runs on a loop of its own."""
    with own_loop() as runner:
        try:
            return runner.run(work)
        except asyncio.CancelledError:  # the second interrupt
            return INTERRUPTED


async def _run(
    tasks: str,
    agent: str,
    sandbox: str,
    rubric: str | None,
    options: RunOptions,
    as_json: bool,
    least: float | None,
) -> int:
    cancel = Cancellation()
    listen_for_interrupts(cancel, "cleaning up")
    progress = Progress(console(stderr=as_json), live=is_terminal() and not as_json)
    notes = _Notes(tasks)
    results: list[RolloutResult] = []
    async with open_job(
        tasks,
        agent=agent,
        sandbox=sandbox,
        reward=rubric,
        options=options,
        observers=[progress, notes],
        cancel=cancel,
    ) as (job, path):
        notes.tell(len({task_id for task_id, _ in job.plan.slots}))
        progress.job = job
        async with progress.shown():
            async with aclosing(job.stream()) as stream:
                async for result in stream:
                    results.append(result)
                    progress.finished(result)
                    if as_json:
                        _print_json(result)
        summary = job.summary
    if as_json:
        _print_json({"summary": summary, "path": str(path)})
    else:
        _print_report(results, summary, progress, path)
    return _exit_code(summary, cancel, least)


@dataclass(slots=True)
class _Notes:
    """An observer that says, once, what does not run, and what nobody checked with this sandbox."""

    tasks: str
    sandbox: str = ""
    count: int = 0
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    def emit(self, event: AnyEvent) -> None:
        match event:
            case LogEvent(message=message) if message == SKIPPED:
                self.skipped = cast("dict[str, str]", event.fields["tasks"])
            case LogEvent(message=message) if message == UNCHECKED:
                self.sandbox = str(event.fields["sandbox"])
                self.count = len(cast("list[str]", event.fields["tasks"]))
            case _:
                pass

    def tell(self, planned: int) -> None:
        """To standard error, where neither a table nor JSON is."""
        for reason in self.skipped.values():
            click.echo(f"note: left out: {reason}", err=True)
        if self.count:
            where = "" if self.sandbox == "local" else f" -s {self.sandbox}"
            were = "was" if self.count == 1 else "were"
            click.echo(
                f"note: {self.count} of {planned} tasks {were} never checked on {self.sandbox}, so "
                "their test scripts run without hardening, at the default level: ramify tasks "
                f"check {shlex.quote(self.tasks)}{where}",
                err=True,
            )


def _print_report(
    results: list[RolloutResult], summary: JobSummary, progress: Progress, path: Path
) -> None:
    out = console()
    out.print()
    if results:
        shown, left_out = first_rows(results)
        out.print(results_table(shown, out.width))
        if left_out:
            out.print(f"... and {left_out} more: ramify tree {path} --all", soft_wrap=True)
        out.print()
    bound = [
        f"limit     {name} ended {len(told)} of the agents ({told[0][:300]})"
        for name, told in sorted(progress.limits.items())
    ]
    for line in [*error_lines(results), *bound, *summary_lines(summary)]:
        out.print(line, soft_wrap=True)
    if summary.complete and not progress.started:
        out.print(f"again     all {len(results)} rollouts were there already; nothing was run")
    out.print(f"run       {path}", soft_wrap=True)


def _print_json(record: Any) -> None:
    click.echo(msgspec.json.encode(record).decode())


def _exit_code(summary: JobSummary, cancel: Cancellation, least: float | None) -> int:
    if cancel.cancelled:
        return INTERRUPTED
    if summary.outcomes.get(Outcome.INFRA_ERROR):
        return INFRASTRUCTURE
    if not summary.complete or summary.mean is None:
        return FAILED
    if least is not None and summary.mean < least:
        said = f"the mean reward {summary.mean:.3f} is below --fail-under {least:g}"
        click.echo(f"ramify: {said}", err=True)
        return FAILED
    return 0
