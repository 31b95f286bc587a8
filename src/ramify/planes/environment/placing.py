"""What of a manifest a sandbox gets: its files, and those of its services that are there."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.hidden import split_directory
from ramify.planes.environment.manifest import Manifest, load_manifest
from ramify.planes.environment.package import provision_package
from ramify.planes.environment.records import ServiceSpec


async def provision_files(sandbox: Sandbox, ctx: Context) -> None:
    """Bring a fresh sandbox to the files that a task starts with, those of its world included.

    For every fresh sandbox that verifies; no service is started. Raises: as `provision_package`.
    """
    package = ctx.task.package
    if package is not None and package.world is not None:
        manifest = await asyncio.to_thread(load_manifest, Path(package.world))
        await upload_files(manifest, sandbox, ctx, None)
    await provision_package(sandbox, ctx)


async def upload_files(
    manifest: Manifest, sandbox: Sandbox, ctx: Context, home: Path | None
) -> None:
    """Copy a manifest's files into the work directory; given `home`, without hidden ones.

    Raises: SandboxError, OSError.
    """
    files = manifest.files
    if files is None:
        return
    hidden = manifest.verifier.hidden_from_agent
    if hidden and home is not None:
        files = (await asyncio.to_thread(split_directory, files, hidden, home)).visible
    await sandbox.upload(files, manifest.environment.workdir or ctx.workdir)


async def chosen_services(
    manifest: Manifest, wanted: Sequence[str], sandbox: Sandbox
) -> tuple[ServiceSpec, ...]:
    """The services that are started, in order: those that a task names, else all.

    Where tasks bring images of their own, and this one names none: those whose program is there.
    Raises: UnknownNameError, SandboxError.
    """
    order = manifest.services(wanted)
    if wanted or manifest.environment.task_selection.mechanism != "image":
        return order
    programs = {service.name: _program(service.command) for service in order}
    words = " ".join(shlex.quote(word) for word in programs.values() if word)
    found = await sandbox.exec(
        f'for p in {words or "sh"}; do command -v "$p" >/dev/null && printf "%s\\n" "$p"; done'
    )
    there = set(found.stdout.decode(errors="replace").split("\n"))
    return tuple(s for s in order if not programs[s.name] or programs[s.name] in there)


def _program(command: str | None) -> str | None:
    """The program that a shell line starts; None where that cannot be told from it."""
    try:
        word = shlex.split(command or "")[0]
    except (ValueError, IndexError):
        return None
    return word if not set(word) & set("=$;&|(){}<>`") else None
