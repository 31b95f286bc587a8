"""Packs a tree inside a sandbox: standard library and `descent` only, Python 3.8 syntax.

`pack` runs in a forked child of the supervisor whose root is the sandbox's root. The tree is
hostile: it changes while it is walked, and holds links, FIFOs, devices and sparse files. So every
step goes from one directory descriptor to the next without following links, and what is opened is
checked again by descriptor. The counterpart is `unpacker.unpack`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from ramify.planes.sandbox.descent import (
    DIR_FLAGS,
    FAILED,
    NOT_FOUND,
    OK,
    TOO_MUCH,
    WRONG_TYPE,
    Place,
    Stop,
    kernel_devices,
    split_path,
    write_all,
)

_BLOCK = 512
_CHUNK = 256 * 1024
_SPECIAL = b"6"  # how anything but files, directories and links is named, so that it is reported
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def _number(value: int, width: int) -> bytes:
    """A numeric field: octal, or base-256 where that does not fit."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + max(value, 0).to_bytes(width - 1, "big")


def _raw_header(
    name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, link: bytes
) -> bytes:
    block = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            _number(mode & 0o7777, 8),
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(max(mtime, 0), 12),
            b"        ",
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            b"\0" * 247,
        )
    )
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])


def _pax(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while size != len(body) + len(str(size)):
        size = len(body) + len(str(size))
    return b"%d%s" % (size, body)


def header(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    link: bytes = b"",
) -> bytes:
    """The tar header of one entry, with a pax header before it where a name is long.

    `kind` is the tar type: b"0" file, b"2" symbolic link, b"5" directory.
    """
    records = b""
    if len(name) > 100:
        records += _pax(b"path", name)
    if len(link) > 100:
        records += _pax(b"linkpath", link)
    block = _raw_header(name, mode, uid, gid, size, mtime, kind, link)
    if not records:
        return block
    head = _raw_header(b"pax", 0o644, 0, 0, len(records), 0, b"x", b"")
    return head + records + b"\0" * (-len(records) % _BLOCK) + block


END = b"\0" * (2 * _BLOCK)
"""The end of an archive; a stream without it was cut."""

_CHANGED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL)
"""What the kernel says of an entry that is no longer what it was a moment ago."""


class Limits(NamedTuple):
    """Bounds on what is packed."""

    max_entries: int
    max_bytes: int
    max_file_bytes: int
    max_depth: int


class _Packer:
    def __init__(self, out_fd: int, limits: Limits, banned: frozenset[int]) -> None:
        self.out_fd, self.limits, self.banned = out_fd, limits, banned
        self.entries, self.bytes = 0, 0
        self.pending = bytearray()

    def emit(self, data: bytes) -> None:
        self.pending += data
        if len(self.pending) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        write_all(self.out_fd, self.pending)
        self.pending = bytearray()

    def count(self) -> None:
        self.entries += 1
        if self.entries > self.limits.max_entries:
            raise Stop(TOO_MUCH, f"more than {self.limits.max_entries} entries")

    def entry(
        self, name: bytes, info: os.stat_result, kind: bytes, size: int = 0, link: bytes = b""
    ) -> None:
        mode = stat.S_IMODE(info.st_mode)
        mtime = int(info.st_mtime)
        self.emit(header(name, mode, info.st_uid, info.st_gid, size, mtime, kind, link))

    def file(self, name: bytes, fd: int, info: os.stat_result) -> None:
        """Exactly `st_size` bytes: a file that grows is cut, one that shrinks is padded."""
        left = info.st_size
        self.bytes += left
        if left > self.limits.max_file_bytes:
            raise Stop(TOO_MUCH, f"a file has {left} bytes")
        if self.bytes > self.limits.max_bytes:
            raise Stop(TOO_MUCH, f"more than {self.limits.max_bytes} bytes")
        self.entry(name, info, b"0", left)
        while left:
            data = os.read(fd, min(left, _CHUNK)) or b"\0" * min(left, _CHUNK)
            self.emit(data)
            left -= len(data)
        self.emit(b"\0" * (-info.st_size % _BLOCK))

    def child(self, dir_fd: int, name: bytes, path: bytes) -> int | None:
        """Pack one name of a directory; returns a descriptor when it is a directory to enter."""
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        self.count()
        if stat.S_ISLNK(info.st_mode):
            self.entry(path, info, b"2", 0, os.readlink(name, dir_fd=dir_fd))
            return None
        is_dir = stat.S_ISDIR(info.st_mode)
        if not (is_dir or stat.S_ISREG(info.st_mode)) or info.st_dev in self.banned:
            self.entry(path, info, _SPECIAL)
            return None
        fd = os.open(name, DIR_FLAGS if is_dir else _READ_FLAGS, dir_fd=dir_fd)
        try:
            info = os.fstat(fd)  # what was opened, whatever stood there a moment ago
            if info.st_dev in self.banned or not (is_dir or stat.S_ISREG(info.st_mode)):
                self.entry(path, info, _SPECIAL)
                return None
            if is_dir:
                self.entry(path + b"/", info, b"5")
                return os.dup(fd)
            self.file(path, fd, info)
            return None
        finally:
            os.close(fd)

    def names(self, fd: int) -> list[bytes]:
        room = self.limits.max_entries - self.entries
        found: list[bytes] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                found.append(os.fsencode(entry.name))
                if len(found) > room:
                    raise Stop(TOO_MUCH, f"more than {self.limits.max_entries} entries")
        found.sort(reverse=True)
        return found

    def tree(self, root_fd: int) -> None:
        """The content of a directory, depth first in the order of names."""
        self.entry(b"./", os.fstat(root_fd), b"5")
        stack: list[tuple[int, bytes, list[bytes]]] = [(os.dup(root_fd), b"", self.names(root_fd))]
        try:
            while stack:
                fd, prefix, names = stack[-1]
                if not names:
                    os.close(stack.pop()[0])
                    continue
                name = names.pop()
                try:
                    entered = self.child(fd, name, prefix + name)
                except OSError as error:
                    # It vanished or changed its type under us: as if it had never been there.
                    if error.errno not in _CHANGED:
                        raise
                    continue
                if entered is not None:
                    stack.append((entered, prefix + name + b"/", []))
                    if len(stack) > self.limits.max_depth + 1:
                        raise Stop(TOO_MUCH, f"deeper than {self.limits.max_depth} levels")
                    stack[-1][2].extend(self.names(entered))
        finally:
            for level in stack:
                os.close(level[0])


def pack(path: str | bytes, out_fd: int, limits: Limits) -> tuple[int, str]:
    """Write the file or the content of the directory at `path` to `out_fd` as a tar stream.

    A directory starts with the entry `./`; a file is the single entry `.`. No symbolic link is
    followed, not even in the parents of `path`; links in the tree are packed as links, and special
    files are named as FIFOs without being opened. Returns `(status, reason)`: OK, NOT_FOUND,
    WRONG_TYPE, TOO_MUCH or FAILED; unless it is OK the stream has no end mark. The caller closes
    `out_fd`.
    """
    banned = kernel_devices()
    place = Place(banned)
    try:
        packer = _Packer(out_fd, limits, banned)
        parts = split_path(path)
        if b".." in parts:
            raise Stop(NOT_FOUND, "the path contains ..")
        place.walk(parts[:-1], None)
        name = parts[-1] if parts else b"."
        info = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
        is_dir = stat.S_ISDIR(info.st_mode)
        if not is_dir and not stat.S_ISREG(info.st_mode):
            raise Stop(WRONG_TYPE, "neither a regular file nor a directory")
        fd = os.open(name, DIR_FLAGS if is_dir else _READ_FLAGS, dir_fd=place.fd)
        try:
            info = os.fstat(fd)
            if info.st_dev in banned:
                raise Stop(WRONG_TYPE, "the path leads into a kernel file system")
            if stat.S_ISDIR(info.st_mode):
                packer.tree(fd)
            elif stat.S_ISREG(info.st_mode):
                packer.file(b".", fd, info)
            else:
                raise Stop(WRONG_TYPE, "neither a regular file nor a directory")
        finally:
            os.close(fd)
        packer.emit(END)
        packer.flush()
        return OK, ""
    except Stop as stop:
        return stop.status, stop.reason
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return NOT_FOUND, "no such file or directory (symbolic links are not followed)"
        return FAILED, os.strerror(error.errno or 0)
    finally:
        place.close()
