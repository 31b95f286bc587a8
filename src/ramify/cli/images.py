"""`ramify images`: the images that local sandboxes start from."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from ramify import compose
from ramify.cli.main import USAGE
from ramify.cli.present import console
from ramify.cli.waiting import waiting
from ramify.contracts.images import StoredImage

_MB = 1_000_000


@click.group("images")
def command() -> None:
    """The images that local sandboxes start from."""


@command.command("list", short_help="List the images of the store, by name.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_images(as_json: bool) -> None:
    """List the images of the store, by name."""
    store = compose.image_store()
    try:
        found = store.images()
    finally:
        store.close()
    if as_json:
        for image in found:
            click.echo(msgspec.json.encode(image).decode())
    elif found:
        _print(found)
    else:
        click.echo("no images; add one: ramify images import FILE --name NAME", err=True)


@command.command("import", short_help="Import what Docker wrote, or a root file system.")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="What tasks call it, e.g. debian:bookworm.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def import_image(file: Path, name: str | None, as_json: bool) -> None:
    """Import FILE: an OCI layout, what `docker save` or `docker export` writes, or a root file
    system (a tar or a directory)."""
    store = compose.image_store()
    try:
        with waiting(console(stderr=True), f"importing {file}"):
            image = store.take(file, name)
    finally:
        store.close()
    if as_json:
        click.echo(msgspec.json.encode(image).decode())
        return
    click.echo(f"{', '.join(image.names)}: {image.size_bytes / _MB:.0f} MB, id {image.id}")
    if image.owners_lost:
        click.echo(
            f"ramify: {image.owners_lost} files belong to users that sandboxes of yours cannot"
            " have; they belong to root or nobody instead (run as root to keep them)",
            err=True,
        )


@command.command("remove", short_help="Remove images by name.")
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def remove_images(names: tuple[str, ...], as_json: bool) -> int:
    """Remove images by NAME; the files go when no other image and no sandbox needs them."""
    store = compose.image_store()
    try:
        missing = [name for name in names if not store.remove(name)]
    finally:
        store.close()
    removed = [name for name in names if name not in missing]
    if as_json:
        click.echo(msgspec.json.encode({"removed": removed, "missing": missing}).decode())
    elif removed:
        click.echo(f"removed {', '.join(removed)}")
    for name in missing:
        click.echo(f"ramify: no image {name!r} (see: ramify images list)", err=True)
    return USAGE if missing else 0


def _print(found: list[StoredImage]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("image", "id", "layers", "MB", "owners lost"):
        table.add_column(name, overflow="fold")
    for image in found:
        size = f"{image.size_bytes / _MB:.0f}"
        lost = str(image.owners_lost or "-")
        table.add_row("\n".join(image.names), image.id, str(image.layers), size, lost)
    console().print(table)
