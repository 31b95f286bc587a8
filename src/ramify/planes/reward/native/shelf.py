"""Prepared trees on the host: each made once, shared by everybody who needs it, bounded in size."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import InfraError
from ramify.contracts.sandbox import MIB
from ramify.planes.reward.native import seals

_POLL_SEC = 0.02
_NEW = ".new"

Make = Callable[[Path], Awaitable[bytes]]
"""Fills an empty directory, and returns a note that is kept with it."""
StillGood = Callable[[bytes], bool]
"""Whether a tree with this note is still what it should be. Blocking."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Trees by key, in a directory of ours that all engines of a user share.

    A tree is never changed once it has its name: it is made under another one, brought to the disk,
    sealed, renamed. One that an engine left half made, or that somebody changed, is made anew.

    Attributes:
        root: the directory; made when it is needed.
        most_bytes: what was of no use for longest goes when all are larger than this together;
            never what somebody holds.
        wait_sec: how long to wait for somebody else who makes the same tree.
    """

    root: Path
    most_bytes: int = 1024 * MIB
    wait_sec: float = 300.0

    @asynccontextmanager
    async def hold(
        self, key: str, make: Make, still_good: StillGood
    ) -> AsyncGenerator[tuple[Path, bytes]]:
        """The tree of a key and its note, which stay for as long as this is held.

        Args:
            key: names the content; letters, digits and hyphens.
            make: makes it where it is not there, or not whole.
            still_good: asked of one that is there.

        Raises: InfraError (somebody else has been making it for too long, or the directory is
        another's), OSError, and what `make` raises.
        """
        root = await asyncio.to_thread(self._open_root)
        place = root / key
        with _Locks(root) as locks:
            await self._wait(locks, key, _USING, fcntl.F_RDLCK)
            found = await asyncio.to_thread(_look, place, still_good)
            if found is None:
                await self._wait(locks, key, _MAKING, fcntl.F_WRLCK)
                found = await asyncio.to_thread(_look, place, still_good)
                if found is None:
                    found = await _made(place, make)
                locks.release(key, _MAKING)
                await asyncio.to_thread(self._shrink, root, key)
            yield seals.tree_of(place), found

    async def _wait(self, locks: _Locks, key: str, use: int, kind: int) -> None:
        try:
            async with asyncio.timeout(self.wait_sec):
                while not locks.take(key, use, kind):  # noqa: ASYNC110  (of other engines, too)
                    await asyncio.sleep(_POLL_SEC)
        except TimeoutError:
            raise InfraError(
                f"another engine has been preparing {self.root / key} for more than "
                f"{self.wait_sec:.0f} s; end it, or remove that directory"
            ) from None

    def _open_root(self) -> Path:
        """The directory, under its own name."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = self.root.stat()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise InfraError(
                f"others may write to {self.root}, so what tests run on cannot be kept there; give"
                " RAMIFY_HOME a directory of your own"
            )
        return self.root.resolve()

    def _shrink(self, root: Path, kept: str) -> None:
        """Remove what was of no use for longest, and what dead engines left, if nobody holds it."""
        names = {entry.name.removesuffix(_NEW) for entry in os.scandir(root) if entry.is_dir()}
        uses = {name: seals.last_use(root / name) for name in names}
        total = sum(size for _, size in uses.values())
        for name in sorted(names - {kept}, key=lambda name: uses[name]):
            size, fresh = uses[name][1], root / f"{name}{_NEW}"
            needless = total > self.most_bytes or not size
            if not needless and not fresh.exists():
                continue
            with _Locks(root) as locks:
                if not all(locks.take(name, use, fcntl.F_WRLCK) for use in (_MAKING, _USING)):
                    continue
                for gone in (fresh, *([root / name] if needless else [])):
                    shutil.rmtree(gone, ignore_errors=True)
            total -= size if needless else 0


_MAKING, _USING = 0, 1


class _Locks:
    """Locks of an open file of its own, which end with it. Each is a byte of one file."""

    def __init__(self, root: Path) -> None:
        self._path = root / "locks"
        self._fd = -1

    def __enter__(self) -> _Locks:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def take(self, key: str, use: int, kind: int) -> bool:
        """Take one at once; False where somebody else has it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(key, use, kind))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: it is held
            return False
        return True

    def release(self, key: str, use: int) -> None:
        """Let go of one."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(key, use, fcntl.F_UNLCK))


def _flock(key: str, use: int, kind: int) -> bytes:
    """The kernel's `struct flock` for a byte."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) * 2 + use
    return struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0)


async def _made(place: Path, make: Make) -> bytes:
    """Make it; whoever holds the lock for that may remove what another left."""
    fresh = place.with_name(f"{place.name}{_NEW}")
    try:
        await asyncio.to_thread(_start_anew, fresh)
        note = await make(seals.tree_of(fresh))
        await asyncio.to_thread(_finish, fresh, place, note)
        return note
    finally:
        await uninterrupted(asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True))


def _look(place: Path, still_good: StillGood) -> bytes | None:
    sealed = seals.unbroken(place)
    if sealed is None or not still_good(sealed.note):
        return None
    seals.used(place)
    return sealed.note


def _start_anew(fresh: Path) -> None:
    if fresh.exists():
        shutil.rmtree(fresh)
    seals.tree_of(fresh).mkdir(parents=True)


def _finish(fresh: Path, place: Path, note: bytes) -> None:
    seals.seal(fresh, note)
    if place.exists():
        shutil.rmtree(place)
    seals.renamed(fresh, place)
