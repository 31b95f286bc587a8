"""`ramify tasks`: check, list and make tasks."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import click
import msgspec
from rich.table import Table

from ramify import compose
from ramify.cli.interrupts import to_its_end
from ramify.cli.main import FAILED, USAGE
from ramify.cli.options import judge_options, pairs, task_options, tasks_argument
from ramify.cli.present import console, reward_text, seconds_text
from ramify.contracts.errors import UsageError
from ramify.contracts.task import Task, Taskset
from ramify.envs.attacks import AttackCheck, attack_tasks
from ramify.envs.check import TaskCheck, check_tasks
from ramify.envs.options import RunOptions
from ramify.tasks.scaffold import init_task


@click.group("tasks")
def command() -> None:
    """Check, list and make tasks."""


@command.command("list")
@tasks_argument
@click.option("-T", "taskset_option", multiple=True, metavar="KEY=VALUE",
              help="Option of the taskset.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_tasks(tasks: str, taskset_option: tuple[str, ...], as_json: bool) -> int:
    """List the tasks of TASKS; each is read and checked.

    A task that cannot be used is told in a line of its own; then the exit code is 2.
    """
    found, problems = _read_all(compose.taskset(tasks, pairs(taskset_option, "-T")))
    for problem in problems:
        click.echo(f"ramify: {problem}", err=True)
    if as_json:
        for task in found:
            click.echo(msgspec.json.encode(task).decode())
    elif found:
        _print_tasks(found)
    return USAGE if problems else 0


def _read_all(taskset: Taskset) -> tuple[list[Task], list[UsageError]]:
    """The tasks that can be used, and what is wrong with the others."""
    found: list[Task] = []
    problems: list[UsageError] = []
    tasks = iter(taskset)
    while True:
        try:
            found.append(next(tasks))
        except StopIteration:
            return found, problems
        except UsageError as error:
            problems.append(error)


def _print_tasks(found: list[Task]) -> None:
    out = console()
    rows = [("task", "level", "runs on"), *(_columns(task) for task in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    room = out.width - sum(widths) - 2 * len(widths)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in zip(rows[0], widths, strict=True):
        table.add_column(name, overflow="fold", no_wrap=name == "task", max_width=width)
    if shows := room >= _SHORTEST:
        table.add_column("instruction", overflow="ellipsis", no_wrap=True, max_width=room)
    for task, row in zip(found, rows[1:], strict=True):
        lines = task.instruction.strip().splitlines() or [""]
        table.add_row(*row, *([lines[0]] if shows else []))
    out.print(table)


_SHORTEST = 12
"""Of an instruction, in columns; of less nothing can be read."""


def _columns(task: Task) -> tuple[str, str, str]:
    package = task.package
    if package is None:
        return task.task_id, "-", "-"
    image = "Dockerfile" if package.sandbox.build else package.sandbox.image
    where = " or ".join(w for w in ("host root" if package.host_root_ok else "", image) if w)
    return task.task_id, _levels_of(package.digest), where or "-"


def _levels_of(digest: str) -> str:
    """The level that was found with each provider that is known; one where they agree."""
    found = [compose.remembered(digest, name) for name in sorted(compose.known("sandboxes"))]
    told = {one.provider: one.level.value for one in found if one is not None}
    if len(set(told.values())) < 2:
        return next(iter(told.values()), "-")
    return ", ".join(f"{level} ({name or 'older'})" for name, level in sorted(told.items()))


@command.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the task (default: the directory's).")
def init(directory: Path, name: str | None) -> None:
    """Make a small working task in DIRECTORY."""
    made = init_task(directory, name or directory.resolve().name)
    click.echo(f"made {made}; try: ramify tasks check {made}")


@command.command("check", short_help="Check that solutions score, and that nothing else does.")
@tasks_argument
@click.option("-n", "--repeats", default=3, show_default=True,
              help="Runs of oracle and nop at the level that was found.")  # fmt: skip
@click.option("--attack", is_flag=True, help="Then run generic exploits; none may pay.")
@judge_options
@task_options
def check(
    tasks: str,
    repeats: int,
    attack: bool,
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
    """Check that the reference solution scores and doing nothing does not, time after time.

    Finds the strictest isolation level at which that holds and remembers it for `ramify run`. With
    --attack an agent that does not work but cheats, in ways that are known, is then run against
    each task that is fit.
    """
    if repeats < 1:
        raise UsageError(f"--repeats must be at least 1, not {repeats}")
    options = RunOptions(
        limit=limit,
        task_ids=task_id,
        exclude=exclude,
        concurrency=concurrency,
        taskset_options=pairs(taskset_option, "-T"),
        judge_model=judge_model,
        judge_base_url=judge_base_url,
        judge_options=pairs(judge_option, "-J"),
    )
    code, fit = to_its_end(_check(tasks, sandbox, repeats, options, as_json))
    if attack and fit:
        options = msgspec.structs.replace(options, task_ids=fit, limit=None)
        code = max(code, to_its_end(_attack(tasks, sandbox, options, as_json)))
    return code


async def _check(
    tasks: str, sandbox: str, repeats: int, options: RunOptions, as_json: bool
) -> tuple[int, tuple[str, ...]]:
    """The exit code, and the tasks that are fit."""
    out = console(stderr=as_json)
    checks: list[TaskCheck] = []
    found = check_tasks(tasks, sandbox=sandbox, repeats=repeats, options=options)
    async with aclosing(found) as stream:
        async for entry in stream:
            checks.append(entry)
            if as_json:
                click.echo(msgspec.json.encode(entry).decode())
            else:
                out.print(f"{entry.task_id}: {entry.problem or _where(entry)}", soft_wrap=True)
    if not as_json:
        out.print()
        out.print(_table(checks))
    code = FAILED if any(not entry.ok for entry in checks) else 0
    return code, tuple(entry.task_id for entry in checks if entry.ok)


def _where(entry: TaskCheck) -> str:
    return ", ".join(part.value for part in (entry.level, entry.profile) if part)


def _table(checks: list[TaskCheck]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "level", "profile", "oracle", "nop", "time", "verdict"):
        table.add_column(name, overflow="fold", no_wrap=name == "task")
    for entry in sorted(checks, key=lambda c: c.task_id):
        table.add_row(
            entry.task_id,
            entry.level.value if entry.level else "-",
            entry.profile.value if entry.profile else "-",
            " ".join(reward_text(reward) for reward in entry.oracle) or "-",
            " ".join(reward_text(reward) for reward in entry.nop) or "-",
            seconds_text(entry.seconds),
            entry.problem or "ok",
        )
    return table


async def _attack(tasks: str, sandbox: str, options: RunOptions, as_json: bool) -> int:
    """Run the exploits, print what became of them; fails where one pays or could not be run."""
    out = console(stderr=as_json)
    found: list[AttackCheck] = []
    async with aclosing(attack_tasks(tasks, sandbox=sandbox, options=options)) as stream:
        async for entry in stream:
            found.append(entry)
            if as_json:
                click.echo(msgspec.json.encode(entry).decode())
            elif entry.pays:
                out.print(f"{entry.task_id}: {entry.attack} PAYS: {entry.shows}", soft_wrap=True)
            elif entry.found:
                out.print(f"{entry.task_id}: {entry.attack} FOUND: {entry.shows}", soft_wrap=True)
                for place in entry.found:
                    out.print(f"  {place}", soft_wrap=True)
            elif entry.problem:
                out.print(f"{entry.task_id}: {entry.attack}: {entry.problem}", soft_wrap=True)
            if not as_json:
                for what in entry.unseen:
                    said = f"{entry.task_id}: {entry.attack}: not looked into {what}"
                    out.print(said, soft_wrap=True)
    if not as_json:
        out.print()
        out.print(_attack_table(found))
    return FAILED if any(not entry.ok for entry in found) else 0


def _attack_table(found: list[AttackCheck]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "exploit", "level", "outcome", "reward", "verdict"):
        table.add_column(name, overflow="fold", no_wrap=name in ("task", "exploit"))
    for entry in sorted(found, key=lambda each: each.task_id):
        table.add_row(
            entry.task_id,
            entry.attack,
            entry.level or "-",
            entry.outcome.value,
            reward_text(entry.reward),
            _verdict(entry),
        )
    return table


def _verdict(entry: AttackCheck) -> str:
    if entry.pays:
        return "PAYS"
    if entry.found:
        return "FOUND"
    return "not run" if entry.problem else "ok"
