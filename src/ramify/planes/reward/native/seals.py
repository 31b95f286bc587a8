"""Seals of a directory tree of ours: whether it is whole, and as it was when it was finished.

A seal names each entry with its type, mode, owner, size and times, the time of the last change of
its inode among them: whoever changes a file and sets its other times back cannot set that one. So a
tree costs no more to check than to list. Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

_SEALS = "seals.json"
_TREE = "tree"


class Sealed(msgspec.Struct, frozen=True):
    """What is kept beside a tree: the seal of each entry, its size in bytes, and a note."""

    entries: dict[str, str]
    size: int
    note: bytes


_decoder = msgspec.json.Decoder(Sealed)


def tree_of(place: Path) -> Path:
    """Where the tree lies in its place."""
    return place / _TREE


def seal(place: Path, note: bytes) -> None:
    """Finish the tree in a place: open to all readers, on the disk, sealed.

    Raises: OSError.
    """
    top = tree_of(place)
    for path in (top, *top.rglob("*")):
        if path.is_symlink():
            continue
        program = path.is_dir() or path.parent.name in ("bin", "so")
        path.chmod(0o755 if path.is_dir() else 0o555 if program else 0o444)
        _to_disk(path)
    sizes = [path.lstat().st_size for path in top.rglob("*") if path.is_file()]
    sealed = Sealed(_entries(top), sum(sizes), note)
    with open(place / _SEALS, "xb") as file:
        file.write(msgspec.json.encode(sealed))
        file.flush()
        os.fsync(file.fileno())
    _to_disk(place)


def unbroken(place: Path) -> Sealed | None:
    """What was sealed in a place; None where there is nothing, not all of it, or something else.

    Raises: OSError (it cannot be read).
    """
    try:
        sealed = _decoder.decode((place / _SEALS).read_bytes())
        same = _entries(tree_of(place)) == sealed.entries
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None  # nobody made it, or somebody had no time to: it is made anew
    return sealed if same else None


def used(place: Path) -> None:
    """Note that a place was of use now. Raises: OSError."""
    os.utime(place / _SEALS)


def last_use(place: Path) -> tuple[float, int]:
    """When a place was last of use, and its size in bytes; zeros for what is none."""
    try:
        sealed = _decoder.decode((place / _SEALS).read_bytes())
        return (place / _SEALS).stat().st_mtime, sealed.size
    except (OSError, msgspec.DecodeError):  # half made, or spoilt: the first to go
        return 0.0, 0


def renamed(place: Path, name: Path) -> None:
    """Give a finished place its name, for good. Raises: OSError."""
    os.rename(place, name)
    _to_disk(name.parent)


def _entries(top: Path) -> dict[str, str]:
    return dict(_walk(os.fspath(top), ""))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in os.scandir(folder):
        info = entry.stat(follow_symlinks=False)
        name = prefix + entry.name
        if stat.S_ISDIR(info.st_mode):
            yield name, f"{info.st_mode:o} {info.st_uid}"
            yield from _walk(entry.path, f"{name}/")
            continue
        to = os.readlink(entry.path) if stat.S_ISLNK(info.st_mode) else ""
        times = f"{info.st_mtime_ns} {info.st_ctime_ns}"
        yield name, f"{info.st_mode:o} {info.st_uid} {info.st_size} {times} {to}"


def _to_disk(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
