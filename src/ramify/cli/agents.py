"""`ramify agents`: who can be run."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from ramify import compose
from ramify.cli.present import console
from ramify.contracts.errors import ConfigError

_TEXTS = (str, int, float, bool, Path)
"""Types that an option given as text can have."""


@click.group("agents")
def command() -> None:
    """Who can be run."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_agents(as_json: bool) -> None:
    """List the agents, ours and those of other installed packages, and their options (-A)."""
    agents = compose.listed("agents")
    options = {agent.name: _options(agent.name) for agent in agents}
    if as_json:
        for agent in agents:
            record = {"name": agent.name, "path": agent.path, "summary": agent.summary}
            click.echo(msgspec.json.encode({**record, "options": options[agent.name]}).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("agent", "what it does", "options"):
        table.add_column(name, overflow="fold", no_wrap=name == "agent")
    for agent in agents:
        shown = [name if needed else f"[{name}]" for name, needed in options[agent.name].items()]
        table.add_row(agent.name, agent.summary, ", ".join(shown) or "-")
    out = console()
    out.print(table)
    out.print()
    out.print("options are given as -A name=value; those in [ ] may be left out", soft_wrap=True)


def _options(name: str) -> dict[str, bool]:
    """The options that can be given as text, and whether each must be."""
    try:
        made: Callable[..., Any] = compose.load("agents", name)
        parameters = inspect.signature(made).parameters
        hints = typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except (ConfigError, NameError, TypeError, ValueError):  # somebody else's; the list says so
        return {}
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and any(part in _TEXTS for part in _parts(hints.get(parameter.name, str)))
    }


def _parts(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)
