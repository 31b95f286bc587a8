"""`ramify export`: a finished job in another format."""

from __future__ import annotations

import inspect
import os
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from ramify import compose
from ramify.cli.options import job_argument
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.scratch import Scratch
from ramify.kernel.schemes import SCHEMES
from ramify.kernel.weights import WeightScheme


@contextmanager
def _whole(path: Path) -> Generator[IO[bytes]]:
    """A file that gets its name when all of it is written; a failure leaves what was there.

    What is no regular file (a pipe, a device) is written as it comes. A draft that a killed process
    left goes with the next export into the same directory.

    Raises: ConfigError (no such directory), StoreError, OSError.
    """
    place = path.resolve()
    if place.exists() and not place.is_file():
        with place.open("wb") as target:
            yield target
        return
    if not place.parent.is_dir():
        raise ConfigError("there is no such directory; make it", file=str(place.parent))
    with Scratch(place.parent) as beside:
        with (beside / place.name).open("xb") as target:
            if place.exists():
                os.fchmod(target.fileno(), stat.S_IMODE(place.stat().st_mode))
            yield target
        (beside / place.name).replace(place)


@click.command("export")
@job_argument
@click.option("-f", "--format", "name", default="verifiers", show_default=True, metavar="NAME",
              help="Format of the records.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write (default, and -: standard output).")  # fmt: skip
@click.option("--scored-only", is_flag=True, help="Leave out what was never scored.")
@click.option("--weights", type=click.Choice([each.value for each in WeightScheme]),
              help="Weigh tokens that records share, so that none counts twice.")  # fmt: skip
@click.option("--advantage", type=click.Choice(SCHEMES), metavar="SCHEME",
              help=f"Advantages within each task: {', '.join(SCHEMES)}.")  # fmt: skip
@click.option("--check", is_flag=True, help="Read every record back and compare its messages.")
@click.option("--json", "as_json", is_flag=True, help="Print the number of records as JSON.")
def command(
    job: Path,
    name: str,
    output: Path | None,
    scored_only: bool,
    weights: str | None,
    advantage: str | None,
    check: bool,
    as_json: bool,
) -> None:
    """Write the trajectories of RUN as JSON Lines.

    The format `verifiers` has one record per root-to-leaf path, `tree` one per rollout, `pairs` one
    per pair of continuations of which one is better.
    """
    # An exporter of another package may not know these: they are named only where they are wanted.
    wanted = {
        "check": check or None,
        "weights": weights,
        "advantage": advantage,
    }
    options: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    options["scored_only"] = scored_only
    export = compose.exporter(name)
    if unknown := sorted(options.keys() - inspect.signature(export).parameters.keys()):
        raise UnsupportedError(f"the format {name!r} has no --{unknown[0].replace('_', '-')}")
    records: Iterable[dict[str, Any]] = export(job, **options)
    count = 0
    output = None if output is None or str(output) == "-" else output
    with nullcontext(sys.stdout.buffer) if output is None else _whole(output) as target:
        for record in records:
            target.write(msgspec.json.encode(record) + b"\n")
            count += 1
    if as_json:
        click.echo(msgspec.json.encode({"records": count, "format": name}).decode(), err=not output)
    elif output is not None:
        click.echo(f"{count} records in {output}")
    elif not count:
        click.echo(f"ramify: the format {name!r} has no record of {job}", err=True)
