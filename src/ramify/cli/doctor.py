"""`ramify doctor`: what this machine can do, and why."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from ramify import compose
from ramify.cli.interrupts import own_loop
from ramify.cli.present import console
from ramify.cli.waiting import waiting
from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError, RamifyError
from ramify.contracts.sandbox import SandboxProvider, SandboxSpec


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(as_json: bool) -> int:
    """What this machine can do, and why.

    Exit code 0 when at least one isolating sandbox works, else 1.
    """
    with own_loop() as runner:
        with waiting(console(stderr=True), "trying the sandboxes"):
            found = [runner.run(_probe(name)) for name in compose.known("sandboxes")]
    usable = any(row["ok"] and row["isolation"] != "none" for row in found)
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "cpus": os.cpu_count(),
        "home": str(ramify_home()),
        "interpreter": sys.executable,
    }
    if as_json:
        click.echo(msgspec.json.encode({"machine": machine, "sandboxes": found}).decode())
        return 0 if usable else 1
    out = console()
    for key, value in machine.items():
        out.print(f"{key:<12}{value}", soft_wrap=True)
    out.print()
    out.print(_table(found))
    for row in found:
        out.print()
        for key, value in _facts(row):
            out.print(f"{key:<12}{value}", soft_wrap=True)
    return 0 if usable else 1


async def _probe(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name, "ok": False, "mode": "-", "isolation": "-", "network": [], "limits": [],
        "snapshot": "-", "remedy": "", "live": "",
    }  # fmt: skip
    try:
        provider = compose.sandbox_provider(name)
    except ConfigError as error:
        return {**row, "detail": str(error)}
    try:
        report = await provider.probe()
        row |= {"ok": report.ok, "mode": report.mode, "detail": report.detail}
        row["remedy"] = report.remedy
        if report.ok:
            row["live"] = await _try_live(provider)
            can = provider.capabilities()
            row["isolation"], row["snapshot"] = can.isolation, can.snapshot
            row["network"] = sorted(mode.value for mode in can.network)
            row["limits"] = sorted(can.limits)
    finally:
        await provider.aclose()
    return row


async def _try_live(provider: SandboxProvider) -> str:
    """`yes`, or why processes cannot be captured: found out by capturing some."""
    if not provider.capabilities().host_root:
        return "no: its sandboxes have no live checkpoints"
    try:
        await provider.prepare(SandboxSpec(host_root=True, live=True))
    except RamifyError as error:
        return f"no: {error}"
    return "yes"


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("sandbox", "works", "mode", "isolation", "snapshot", "live"):
        table.add_column(name, overflow="fold", no_wrap=True)
    for row in found:
        live = row["live"].partition(":")[0]
        works = Text("yes", style="green") if row["ok"] else Text("no", style="red")
        table.add_row(
            row["name"], works, row["mode"], row["isolation"], row["snapshot"], live or "-"
        )
    return table


def _facts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What does not fit into a table: reasons, and what can be done about them."""
    yield row["name"], row["detail"]
    if row["remedy"]:
        yield "  remedy", row["remedy"]
    if row["ok"]:
        yield "  network", ", ".join(row["network"])
        yield "  limits", ", ".join(row["limits"]) or "none"
    if row["live"]:
        yield "  live", row["live"]
