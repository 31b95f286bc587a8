"""Which runs are kept in the artifact directory, and how the others are removed.

What lies in a run was written by hostile steps: links are never followed, and trees of any depth
and with any permissions are removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

MANIFEST = "manifest.json"
"""Name of the file that makes a run a finished one."""

_SIZE = ".bytes"
_REMOVED = ".removed-"
_CRASHED_AFTER_SEC = 3600.0
_NOT_A_FILE = (errno.EISDIR, errno.EPERM)


class Swept(msgspec.Struct, frozen=True):
    """What was removed: runs by id, and what could not be (a line each)."""

    runs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@contextmanager
def held_run(directory: Path) -> Generator[None]:
    """Mark a run as running, so that no sweep takes it. A process that dies lets go of it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def sweep(artifacts: Path, *, keep_runs: int, keep_bytes: int, now: float) -> Swept:
    """Remove runs beyond the newest `keep_runs`, or beyond `keep_bytes` of all that are kept.

    The newest finished run is kept whatever its size. A run that never finished (it has no
    manifest) goes an hour after it was last touched. Runs that are going on are left alone.
    `now`: seconds since the epoch.
    """
    folder = artifacts / "runs"
    finished: list[tuple[float, str]] = []
    doomed: list[str] = []
    for name, is_directory in _entries(folder):
        if not is_directory:
            continue
        if name.startswith(_REMOVED):
            doomed.append(name)
            continue
        done = _changed(folder / name / MANIFEST)
        if done is not None:
            finished.append((done, name))
        elif now - (_changed(folder / name) or now) > _CRASHED_AFTER_SEC:
            doomed.append(name)
    finished.sort(reverse=True)
    total = 0
    for rank, (_, name) in enumerate(finished):
        total += _size(folder / name)
        if rank >= keep_runs or (rank > 0 and total > keep_bytes):
            doomed.append(name)
    return _remove_all(folder, doomed)


def _remove_all(folder: Path, names: list[str]) -> Swept:
    runs: list[str] = []
    problems: list[str] = []
    for name in names:
        try:
            if _remove(folder, name):
                runs.append(name.removeprefix(_REMOVED))
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
    return Swept(tuple(runs), tuple(problems))


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            yield from [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return


def _changed(path: Path) -> float | None:
    """When a file or directory was changed; None where there is none, or a link."""
    try:
        status = os.lstat(path)
    except OSError:  # also a run of another user: not ours to judge
        return None
    return None if stat.S_ISLNK(status.st_mode) else status.st_mtime


def _size(run: Path) -> int:
    """Bytes on disk of a finished run, measured once and written down in it."""
    note = run / _SIZE
    with suppress(OSError, ValueError):  # where it was not measured yet
        return int(note.read_text())
    size = _measure(run)
    with suppress(OSError):  # full, or another user's: it is measured again next time
        note.write_text(str(size))
    return size


def _measure(run: Path) -> int:
    """Bytes on disk below `run`; what lies deeper than a path can name is not counted."""
    total, pending = 0, [os.fspath(run)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
        except OSError:  # too deep, or not readable for us
            continue
    return total


def _remove(folder: Path, name: str) -> bool:
    """Remove a run unless it is going on. Raises OSError for what cannot be removed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    _open_up(folder / name)
    top = os.open(folder / name, flags)
    try:
        try:
            fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        gone = name if name.startswith(_REMOVED) else _REMOVED + name
        os.rename(folder / name, folder / gone)  # no half run is ever seen
        _empty(top)
        os.rmdir(folder / gone)
    finally:
        os.close(top)
    return True


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
