"""Which runs are kept in the artifact directory, and how the others are removed.

What lies in a run was written by hostile steps: links are never followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from ramify.apps.pipeline.records import Retention
from ramify.contracts.removal import REMOVED, remove_unused

MANIFEST = "manifest.json"
"""Name of the file that makes a run a finished one."""

_SIZE = ".bytes"
_OWNER = ".repository"
_CRASHED_AFTER_SEC = 3600.0
_READ_SEC = 300.0


class Swept(msgspec.Struct, frozen=True):
    """What was removed: runs by id, and what could not be (a line each)."""

    runs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def belongs_to(run: Path, repository: Path) -> None:
    """Note in a run's directory which repository it is of. Raises: OSError."""
    (run / _OWNER).write_text(_named(repository))


def sweep(
    artifacts: Path, repository: Path | None, keep: Retention, now: float, *, alone: bool = False
) -> Swept:
    """Remove runs of a repository (None: all runs there) beyond the newest that `keep` bounds.

    The newest finished run is kept whatever its size. Unless `alone` (nobody else verifies the
    repository), so is one that finished in the last five minutes: who asked for it may not have
    read it yet. A run that never finished (it has no manifest) goes an hour after it was last
    touched, whose ever it is. Runs that are `in_use` are left alone; several may sweep at once.
    `now`: seconds since the epoch.
    """
    folder = artifacts / "runs"
    finished: list[tuple[float, str]] = []
    doomed: list[str] = []
    for name, is_directory in _entries(folder):
        if not is_directory:
            continue
        if name.startswith(REMOVED):
            doomed.append(name)
            continue
        done = _changed(folder / name / MANIFEST)
        if done is not None:
            if repository is None or _owner(folder / name) == _named(repository):
                finished.append((done, name))
        elif now - (_changed(folder / name) or now) > _CRASHED_AFTER_SEC:
            doomed.append(name)
    finished.sort(reverse=True)
    total = 0
    for rank, (done, name) in enumerate(finished):
        total += _size(folder / name)
        beyond = rank >= keep.runs or (rank > 0 and total > keep.max_bytes)
        if beyond and (alone or now - done > _READ_SEC):
            doomed.append(name)
    return _remove_all(folder, doomed)


def _remove_all(folder: Path, names: list[str]) -> Swept:
    runs: list[str] = []
    problems: list[str] = []
    for name in names:
        try:
            if remove_unused(folder / name):
                runs.append(name.removeprefix(REMOVED))
        except FileNotFoundError:
            continue  # somebody else swept it
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
    return Swept(tuple(runs), tuple(problems))


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            yield from [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return


def _named(repository: Path) -> str:
    return sha256(os.fsencode(repository.resolve())).hexdigest()


def _owner(run: Path) -> str:
    try:
        return (run / _OWNER).read_text()
    except (OSError, ValueError):  # not one of ours: nothing of it is ours to remove
        return ""


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
