"""`ramify export`: a finished job in another format."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from ramify import compose
from ramify.cli.options import job_argument


@click.command("export")
@job_argument
@click.option("-f", "--format", "name", default="verifiers", show_default=True, metavar="NAME",
              help="Format of the records.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write (default: standard output).")  # fmt: skip
@click.option("--scored-only", is_flag=True, help="Leave out what was never scored.")
@click.option("--check", is_flag=True, help="Read every record back and compare its messages.")
@click.option("--json", "as_json", is_flag=True, help="Print the number of records as JSON.")
def command(
    job: Path, name: str, output: Path | None, scored_only: bool, check: bool, as_json: bool
) -> None:
    """Write the trajectories of RUN as JSON Lines, one record per root-to-leaf path."""
    # An exporter of another package may not know `check`: it is not asked for unless it is wanted.
    options = {"scored_only": scored_only, **({"check": True} if check else {})}
    records: Iterable[dict[str, Any]] = compose.exporter(name)(job, **options)
    count = 0
    with ExitStack() as stack:
        target = stack.enter_context(output.open("wb")) if output else sys.stdout.buffer
        for record in records:
            target.write(msgspec.json.encode(record) + b"\n")
            count += 1
    if as_json:
        click.echo(msgspec.json.encode({"records": count, "format": name}).decode(), err=not output)
    elif output is not None:
        click.echo(f"{count} records in {output}")
