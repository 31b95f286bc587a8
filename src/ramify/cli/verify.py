"""`ramify verify`: run a repository's pipeline in a fresh sandbox and say whether it passes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from ramify.apps.pipeline.init import first_config, write_first_config
from ramify.apps.pipeline.records import CONFIG_FILE, Response, RunEvent
from ramify.apps.pipeline.schemas import schema_text, schemas
from ramify.apps.pipeline.verify import Planned, VerifyOptions, planned_verification, run_planned
from ramify.cli.interrupts import own_loop
from ramify.cli.main import FAILED, INTERRUPTED
from ramify.cli.present import console, is_terminal
from ramify.cli.verify_view import VerifyView, plan_lines, report_lines

_HERE = (CONFIG_FILE, ".git")


class _Verify(click.Command):
    """`verify`, whose first argument `init` is a command of its own (a directory: ./init)."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] != ["init"]:
            return super().make_context(info_name, args, parent, **extra)
        prefix = f"{parent.auto_envvar_prefix}_VERIFY_INIT" if parent else None
        return _init.make_context(
            f"{info_name} init", args[1:], parent, auto_envvar_prefix=prefix, **extra
        )


def _print_schema(ctx: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        click.echo(schema_text(name))
        ctx.exit()


@click.command("verify", cls=_Verify)
@click.argument("repo", required=False, type=click.Path(path_type=Path))
@click.option("-s", "--sandbox", metavar="NAME",
              help="Where the steps run: docker, local, or an import path "
              "(default: docker where it works, else local).")  # fmt: skip
@click.option("--image", metavar="NAME",
              help="Image they run in, in place of the one in agent.yaml; `host`: this machine's "
              "own root, read-only (local).")  # fmt: skip
@click.option("--base", metavar="REV",
              help="Commit of agent.yaml and of protected paths (default: HEAD).")  # fmt: skip
@click.option("--follow", is_flag=True, help="Print what steps print, as they print it.")
@click.option("--wait", is_flag=True, help="Wait while somebody else verifies the repository.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and run nothing.")
@click.option("--json", "as_json", is_flag=True,
              help="Print the response alone; with --follow events before it.")  # fmt: skip
@click.option("--schema", type=click.Choice(sorted(schemas())), is_eager=True, expose_value=False,
              callback=_print_schema, help="Print a JSON Schema and leave.")  # fmt: skip
def command(
    repo: Path | None,
    sandbox: str | None,
    image: str | None,
    base: str | None,
    follow: bool,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run the steps of agent.yaml on REPO (default: the repository here) and say PASS or FAIL.

    All steps run, in order, in a fresh sandbox, until one fails; REPO itself is never changed.
    Logs, the manifest and what steps made are kept below AGENT_ARTIFACT_DIR
    (default: ~/.agent-artifacts).

    Exit code: 0 PASS, 1 FAIL, 2 configuration, 3 infrastructure, 130 interrupted.

    `ramify verify init [REPO]` writes a first agent.yaml.
    """
    options = VerifyOptions(repo or _repository_here(), sandbox, image, base, wait)
    with own_loop() as runner:
        try:
            if dry_run:
                return runner.run(_show_plan(options, as_json))
            return runner.run(_verify(options, follow, as_json))
        except asyncio.CancelledError:  # cleaned up by now
            click.echo("ramify: interrupted: neither PASS nor FAIL", err=True)
            return INTERRUPTED


def _repository_here() -> Path:
    """The nearest directory from here upwards that looks like a repository, else this one."""
    here = Path.cwd()
    for place in (here, *here.parents):
        if any((place / name).exists() for name in _HERE):
            return place
    return here


async def _verify(options: VerifyOptions, follow: bool, as_json: bool) -> int:
    async with planned_verification(options) as planned:
        return await _run(planned, follow, as_json)


async def _run(planned: Planned, follow: bool, as_json: bool) -> int:
    out = console()
    err = console(stderr=True)
    names = tuple(step.name for step in planned.spec.steps)
    live = is_terminal() and not follow and not as_json
    view = VerifyView(out, names, live, follow)
    emit: Callable[[RunEvent], None] = view.emit
    if as_json:
        emit = _print_record if follow else _ignore

    def say(line: str) -> None:
        err.print(f"ramify: {line}", soft_wrap=True)

    _listen_for_interrupts(view)
    async with view.shown():
        outcome = await run_planned(planned, emit=emit, say=say)
    if as_json:
        _print_record(outcome.response)
    else:
        if not live:
            out.print()
        shown = report_lines(
            outcome.response,
            outcome.directory,
            why=planned.why,
            width=out.width,
            tail=not follow,
        )
        for line in shown:
            out.print(line, soft_wrap=True)
    return 0 if outcome.response.passed else FAILED


async def _show_plan(options: VerifyOptions, as_json: bool) -> int:
    async with planned_verification(options) as planned:
        if as_json:
            _print_record({"verification": planned.spec, **_facts(planned)})
            return 0
        out = console()
        for line in plan_lines(planned.spec, _facts(planned)):
            out.print(line, soft_wrap=True)
        return 0


def _facts(planned: Planned) -> dict[str, str]:
    pin = planned.pin
    where = f"commit {pin.base[:12]}" if not pin.unpinned else "the working copy (unpinned)"
    if pin.changed:
        where += "; the working copy has another one, so the run would fail"
    return {
        "pipeline": f"{CONFIG_FILE if pin.unpinned else pin.file} of {where}",
        "sandbox": planned.provider.name + (f" ({planned.why})" if planned.why else ""),
        "image": planned.image,
        "writes": planned.spec.repo_write,
        "artifacts": str(planned.artifacts),
    }


def _listen_for_interrupts(view: VerifyView) -> None:
    """Once: cancel, which cleans up. Twice: now; the sandbox ends with this process."""
    loop = asyncio.get_running_loop()
    main_task = asyncio.current_task()
    assert main_task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            console(stderr=True).show_cursor()
            os._exit(INTERRUPTED)
        interrupted = True
        main_task.cancel()
        said = "interrupted: cleaning up (again to stop now)"
        if not view.tell(said):
            click.echo(f"\n{said}", err=True)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)


def _print_record(record: Response | RunEvent | dict[str, Any]) -> None:
    click.echo(msgspec.json.encode(record).decode())


def _ignore(_event: RunEvent) -> None:
    """Whoever wants the response alone gets nothing before it."""


@click.command("init")
@click.argument("repo", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--print", "only_print", is_flag=True, help="Print it, and write nothing.")
def _init(repo: Path, only_print: bool) -> None:
    """Write a first agent.yaml for the Python, Node and Rust projects in REPO.

    Looks at files at the top of REPO, runs nothing, and never overwrites.
    """
    if only_print:
        click.echo(first_config(repo), nl=False)
        return
    path = write_first_config(repo)
    click.echo(f"wrote {path}; read it, commit it, then: ramify verify {repo}")
