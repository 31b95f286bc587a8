"""A Python of the verifier's own, taken from the pristine image to where an agent was root."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramify.contracts.config import ramify_home
from ramify.contracts.context import Context
from ramify.contracts.errors import InfraError, InvalidRewardError, SandboxError
from ramify.contracts.sandbox import MIB, Mount, Sandbox, SandboxImage, TransferLimits
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import TaskPackage
from ramify.planes.reward.native.harness import CODE_UID, HARNESS_DIR, SOURCES
from ramify.planes.reward.native.shelf import Shelf
from ramify.planes.reward.stage import agent_sandbox, fresh_sandbox, has_own_image

_PLACE = f"{HARNESS_DIR}-python"
_LIMITS = TransferLimits(max_bytes=256 * MIB, max_entries=5000, links="inside")
_COPY_SEC = 180.0
_CLOSE_SEC = 30.0
_STAYS_OPEN = 3
_PLAIN_LOCALE = {"LC_ALL": "C"}
"""For any other the C library looks up in files, which an agent may have written, what code
converts its characters, and loads that."""


class _Note(msgspec.Struct, frozen=True):
    """What the program that makes a copy says of it; see inside/toolbox.py."""

    packages: tuple[str, ...]
    sources: tuple[tuple[str, int, int], ...]


_decoder = msgspec.json.Decoder(_Note)


class OwnPython(NamedTuple):
    """`argv` starts it, in the environment `env`; `packages` it finds in these directories."""

    argv: Sequence[str]
    packages: Sequence[str]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PreparedPython:
    """A copy of the pristine image's Python on the host, which stays while this is held.

    It has a loader and libraries of its own, so that nothing that the agent changed or planted in
    its file system takes part: the interpreter, the standard library and the C library are as the
    image has them.
    """

    tree: Path
    packages: tuple[str, ...]
    mount: Mount
    """Shows it where nobody can have put anything before. For a sandbox that is still to be."""

    async def bring(self, target: Sandbox, ctx: Context) -> OwnPython:
        """Have it in `target`, whose file system was an agent's: mounted there, else uploaded.

        Raises: SandboxError, InvalidRewardError (`tampered`: the agent's code could exchange it).
        """
        source = self.mount.source
        shown = [mount.target for mount in target.spec.mounts if mount.source == source]
        place = shown[0] if shown else _PLACE
        if not shown:
            await target.upload(self.tree, place, clear=True)
        async with Scratch() as folder:
            (folder / "preload").touch()
            await _empty_preload(target, folder / "preload")
        loader = [f"{place}/bin/loader", "--library-path", f"{place}/so", f"{place}/bin/python3"]
        own = OwnPython([*loader, "-X", "utf8"], self.packages, _PLAIN_LOCALE)
        await _close(target, own)
        return own


@asynccontextmanager
async def prepared_python(
    ctx: Context, package: TaskPackage, interpreters: str
) -> AsyncGenerator[PreparedPython]:
    """The copy of the Python of a task's pristine image; made once per image and user.

    Args:
        ctx: the rollout.
        package: the task's directory.
        interpreters: words of `/bin/sh`, the places where the image may have it.

    Raises:
        InfraError: the image has no Python that can be copied.
        SandboxError: the sandbox in which the copy is made failed.
    """
    sandbox, provider = agent_sandbox(ctx)
    spec = sandbox.spec
    if package.verifier.sandbox is not None and has_own_image(package):
        spec = package.verifier.sandbox
        image = await provider.prepare(spec)
    else:
        image = ctx.image or await provider.prepare(spec)

    async def make(folder: Path) -> bytes:
        async with fresh_sandbox(ctx, package, _as_it_is) as pristine:
            note = await _make_copy(pristine, interpreters)
            await pristine.download(_PLACE, folder, limits=_LIMITS)
        if not (folder / "bin" / "loader").is_file():
            raise InfraError("the image's Python is started without a loader; it cannot be copied")
        return note

    def still_good(note: bytes) -> bool:
        # The digest of the host's own root does not tell each change of its files.
        return not spec.host_root or all(
            _stamp(path) == (size, changed) for path, size, changed in _decoder.decode(note).sources
        )

    shelf = Shelf(ramify_home() / "pythons")
    async with shelf.hold(_key(provider.name, image, interpreters), make, still_good) as held:
        tree, note = held
        mount = Mount(str(tree), f"{_PLACE}-{os.urandom(8).hex()}")
        yield PreparedPython(tree, _decoder.decode(note).packages, mount)


def _key(provider: str, image: SandboxImage, interpreters: str) -> str:
    made_by = (SOURCES / "toolbox.py").read_text()
    facts = msgspec.json.encode([provider, image.digest, interpreters, made_by])
    return hashlib.sha256(facts).hexdigest()[:32]


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:  # it is gone, or we may not see it: not what was copied
        return None
    return info.st_size, info.st_mtime_ns


async def _empty_preload(target: Sandbox, nothing: Path) -> None:
    """Empty the list of what the loader puts into every program, whoever starts it."""
    try:
        await target.upload(nothing, "/etc/ld.so.preload", clear=True)
    except SandboxError as error:
        # A mount stands there. Only the provider can have made it: mounts are no part of a frozen
        # file system. Docker's copies have an empty list laid over the agent's.
        if os.strerror(errno.EBUSY) not in str(error):
            raise


async def _close(target: Sandbox, own: OwnPython) -> None:
    """Take back from all users what an agent may have opened: to exchange what lies in the root."""
    program = (SOURCES / "closing.py").read_text()
    line = [*own.argv, "-I", "-S", "-B", "-c", program, str(CODE_UID)]
    done = await target.exec(line, user="root", cwd="/", env=own.env, timeout_sec=_CLOSE_SEC)
    if done.exit_code == _STAYS_OPEN:
        raise InvalidRewardError("tampered", "the agent left the root directory open to others")
    if not done.ok:
        said = done.stderr[-300:].decode(errors="replace")
        raise InfraError(f"cannot set modes in the verifier's sandbox: {said}")


async def _as_it_is(sandbox: Sandbox, ctx: Context) -> None:
    """The image alone is wanted, without what the task puts there."""


async def _make_copy(pristine: Sandbox, interpreters: str) -> bytes:
    text = shlex.quote((SOURCES / "toolbox.py").read_text())
    start = f'exec "$p" -I -B -c {text} {_PLACE}'
    line = f'for p in {interpreters}; do [ -x "$p" ] && {start}; done'
    done = await pristine.exec(["/bin/sh", "-c", line], user="root", cwd="/", timeout_sec=_COPY_SEC)
    try:
        return msgspec.json.encode(_decoder.decode(done.stdout))
    except msgspec.DecodeError as error:
        said = done.stderr[-300:].decode(errors="replace")
        raise InfraError(f"the image has no Python that can be copied: {said}") from error
