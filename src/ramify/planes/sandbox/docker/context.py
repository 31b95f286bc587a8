"""Docker build contexts: which files belong to one, as a deterministic archive with a digest."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ramify.contracts.errors import ConfigError

_CHUNK = 1024 * 1024
_IN_MEMORY = 8 * 1024 * 1024


class _Hash(Protocol):
    """What is needed of a hash object."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class BuildContext:
    """An archive to build from (an open temporary file) and the digest of what it holds."""

    archive: IO[bytes]
    digest: str

    def chunks(self) -> Iterator[bytes]:
        """The archive, piece by piece, from its beginning."""
        self.archive.seek(0)
        while data := self.archive.read(_CHUNK):
            yield data


def make_context(root: Path, dockerfile: str, sources: Sequence[str] = ()) -> BuildContext:
    """Pack a context as the docker command does, `.dockerignore` honoured; blocking.

    Given `sources`, nothing but these paths, what is below them, and the Dockerfile. Times, owners
    and the order of the directory do not count, so equal content has an equal digest.

    Raises: ConfigError (no such directory or Dockerfile).
    """
    if not root.is_dir():
        raise ConfigError(f"no such build context: {root}", field="context")
    if not (root / dockerfile).is_file():
        raise ConfigError(f"no such file: {root / dockerfile}", field="dockerfile")
    keep = {Path(dockerfile).as_posix(), ".dockerignore"}
    rules = _rules(root, dockerfile)
    digest = hashlib.sha256(dockerfile.encode())
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (the caller's)
    try:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in _walk(root, "", _Choice(rules, keep, sources)):
                _add(archive, root, path, digest)
    except BaseException:
        spool.close()
        raise
    return BuildContext(spool, digest.hexdigest())


def _add(archive: tarfile.TarFile, root: Path, path: str, digest: _Hash) -> None:
    info = (root / path).lstat()
    header = tarfile.TarInfo(path)
    header.mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        header.type, header.linkname, header.mode = tarfile.SYMTYPE, os.readlink(root / path), 0o777
        data: IO[bytes] | None = None
    elif stat.S_ISDIR(info.st_mode):
        header.type, data = tarfile.DIRTYPE, None
    elif stat.S_ISREG(info.st_mode):
        header.size = info.st_size
        data = (root / path).open("rb")
    else:
        return  # sockets and devices are no part of a context
    digest.update(f"{path}\0{header.type!r}\0{header.mode}\0{header.linkname}\0".encode())
    digest.update(f"{header.size}\0".encode())
    if data is None:
        archive.addfile(header)
        return
    with data:
        archive.addfile(header, _Hashing(data, digest))


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes], digest: _Hash) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    keep: bool


def _rules(root: Path, dockerfile: str) -> list[_Rule]:
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        try:
            text = (root / name).read_text("utf-8", "replace")
        except FileNotFoundError:
            continue
        return [rule for line in text.splitlines() if (rule := _rule(line)) is not None]
    return []


def _rule(line: str) -> _Rule | None:
    text = line.strip()
    if not text or line.startswith("#"):
        return None
    keep = text.startswith("!")
    pattern = os.path.normpath(text.removeprefix("!").strip()).lstrip("/")
    return None if pattern in ("", ".") else _Rule(_compile(pattern), keep)


def _compile(pattern: str) -> re.Pattern[str]:
    """Docker's patterns: `*`, `?` and `[...]` within one component, `**` across them.

    A directory's match covers what is in it.
    """
    out, index = "", 0
    while index < len(pattern):
        char = pattern[index]
        if pattern.startswith("**", index):
            index += 2
            if pattern.startswith("/", index):
                index += 1
                out += "(?:.*/)?"
            else:
                out += ".*"
            continue
        end = pattern.find("]", index + 2) if char == "[" else -1
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif end > 0:
            inner = pattern[index + 1 : end].replace("\\", "\\\\")
            out += f"[{inner}]"
            index = end
        elif char == "\\" and index + 1 < len(pattern):
            index += 1
            out += re.escape(pattern[index])
        else:
            out += re.escape(char)
        index += 1
    try:
        return re.compile(out + "(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise ConfigError(f"bad pattern {pattern!r}: {error}", file=".dockerignore") from error


@dataclass(frozen=True, slots=True)
class _Choice:
    """What of a directory belongs to a context.

    Attributes:
        rules: those of `.dockerignore`.
        keep: paths that no rule leaves out.
        sources: the paths that alone belong to it; empty: all.
    """

    rules: list[_Rule]
    keep: set[str]
    sources: Sequence[str]

    def takes(self, path: str) -> bool:
        return path in self.keep or (self._chosen(path) and not _ignored(path, self.rules))

    def enters(self, path: str, taken: bool) -> bool:
        """Whether something in a directory may belong to it."""
        inside = path + "/"
        if any(item.startswith(inside) for item in self.keep):
            return True
        if not self._chosen(path) and not any(s.startswith(inside) for s in self.sources):
            return False
        # What is ignored is still entered where an exception may bring back something in it.
        return taken or not self._chosen(path) or any(rule.keep for rule in self.rules)

    def _chosen(self, path: str) -> bool:
        return not self.sources or any(
            path == source or path.startswith(source + "/") for source in self.sources
        )


def _walk(root: Path, prefix: str, choice: _Choice) -> Iterator[str]:
    with os.scandir(root / prefix) as found:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_dir in names:
        path = prefix + name
        taken = choice.takes(path)
        if taken:
            yield path
        if is_dir and choice.enters(path, taken):
            yield from _walk(root, path + "/", choice)


def _ignored(path: str, rules: list[_Rule]) -> bool:
    ignored = False
    for rule in rules:
        if rule.pattern.fullmatch(path):
            ignored = not rule.keep
    return ignored
