"""A Python of the verifier's own, taken from the pristine image to where an agent was root."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from pathlib import Path

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import InfraError
from ramify.contracts.sandbox import MIB, Sandbox, TransferLimits
from ramify.contracts.task import TaskPackage
from ramify.planes.reward.native.harness import HARNESS_DIR, SOURCES
from ramify.planes.reward.stage import fresh_sandbox, scratch_folder

_PLACE = f"{HARNESS_DIR}-python"
_LIMITS = TransferLimits(max_bytes=512 * MIB, links="inside")
_LIST_SEC = 60.0


class _Toolbox(msgspec.Struct):
    python: str
    stdlib: str
    version: str
    libraries: dict[str, list[str]]
    loader: str


async def bring_python(
    ctx: Context, package: TaskPackage, target: Sandbox, interpreters: str
) -> list[str]:
    """Put a copy of the pristine image's Python into `target`; returns how to start it.

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
        box = await _list(pristine, interpreters)
        top = folder / "python"
        (top / "bin").mkdir(parents=True)
        (top / "lib").mkdir()
        (top / "so").mkdir()
        python = top / "bin" / "python3"
        await pristine.download(box.python, python, limits=_LIMITS)
        await pristine.download(box.stdlib, top / "lib" / box.version, limits=_LIMITS)
        for path, names in box.libraries.items():
            first = top / "so" / names[0]
            await pristine.download(path, first, limits=_LIMITS)
            for name in names[1:]:
                shutil.copyfile(first, top / "so" / name)
            if path == box.loader:
                shutil.copyfile(first, top / "bin" / "loader")
        await asyncio.to_thread(_open, top)
        await target.upload(top, _PLACE, clear=True)
        # What the loader would put into every program, whoever starts it.
        (folder / "preload").touch()
        await target.upload(folder / "preload", "/etc/ld.so.preload", clear=True)
    return [f"{_PLACE}/bin/loader", "--library-path", f"{_PLACE}/so", f"{_PLACE}/bin/python3"]


async def _as_it_is(sandbox: Sandbox, ctx: Context) -> None:
    """The image alone is wanted, without what the task puts there."""


async def _list(pristine: Sandbox, interpreters: str) -> _Toolbox:
    text = (SOURCES / "toolbox.py").read_text()
    line = (
        f'for p in {interpreters}; do [ -x "$p" ] && exec "$p" -I -S -c {shlex.quote(text)}; done'
    )
    done = await pristine.exec(["/bin/sh", "-c", line], user="root", cwd="/", timeout_sec=_LIST_SEC)
    try:
        box = msgspec.json.decode(done.stdout, type=_Toolbox)
    except msgspec.DecodeError as error:
        said = done.stderr[-300:].decode(errors="replace")
        raise InfraError(f"the image has no Python that can be copied: {said}") from error
    if not box.loader:
        raise InfraError("the image's Python is started without a loader; it cannot be copied")
    return box


def _open(top: Path) -> None:
    """Everybody may read and start it."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            program = path.is_dir() or path.parent.name in ("bin", "so")
            path.chmod(0o755 if program else 0o644)
