"""An in-memory file system for `FakeSandbox`: files, directories, links and special files."""

from __future__ import annotations

import posixpath
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ramify.contracts.errors import SandboxError, TransferLimitError
from ramify.contracts.sandbox import TransferLimits, TransferReport


@dataclass(frozen=True, slots=True)
class FakeEntry:
    """One path: what it is, and a file's content or a link's target."""

    kind: Literal["file", "dir", "link", "special"]
    data: bytes = b""
    mode: int = 0o644
    owner: str = "root"


@dataclass(slots=True)
class FakeFiles:
    """Entries by normal absolute path. Parents exist; nothing is ever below a non-directory."""

    entries: dict[str, FakeEntry] = field(
        default_factory=lambda: {"/": FakeEntry("dir", mode=0o755)}
    )

    def copy(self) -> FakeFiles:
        """An independent copy."""
        return FakeFiles(dict(self.entries))

    def put(self, path: str, entry: FakeEntry) -> None:
        """Create or replace an entry. Raises SandboxError below something not a directory."""
        path = _normal(path)
        self._parents(path)
        if entry.kind != "dir" or not self.is_dir(path):
            self.remove(path)
        self.entries[path] = entry

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file, its parents included."""
        content = data.encode() if isinstance(data, str) else data
        self.put(path, FakeEntry("file", content, mode))

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        self.put(path, FakeEntry("link", target.encode()))

    def special(self, path: str) -> None:
        """Make something that is neither file, directory nor link: a FIFO, a socket, a device."""
        self.put(path, FakeEntry("special"))

    def read(self, path: str) -> bytes:
        """Content of a file. Raises FileNotFoundError."""
        entry = self.entries.get(_normal(path))
        if entry is None or entry.kind != "file":
            raise FileNotFoundError(path)
        return entry.data

    def is_dir(self, path: str) -> bool:
        """Whether it is a directory, and not a link to one."""
        entry = self.entries.get(_normal(path))
        return entry is not None and entry.kind == "dir"

    def below(self, path: str) -> list[str]:
        """Everything below a directory, parents first, as paths relative to it."""
        prefix = _normal(path).rstrip("/") + "/"
        return sorted(p[len(prefix) :] for p in self.entries if p.startswith(prefix) and p != "/")

    def remove(self, path: str) -> None:
        """Remove an entry and all below it; a link itself, never its target. Idempotent."""
        path = _normal(path)
        for name in [path, *(posixpath.join(path, rest) for rest in self.below(path))]:
            if name != "/":
                self.entries.pop(name, None)

    def take(
        self, local: Path, remote: str, *, owner: str | None, mode: int | None, clear: bool
    ) -> None:
        """Do what `Sandbox.upload` promises."""
        remote = _normal(remote)
        if clear:
            self.remove(remote)
        if not local.is_dir():
            self._take_one(local, remote, owner, mode)
            return
        if not self.is_dir(remote):
            self.put(remote, FakeEntry("dir", mode=0o755, owner=owner or "root"))
        for path in sorted(local.rglob("*")):
            target = posixpath.join(remote, path.relative_to(local).as_posix())
            self._take_one(path, target, owner, mode)

    def _take_one(self, local: Path, target: str, owner: str | None, mode: int | None) -> None:
        who = owner or "root"
        if local.is_symlink():
            self.put(target, FakeEntry("link", str(local.readlink()).encode(), owner=who))
            return
        own = stat.S_IMODE(local.stat().st_mode)
        if local.is_dir():
            self.put(target, FakeEntry("dir", mode=own, owner=who))
        else:
            bits = own if mode is None else mode
            self.put(target, FakeEntry("file", local.read_bytes(), bits, who))

    def give(self, remote: str, local: Path, limits: TransferLimits) -> TransferReport:
        """Do what `Sandbox.download` promises."""
        remote = _normal(remote)
        root = self.entries.get(remote)
        if root is None or root.kind not in ("file", "dir") or self._through_link(remote):
            raise FileNotFoundError(remote)
        sink = _Sink(limits)
        if root.kind == "file":
            local.parent.mkdir(parents=True, exist_ok=True)
            sink.file(local, root)
            return sink.report()
        local.mkdir(parents=True, exist_ok=True)
        for name in self.below(remote):
            sink.entry(local, name, self.entries[posixpath.join(remote, name)])
        return sink.report()

    def _parents(self, path: str) -> None:
        parent = posixpath.dirname(path)
        if path == "/" or self.is_dir(parent):
            return
        if parent in self.entries:
            raise SandboxError(f"{parent} inside is not a directory")
        self.put(parent, FakeEntry("dir", mode=0o755))

    def _through_link(self, path: str) -> bool:
        parent = posixpath.dirname(path)
        return path != "/" and (not self.is_dir(parent) or self._through_link(parent))


@dataclass(slots=True)
class _Sink:
    """Writes entries to the host within limits."""

    limits: TransferLimits
    entries: int = 0
    files: int = 0
    bytes: int = 0
    dropped: list[str] = field(default_factory=list[str])

    def entry(self, root: Path, name: str, entry: FakeEntry) -> None:
        self.entries += 1
        if self.entries > self.limits.max_entries:
            raise TransferLimitError(f"the tree has more than {self.limits.max_entries} entries")
        if name.count("/") + 1 > self.limits.max_depth:
            raise TransferLimitError(f"the tree is deeper than {self.limits.max_depth} levels")
        match entry.kind:
            case "file":
                self.file(root / name, entry)
            case "dir":
                (root / name).mkdir(exist_ok=True)
            case "link" if self.limits.links == "inside" and _stays(name, entry.data.decode()):
                (root / name).symlink_to(entry.data.decode())
            case "link":
                self.dropped.append(f"{name}: symbolic link")
            case "special":
                self.dropped.append(f"{name}: not a regular file, directory or link")

    def file(self, local: Path, entry: FakeEntry) -> None:
        self.bytes += len(entry.data)
        if len(entry.data) > self.limits.max_file_bytes or self.bytes > self.limits.max_bytes:
            raise TransferLimitError("the tree has more bytes than may cross")
        self.files += 1
        local.write_bytes(entry.data)
        local.chmod((entry.mode & 0o777) | 0o600)

    def report(self) -> TransferReport:
        return TransferReport(self.files, self.bytes, tuple(self.dropped[:100]), len(self.dropped))


def _stays(name: str, target: str) -> bool:
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return not target.startswith("/") and landing.split("/")[0] != ".."


def _normal(path: str) -> str:
    if not path.startswith("/"):
        raise SandboxError(f"{path!r} is not an absolute path")
    return posixpath.normpath("/" + path.lstrip("/"))
