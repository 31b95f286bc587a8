"""`ramify env`: check a world's manifest, and start a world for a person."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.console import Console
from rich.text import Text

from ramify.cli.interrupts import own_loop, to_its_end
from ramify.cli.main import FAILED, INTERRUPTED
from ramify.cli.present import console, seconds_text
from ramify.cli.waiting import waiting
from ramify.contracts.errors import ConfigError
from ramify.envs.worlds import DeclaredWorld, WorldChoice, WorldStep, check_world, open_world

_C = TypeVar("_C", bound=Callable[..., object])
_STYLES = {"ok": "green", "failed": "bold red", "left out": "yellow"}
_NAME_WIDTH, _STATUS_WIDTH = 20, 10
_LOOK_SEC = 1.0


def _is_file(_ctx: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    """Checks a manifest's path. Raises ConfigError: a directory; it names the files in that."""
    if path.is_dir():
        there = ", ".join(str(path / entry.name) for entry in sorted(path.glob("*.toml")))
        hint = f"name a manifest: {there}" if there else "no manifest (*.toml) is in it"
        raise ConfigError(f"is a directory; {hint}", file=str(path))
    return path


@click.group("env")
def command() -> None:
    """Worlds: services and their state, as a manifest declares them."""


def _world_options(function: _C) -> _C:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Machine-readable output."),
        click.option("--image-free", is_flag=True,
                     help="On the host's root, in place of the manifest's image."),
        click.option("--task", default="check", show_default=True, metavar="ID",
                     help="Which task the world is for, where a variable selects it."),
        click.option("-s", "--sandbox", default="local", show_default=True, metavar="NAME",
                     help="Where it runs: local, docker, or an import path."),
        click.argument("manifest", type=click.Path(path_type=Path), callback=_is_file),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("check", short_help="Try a world: start, change, restore, branch.")
@_world_options
def check(manifest: Path, sandbox: str, task: str, image_free: bool, as_json: bool) -> int:
    """Start the world of MANIFEST, change its state, put it back, and compare digests.

    Exit code 1 when the world does something wrong, 2 for a manifest that is, 3 when the machine
    fails.
    """
    choice = WorldChoice(manifest, sandbox, task, image_free)
    return to_its_end(_check(choice, as_json))


async def _check(choice: WorldChoice, as_json: bool) -> int:
    out = console(stderr=as_json)
    failed = False
    with waiting(out, "checking") as shown:
        async with aclosing(check_world(choice)) as steps:
            async for step in steps:
                failed = failed or step.status == "failed"
                if as_json:
                    click.echo(msgspec.json.encode(step).decode())
                else:
                    _print_step(out, step)
                shown.now(f"checking; {step.name} is done")
    return FAILED if failed else 0


def _print_step(out: Console, step: WorldStep) -> None:
    first, *more = step.detail.split("\n")
    line = Text(f"{step.name:<{_NAME_WIDTH}}")
    line.append(f"{step.status:<{_STATUS_WIDTH}}", style=_STYLES[step.status])
    line.append(f"{seconds_text(step.seconds):>7}")
    line.append(f"  {first}", style="dim" if step.status == "ok" else "")
    out.print(line, soft_wrap=True)
    for text in more:
        out.print(Text(f"    {text}"), soft_wrap=True)


@command.command("up", short_help="Start a world and keep it until Ctrl-C.")
@_world_options
def up(manifest: Path, sandbox: str, task: str, image_free: bool, as_json: bool) -> int:
    """Start the world of MANIFEST, print where it is reached, and keep it until Ctrl-C."""
    choice = WorldChoice(manifest, sandbox, task, image_free)
    with own_loop() as runner:
        return runner.run(_up(choice, as_json))


async def _up(choice: WorldChoice, as_json: bool) -> int:
    out, stop = console(), asyncio.Event()
    loop = asyncio.get_running_loop()
    main_task = asyncio.current_task()
    assert main_task is not None
    # Until the world is there an interrupt cancels its making; from then on it is the way to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, main_task.cancel)
    began = loop.time()
    try:
        async with AsyncExitStack() as stack:
            with waiting(console(stderr=True), "starting the world"):
                world = await stack.enter_async_context(open_world(choice))
                urls = await world.urls()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            if as_json:
                click.echo(msgspec.json.encode({"urls": urls}).decode())
            else:
                for name, url in urls.items():
                    out.print(f"{name:<{_NAME_WIDTH}}{url}", soft_wrap=True)
                took = seconds_text(loop.time() - began)
                out.print(f"healthy after {took}; Ctrl-C ends it", style="dim", soft_wrap=True)
            await _watch(world, stop)
    except asyncio.CancelledError:
        click.echo("ramify: interrupted before the world was healthy", err=True)
        return INTERRUPTED
    return 0


async def _watch(world: DeclaredWorld, stop: asyncio.Event) -> None:
    """Return when a person asks for it. Raises EnvironmentFailed when the world breaks."""
    while not stop.is_set():
        try:
            async with asyncio.timeout(_LOOK_SEC):
                await stop.wait()
        except TimeoutError:
            await world.readiness()
