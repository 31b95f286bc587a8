"""`ramify agents`: who can be run."""

from __future__ import annotations

import click
import msgspec
from rich.table import Table

from ramify import compose
from ramify.cli.present import console


@click.group("agents")
def command() -> None:
    """Who can be run."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_agents(as_json: bool) -> None:
    """List the agents, ours and those of other installed packages."""
    agents = compose.listed("agents")
    if as_json:
        for agent in agents:
            record = {"name": agent.name, "path": agent.path, "summary": agent.summary}
            click.echo(msgspec.json.encode(record).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("agent", "what it does", "from"):
        table.add_column(name, overflow="fold")
    for agent in agents:
        table.add_row(agent.name, agent.summary, agent.path)
    console().print(table)
