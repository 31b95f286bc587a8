"""Removes trees that hostile steps wrote: of any depth, with any permissions, following no link."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

REMOVED = ".removed-"
"""How the name of a directory begins whose removal has begun."""

_NOT_A_FILE = (errno.EISDIR, errno.EPERM)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def in_use(directory: Path, *, shared: bool = False) -> Generator[None]:
    """Keep `remove_unused` from a directory. A process that dies lets go of it.

    Waits for whoever uses it, unless both do so `shared`. Raises: OSError (no such directory).
    """
    descriptor = os.open(directory, _DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            # A process that was forked meanwhile has the descriptor too: closing is not enough.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def remove_unused(directory: Path) -> bool:
    """Remove a directory unless it is `in_use`; whether it is gone.

    Raises: OSError (something in it cannot be removed; what is left is called `.removed-...`).
    """
    _open_up(directory)
    top = os.open(directory, _DIRECTORY)
    try:
        try:
            fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        gone = directory
        if not directory.name.startswith(REMOVED):  # nobody takes half of it for the whole
            gone = directory.with_name(REMOVED + directory.name)
            os.rename(directory, gone)
        _empty(top)
        os.rmdir(gone)
    finally:
        os.close(top)
    return True


def remove_tree(directory: Path) -> None:
    """Remove a directory and everything below it. Raises: OSError."""
    _open_up(directory)
    top = os.open(directory, _DIRECTORY)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(directory)


def _empty(top: int) -> None:
    """Remove everything below a directory, however deep, with one descriptor more.

    Directories within directories are moved up to `top` before they are emptied themselves.
    """
    while names := os.listdir(top):
        for name in names:
            if _unlinked(top, name):
                continue
            try:
                os.rmdir(name, dir_fd=top)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                _lift(top, name)


def _lift(top: int, name: str) -> None:
    """Remove the files of the directory `name` in `top`; its directories move into `top`."""
    _open_up(name, top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if not _unlinked(inner, child):
                _open_up(child, inner)
                target = f".{secrets.token_hex(8)}"
                os.rename(child, target, src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


def _unlinked(directory: int, name: str) -> bool:
    """Remove a file, link or device; False for a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in _NOT_A_FILE and _is_directory(directory, name):
            return False
        raise
    return True


def _is_directory(directory: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _open_up(path: Path | str, directory: int | None = None) -> None:
    """Let the owner into a directory whatever its permissions are; a link is not followed."""
    found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        if os.fstat(found).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{found}", 0o700)
    finally:
        os.close(found)
