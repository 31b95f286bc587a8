"""Directories for the time being: gone at the end, and gone after the death of whoever made them.

They lie in `RAMIFY_HOME/tmp`, or where something in them is to be renamed into place. Beside each
lies `<name>.lock`, made before it, removed after it, and locked by its maker while that lives.
Another process that makes one in the same place removes those that nobody has locked. A lock is
also held by processes that the maker forked without a new program (`exec`): while one of them
lives, it may be using the directory, which is spared.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.config import ramify_home
from ramify.contracts.errors import StoreError
from ramify.contracts.removal import remove_tree

_HIDDEN = ".ramify-"
_LOCK = ".lock"
_PROCESS = secrets.token_hex(3)
"""How names begin of what this process makes: while it lives, it need not look whether it does."""
_OURS = re.compile(rf"(?:{re.escape(_HIDDEN)})?([0-9a-f]{{6}})[0-9a-f]{{8}}{re.escape(_LOCK)}")


class Scratch:
    """An empty directory of ours alone (mode 0700), as a context manager, blocking or async.

    What it holds may be of any depth and have any permissions: all of it goes at the end, and no
    link is followed.

    Args:
        below: the directory to make it in, with a hidden name; made where it is not there. None:
            `RAMIFY_HOME/tmp`.
    """

    def __init__(self, below: Path | None = None) -> None:
        self._below = below
        self._held: tuple[Path, int] | None = None

    def make(self) -> Path:
        """Make it, unless it is there, and remove what the dead left in the same place. Blocks.

        Raises: StoreError (no directory can be made there).
        """
        if self._held is not None:
            return self._held[0]
        place = self._below or ramify_home() / "tmp"
        prefix = _HIDDEN if self._below else ""
        try:
            place.mkdir(mode=0o777 if self._below else 0o700, parents=True, exist_ok=True)
            self._held = held = _new(place, prefix)
        except OSError as error:
            remedy = "make it a directory that can be written"
            if self._below is None:
                remedy = "set RAMIFY_HOME to a directory that can be written"
            raise StoreError(f"cannot write {place}: {error.strerror}; {remedy}") from error
        _sweep(place, but=_PROCESS)
        return held[0]

    def remove(self) -> None:
        """Remove it with all that it holds. Idempotent; blocks.

        Raises: OSError (something cannot be removed; a later sweep tries again).
        """
        held, self._held = self._held, None
        if held is None:
            return
        path, lock = held
        try:
            _remove(path)
        finally:
            # A process that was forked meanwhile has the descriptor too: closing is not enough.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def __enter__(self) -> Path:
        return self.make()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    async def __aenter__(self) -> Path:
        try:
            return await uninterrupted(asyncio.to_thread(self.make))
        except BaseException:  # cancelled when it was made already
            await uninterrupted(asyncio.to_thread(self.remove))
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await uninterrupted(asyncio.to_thread(self.remove))


def sweep_scratch(place: Path | None = None) -> None:
    """Remove what the dead left below `place` (None: `RAMIFY_HOME/tmp`). Blocks.

    What cannot be removed stays for the next sweep.
    """
    _sweep(place or ramify_home() / "tmp")


def _sweep(place: Path, but: str = "") -> None:
    """Remove what nobody has locked, and leave what the process `but` made."""
    with suppress(OSError):  # not there, or not ours to list: then only the living clear up
        for name in os.listdir(place):
            found = _OURS.fullmatch(name)
            if found is not None and found[1] != but:
                _remove_unlocked(place / name.removesuffix(_LOCK))


def _new(place: Path, prefix: str) -> tuple[Path, int]:
    """A fresh directory, and the descriptor of its lock."""
    while True:
        path = place / f"{prefix}{_PROCESS}{secrets.token_hex(4)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        lock = os.open(_lock_of(path), flags, 0o600)
        try:
            if _taken(lock):
                path.mkdir(mode=0o700)
                return path, lock
        except BaseException:
            _lock_of(path).unlink(missing_ok=True)
            os.close(lock)
            raise
        os.close(lock)  # a sweep was faster; it removes the file, and there is no directory yet


def _taken(lock: int) -> bool:
    """Lock a lock file; False where a sweep has it, or has already removed it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(lock).st_nlink > 0


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):  # in use, removed by another sweep, or not to be removed
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        lock = os.open(_lock_of(path), flags)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    """Remove a directory whose lock is held, then the lock file."""
    try:
        remove_tree(path)
    except FileNotFoundError:
        if os.path.lexists(path):  # something in it went while it was being removed
            raise
    _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_LOCK}")
