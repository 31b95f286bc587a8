"""Bringing a tree from a sandbox to the host.

`Extractor` is fed a tar stream made by something hostile and writes what may cross below one path
of the host. It bounds everything (bytes, entries, depth, memory), creates regular files,
directories and (where asked for) links that stay in the tree, and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ramify.contracts.errors import TransferLimitError
from ramify.contracts.sandbox import TransferLimits, TransferReport
from ramify.planes.sandbox.descent import write_all
from ramify.planes.sandbox.links import LinkWalk, stays_inside
from ramify.planes.sandbox.tarstream import (
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

_REPORTED = 100
_SHOWN_NAME = 200
_CHUNK = 1024 * 1024
_LINK_MAX = 4095
_LINK_MEMORY = 16 * 1024 * 1024


class Extractor:
    """Writes a hostile tar stream below `dest`. Blocking: run it in a thread.

    The archive's root entry says what `dest` becomes: a directory (`./`, merged with one that
    exists) or a single file (`.`). Use as a context manager: `feed` the bytes, then `finish`.
    Entries that may not be created are left out and reported; what exists at a path is replaced,
    never written through. What was written so far stays in `dest` after an error.

    Args:
        dest: the host path; missing parents are made.
        limits: bounds on what crosses.
        strip: leading components to take off every name (`docker cp` archives have one).

    Raises (from `feed` and `finish`): TransferLimitError (a limit is exceeded, or the archive is
    malformed), SandboxError (it ended early), IsADirectoryError and other OSErrors of the host.
    """

    def __init__(self, dest: Path, limits: TransferLimits | None = None, *, strip: int = 0) -> None:
        self._sink = _TransferSink(dest, limits or TransferLimits(), strip)
        self._stream = TarStream(self._sink)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the archive. Bytes after its end mark are ignored."""
        self._stream.feed(data)

    def finish(self) -> TransferReport:
        """State that the archive is complete; makes and checks the links, and reports."""
        self._stream.finish()
        report = self._sink.finish()
        self.close()
        return report

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        self._sink.close()


class _TransferSink:
    """What becomes of each entry."""

    def __init__(self, dest: Path, limits: TransferLimits, strip: int) -> None:
        self._dest, self._limits, self._strip = dest, limits, strip
        self._tree: TreeWriter | None = None
        self._is_file = False
        self._fd = -1
        self._entry: TarEntry | None = None
        self._links: dict[Parts, bytes] = {}
        self._link_memory = 0
        self._ours: set[tuple[int, int]] = set()
        self._entries = self._files = self._bytes = self._charged = self._dropped_count = 0
        self._dropped: list[str] = []

    def finish(self) -> TransferReport:
        """Make the links and report."""
        if self._tree is not None and self._links:
            self._make_links(self._tree)
        return TransferReport(self._files, self._bytes, tuple(self._dropped), self._dropped_count)

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    # Called by the stream

    def entry(self, entry: TarEntry) -> None:
        """Begin an entry: decide what becomes of it."""
        self._charge(entry.size)
        try:
            parts = split_entry_name(entry.name)[self._strip :]
            if parts:
                self._count(1)
            if len(parts) > self._limits.max_depth:
                raise TransferLimitError(f"the tree is deeper than {self._limits.max_depth} levels")
            self._place(entry, parts)
        except PathRefusedError as refused:
            self._count(1)
            self._drop(entry.name, str(refused))

    def data(self, chunk: memoryview) -> None:
        """Data of the current file, which may be one that is left out."""
        if self._fd >= 0:
            write_all(self._fd, chunk)

    def end(self) -> None:
        """The current file has all its data."""
        if self._fd >= 0 and self._entry is not None:
            self._seal(self._fd, self._entry.mode, self._entry.mtime)
            os.close(self._fd)
            self._fd = -1
            self._files += 1
            self._bytes += self._entry.size

    # Entries

    def _place(self, entry: TarEntry, parts: Parts) -> None:
        self._entry = entry
        if entry.kind not in (FILE, DIRECTORY, SYMLINK, HARD_LINK):
            raise PathRefusedError("not a regular file, directory or link")
        if self._is_file:
            raise PathRefusedError("the root is a file")
        if entry.kind == SYMLINK:
            self._note_link(parts, entry.link)
            return
        if not parts and entry.kind != DIRECTORY:
            if self._tree is not None or entry.kind == HARD_LINK:
                raise PathRefusedError("it would replace the root")
            self._fd = self._root_file()
            self._is_file = True
            return
        tree = self._open_tree()
        self._links.pop(parts, None)
        before = tree.made_dirs
        if entry.kind == DIRECTORY:
            fd = tree.directory(parts)
            if parts:
                os.fchmod(fd, (entry.mode & 0o777) | 0o700)
            before += 1
        elif entry.kind == HARD_LINK:
            self._copy(tree, parts, entry)
        else:
            self._fd = tree.file(parts)
        # Parents that have no entry of their own count as entries too.
        self._count(max(0, tree.made_dirs - before))

    def _open_tree(self) -> TreeWriter:
        if self._tree is None:
            self._dest.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._tree = TreeWriter(os.open(self._dest, flags), replace_links=True)
        return self._tree

    def _root_file(self) -> int:
        if self._dest.is_dir():
            raise IsADirectoryError(f"{self._dest} is a directory; a file was to be put there")
        self._dest.parent.mkdir(parents=True, exist_ok=True)
        self._dest.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._dest, flags, 0o600)

    def _seal(self, fd: int, mode: int, mtime: int) -> None:
        """Final mode and time of a file: never set-id, never in the future."""
        info = os.fstat(fd)
        self._ours.add((info.st_dev, info.st_ino))
        os.fchmod(fd, (mode & 0o777) | 0o600)
        if mtime < info.st_mtime:
            os.utime(fd, (mtime, mtime))

    def _copy(self, tree: TreeWriter, parts: Parts, entry: TarEntry) -> None:
        """A hard link becomes a copy of the file it names, if that one came from this archive."""
        source_parts = split_entry_name(entry.link)[self._strip :]
        if not source_parts or source_parts == parts:
            raise PathRefusedError("hard link to itself or to the root")
        source = tree.open_file(source_parts)
        target = -1
        try:
            info = os.fstat(source)
            if (info.st_dev, info.st_ino) not in self._ours:
                raise PathRefusedError("hard link to a file that is not from the archive")
            self._charge(info.st_size)
            target = tree.file(parts)
            while data := os.read(source, _CHUNK):
                write_all(target, data)
            self._seal(target, info.st_mode, int(info.st_mtime))
            self._files += 1
            self._bytes += info.st_size
        finally:
            os.close(source)
            if target >= 0:
                os.close(target)

    # Links

    def _note_link(self, parts: Parts, target: bytes) -> None:
        """Remember a link. All are made at the end, so that none exists while files are written."""
        if self._limits.links == "drop":
            raise PathRefusedError("symbolic link")
        if not parts:
            raise PathRefusedError("the root is a symbolic link")
        if not target or b"\0" in target or len(target) > _LINK_MAX:
            raise PathRefusedError("bad link target")
        if not stays_inside(parts, target):
            raise PathRefusedError("symbolic link out of the tree")
        self._link_memory += len(target) + sum(map(len, parts)) + 200
        if self._link_memory > _LINK_MEMORY:
            raise TransferLimitError("the tree holds too many symbolic links")
        self._links.pop(parts, None)
        self._links[parts] = target
        self._open_tree()

    def _make_links(self, tree: TreeWriter) -> None:
        made: list[Parts] = []
        for parts, target in self._links.items():
            try:
                before = tree.made_dirs
                tree.symlink(parts, target)
                self._count(tree.made_dirs - before)
                made.append(parts)
            except PathRefusedError as refused:
                self._drop(b"/".join(parts), str(refused))
        walk = LinkWalk(tree.root_fd, 20 * self._limits.max_entries + 10_000)
        while escaping := [parts for parts in made if not walk.stays_inside(parts)]:
            for parts in escaping:
                tree.drop(parts)
                self._drop(b"/".join(parts), "symbolic link out of the tree")
            gone = set(escaping)
            made = [parts for parts in made if parts not in gone]

    # Limits and report

    def _charge(self, size: int) -> None:
        if size > self._limits.max_file_bytes:
            raise TransferLimitError(
                f"a file has {size} bytes; at most {self._limits.max_file_bytes} may cross"
            )
        self._charged += size
        if self._charged > self._limits.max_bytes:
            raise TransferLimitError(
                f"the tree has more than {self._limits.max_bytes} bytes, the most that may cross"
            )

    def _count(self, entries: int) -> None:
        self._entries += entries
        if self._entries > self._limits.max_entries:
            raise TransferLimitError(
                f"the tree has more than {self._limits.max_entries} entries, the most that may"
                " cross"
            )

    def _drop(self, name: bytes, why: str) -> None:
        self._dropped_count += 1
        if len(self._dropped) < _REPORTED:
            self._dropped.append(f"{_shown(name)}: {why}")


def _shown(name: bytes) -> str:
    """A name for people: hostile characters escaped, long ones cut."""
    text = name[:_SHOWN_NAME].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
