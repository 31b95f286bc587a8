"""A Python of the verifier's own, taken from the pristine image to where an agent was root."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import InfraError, SandboxError
from ramify.contracts.sandbox import MIB, Sandbox, TransferLimits
from ramify.contracts.task import TaskPackage
from ramify.planes.reward.native.harness import HARNESS_DIR, SOURCES
from ramify.planes.reward.stage import fresh_sandbox, scratch_folder

_PLACE = f"{HARNESS_DIR}-python"
_LIMITS = TransferLimits(max_bytes=512 * MIB, links="inside")
_COPY_SEC = 60.0


class OwnPython(NamedTuple):
    """`argv` starts it; `packages` are directories of packages that it does not have itself."""

    argv: Sequence[str]
    packages: Sequence[str]


async def bring_python(
    ctx: Context, package: TaskPackage, target: Sandbox, interpreters: str
) -> OwnPython:
    """Put a copy of the pristine image's Python into `target`.

    It has a directory, a loader and libraries of its own, so that nothing that the agent changed
    or planted in its file system takes part: the interpreter, the standard library and the C
    library are as the image has them.

    Args:
        ctx: the rollout.
        package: the task's directory.
        target: where it is to be; its file system was an agent's.
        interpreters: words of `/bin/sh`, the places where the image may have it.

    Raises:
        InfraError: the image has no Python that can be copied.
        SandboxError: either sandbox failed.
    """
    async with scratch_folder(ctx) as folder, fresh_sandbox(ctx, package, _as_it_is) as pristine:
        packages = await _make_copy(pristine, interpreters)
        top = folder / "python"
        await pristine.download(_PLACE, top, limits=_LIMITS)
        if not (top / "bin" / "loader").is_file():
            raise InfraError("the image's Python is started without a loader; it cannot be copied")
        await asyncio.to_thread(_open, top)
        await target.upload(top, _PLACE, clear=True)
        (folder / "preload").touch()
        await _empty_preload(target, folder / "preload")
    argv = [f"{_PLACE}/bin/loader", "--library-path", f"{_PLACE}/so", f"{_PLACE}/bin/python3"]
    return OwnPython(argv, packages)


async def _empty_preload(target: Sandbox, nothing: Path) -> None:
    """Empty the list of what the loader puts into every program, whoever starts it."""
    try:
        await target.upload(nothing, "/etc/ld.so.preload", clear=True)
    except SandboxError as error:
        # A mount stands there. Only the provider can have made it: mounts are no part of a frozen
        # file system. Docker's copies have an empty list laid over the agent's.
        if os.strerror(errno.EBUSY) not in str(error):
            raise


async def _as_it_is(sandbox: Sandbox, ctx: Context) -> None:
    """The image alone is wanted, without what the task puts there."""


async def _make_copy(pristine: Sandbox, interpreters: str) -> list[str]:
    text = shlex.quote((SOURCES / "toolbox.py").read_text())
    start = f'exec "$p" -I -B -c {text} {_PLACE}'
    line = f'for p in {interpreters}; do [ -x "$p" ] && {start}; done'
    done = await pristine.exec(["/bin/sh", "-c", line], user="root", cwd="/", timeout_sec=_COPY_SEC)
    try:
        return msgspec.json.decode(done.stdout, type=list[str])
    except msgspec.DecodeError as error:
        said = done.stderr[-300:].decode(errors="replace")
        raise InfraError(f"the image has no Python that can be copied: {said}") from error


def _open(top: Path) -> None:
    """Everybody may read and start it."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            program = path.is_dir() or path.parent.name in ("bin", "so")
            path.chmod(0o755 if program else 0o644)
