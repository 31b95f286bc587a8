"""Tar archives of a tree that came out of a sandbox: read with bounds, never extracted."""

from __future__ import annotations

import copy
import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ramify.contracts.errors import EnvironmentFailed

_ENTRIES = 1_000_000
_BYTES = 16 << 30  # of content, holes of sparse files counted
_CHUNK = 1 << 20
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.LNKTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "link",
    tarfile.FIFOTYPE: "fifo",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree. `content` is a digest of a file, the target of a link."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str

    def __str__(self) -> str:
        about = f"{self.kind} {self.mode:o} {self.uid}:{self.gid}"
        if self.kind == "file":
            return f"{about} {self.size} sha256:{self.content}"
        return f"{about} -> {self.content}" if self.kind == "link" else about


def read_archive(archive: Path, exclude: Sequence[str]) -> dict[str, Entry]:
    """Absolute path → entry. Devices and sockets are left out, and what `exclude` matches.

    Raises: EnvironmentFailed (not an archive, or beyond the bounds).
    """
    found: dict[str, Entry] = {}
    total = 0
    try:
        with tarfile.open(archive, errorlevel=2) as tar:
            for number, member in enumerate(tar):
                total += member.size
                if number >= _ENTRIES or total > _BYTES:
                    raise EnvironmentFailed("the tree is too large to be compared")
                path = _path(member.name)
                if member.type in _KINDS and not _excluded(path, exclude):
                    found[path] = _entry(tar, member, found)
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise EnvironmentFailed(f"the archive of the files cannot be read: {error}") from error
    return found


def write_archive(source: Path, target: Path, paths: set[str]) -> None:
    """Make an archive of some of the paths of another, in its order.

    A second name of a file is written as a file of its own where the first is not among them.
    """
    with (
        tarfile.open(source) as old,
        tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as new,
    ):
        written: set[str] = set()
        for member in old:
            path = _path(member.name)
            if path not in paths:
                continue
            written.add(path)
            if member.islnk() and _path(member.linkname) in written:
                new.addfile(member)
            elif _KINDS.get(member.type) == "file":
                content = old.extractfile(member)
                plain = copy.copy(member)  # `replace` came with Python 3.11.4
                plain.type, plain.linkname = tarfile.REGTYPE, ""
                plain.size = _target(old, member).size
                new.addfile(plain, content)
            else:
                new.addfile(member)


def _target(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member that holds the content of one."""
    if not member.islnk():
        return member
    target = tar.getmember(member.linkname)
    if target.islnk():
        raise ValueError(f"{member.name!r} is a link to a link")
    return target


def _path(name: str) -> str:
    return "/" + name.removeprefix(".").strip("/")


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, Entry]) -> Entry:
    kind, size, content = _KINDS[member.type], 0, ""
    if kind == "link":
        content = member.linkname
    elif member.islnk() and _path(member.linkname) in found:
        first = found[_path(member.linkname)]
        size, content = first.size, first.content
    elif kind == "file":
        digest = hashlib.sha256()
        data = tar.extractfile(member)
        while data is not None and (chunk := data.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
        content = digest.hexdigest()
    mode = 0o777 if kind == "link" else member.mode
    return Entry(kind, mode, member.uid, member.gid, size, content)


def _excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a part of the path that begins and ends at a slash, as in tar."""
    if not patterns:
        return False
    parts = path.strip("/").split("/")
    pieces = {
        "/".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    }
    return any(fnmatchcase(piece, pattern.strip("/")) for piece in pieces for pattern in patterns)
