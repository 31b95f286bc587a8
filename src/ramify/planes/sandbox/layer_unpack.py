"""Writing a layer's tar stream as an overlay layer.

Images come from people the user trusts more than an agent, so links point where they like and
ownership is kept. Still nothing is written outside the layer: names go through `TreeWriter`.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path
from typing import IO

from ramify.contracts.errors import ConfigError, SandboxError
from ramify.planes.sandbox.descent import write_all
from ramify.planes.sandbox.tarstream import (
    CHAR_DEVICE,
    DIRECTORY,
    FILE,
    HARD_LINK,
    SYMLINK,
    TarEntry,
    TarStream,
)
from ramify.planes.sandbox.treefd import (
    Parts,
    PathRefusedError,
    TreeWriter,
    split_entry_name,
)

_CHUNK = 1024 * 1024
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_KEPT_XATTRS = (b"security.capability", b"user.")
_LAST_ID, _NOBODY = 65535, 65534


def unpack_layer(source: IO[bytes], target: Path, *, whiteouts: bool) -> int:
    """Write the tar stream `source` into the directory `target`; see `LayerWriter`. Blocking.

    Returns how many entries lost their owner. Raises: ConfigError, OSError.
    """
    with closing(LayerWriter(target, whiteouts=whiteouts)) as writer:
        while data := source.read(_CHUNK):
            writer.feed(data)
        return writer.finish()


class LayerWriter:
    """Writes a tar stream that is pushed into it into the directory `target`. Blocking.

    Owners and set-id bits are kept when running as root, file capabilities too. Devices, FIFOs
    and sockets are left out (a sandbox gets its own /dev). With `whiteouts`, `.wh.` names become
    overlay's whiteouts and opaque directories. An owner that no sandbox can have (above 65535, or
    another than root where we are not root ourselves) is lost: `nobody`, or root.

    Every method raises ConfigError (malformed, or an entry cannot be placed) and OSError.
    """

    def __init__(self, target: Path, *, whiteouts: bool) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._sink = _LayerSink(os.open(target, flags), whiteouts)
        self._stream = TarStream(self._sink)

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the archive."""
        try:
            self._stream.feed(data)
        except SandboxError as error:
            raise ConfigError(f"bad image layer: {error}") from error

    def finish(self) -> int:
        """State that no more bytes come; how many entries lost their owner."""
        try:
            self._stream.finish()
            self._sink.finish()
        except SandboxError as error:
            raise ConfigError(f"bad image layer: {error}") from error
        return self._sink.owners_lost

    def close(self) -> None:
        """Free its descriptors. Idempotent."""
        self._sink.close()


def mark_opaque(fd: int) -> None:
    """Make a directory of a layer hide what lower layers hold at its place."""
    os.setxattr(fd, _opaque_mark(), b"y")


def make_whiteout(dir_fd: int, name: bytes) -> None:
    """Make a name of a layer hide what lower layers hold at its place."""
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)


def _opaque_mark() -> str:
    return "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"


class _LayerSink:
    def __init__(self, root_fd: int, whiteouts: bool) -> None:
        self._tree = TreeWriter(root_fd, replace_links=False)
        self._whiteouts = whiteouts
        self._hidden: set[Parts] = set()
        self._directories: dict[Parts, tuple[int, int]] = {}
        self._root = os.geteuid() == 0
        self._fd = -1
        self._entry: TarEntry | None = None
        self._closed = False
        self.owners_lost = 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._fd >= 0:
            os.close(self._fd)
        self._tree.close()

    def finish(self) -> None:
        """Directories get their modes and times when nothing is written into them any more."""
        for parts, (mode, mtime) in sorted(self._directories.items(), reverse=True):
            try:
                fd = self._tree.enter(parts, make=False)
            except (PathRefusedError, FileNotFoundError):
                continue  # a later entry replaced it
            os.fchmod(fd, mode)
            os.utime(fd, (mtime, mtime))

    def entry(self, entry: TarEntry) -> None:
        self._entry = entry
        try:
            parts = split_entry_name(entry.name, strip_root=True)
            if self._whiteouts and parts and parts[-1].startswith(_WHITEOUT):
                self._whiteout(parts)
            else:
                self._place(entry, parts)
        except PathRefusedError as refused:
            name = entry.name[:200].decode("utf-8", "replace")
            raise ConfigError(f"bad image layer: {name!r}: {refused}") from None

    def data(self, chunk: memoryview) -> None:
        if self._fd >= 0:
            write_all(self._fd, chunk)

    def end(self) -> None:
        if self._fd >= 0 and self._entry is not None:
            self._attributes(self._fd, self._entry, self._entry.mode & 0o7777)
            os.utime(self._fd, (self._entry.mtime, self._entry.mtime))
            os.close(self._fd)
            self._fd = -1

    def _place(self, entry: TarEntry, parts: Parts) -> None:
        if entry.kind == DIRECTORY:
            fd = self._tree.directory(parts)
            self._attributes(fd, entry, 0o700)
            self._directories[parts] = (entry.mode & 0o7777, entry.mtime)
            if parts in self._hidden:
                mark_opaque(fd)
        elif entry.kind == FILE:
            self._fd = self._tree.file(parts)
        elif entry.kind == SYMLINK:
            parent = self._tree.symlink(parts, entry.link)
            uid, gid = self._owner(entry)
            if self._root:
                os.chown(parts[-1], uid, gid, dir_fd=parent, follow_symlinks=False)
            times = (entry.mtime, entry.mtime)
            os.utime(parts[-1], times, dir_fd=parent, follow_symlinks=False)
        elif entry.kind == HARD_LINK:
            self._tree.hard_link(parts, split_entry_name(entry.link, strip_root=True))
        elif entry.kind == CHAR_DEVICE and entry.device == (0, 0) and parts:
            self._hide(parts)

    def _whiteout(self, parts: Parts) -> None:
        if parts[-1] == _OPAQUE:
            mark_opaque(self._tree.enter(parts[:-1]))
        elif not parts[-1].startswith(_WHITEOUT * 2):  # other marks are of no meaning here
            name = parts[-1][len(_WHITEOUT) :]
            split_entry_name(name)
            if not name or name == b".":
                raise PathRefusedError("a whiteout of nothing")
            self._hide((*parts[:-1], name))

    def _hide(self, parts: Parts) -> None:
        """A whiteout hides lower layers only: what this layer holds at the name stays."""
        self._hidden.add(parts)
        parent = self._tree.enter(parts[:-1])
        try:
            info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            make_whiteout(parent, parts[-1])
            return
        if stat.S_ISDIR(info.st_mode):
            mark_opaque(self._tree.enter(parts))

    def _owner(self, entry: TarEntry) -> tuple[int, int]:
        """The owner an entry gets: sandboxes know the ids 0 to 65535, and as root only."""
        if max(entry.uid, entry.gid) <= (_LAST_ID if self._root else 0):
            return entry.uid, entry.gid
        self.owners_lost += 1
        uid, gid = (one if one <= _LAST_ID else _NOBODY for one in (entry.uid, entry.gid))
        return uid, gid

    def _attributes(self, fd: int, entry: TarEntry, mode: int) -> None:
        uid, gid = self._owner(entry)
        if self._root:
            os.chown(fd, uid, gid)
        os.fchmod(fd, mode)
        for name, value in entry.xattrs.items():
            if name.startswith(_KEPT_XATTRS) and (self._root or name.startswith(b"user.")):
                os.setxattr(fd, name, value)
