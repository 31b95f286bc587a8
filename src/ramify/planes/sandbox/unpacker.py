"""Applies an upload inside a sandbox: standard library and `descent` only, Python 3.8 syntax.

`unpack` runs in a forked child of the supervisor whose root is the sandbox's root, usually as
root. The stream comes from the engine and is trusted; the tree it is written into is not.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from ramify.planes.sandbox.descent import (
    DIR_FLAGS,
    FAILED,
    OK,
    Place,
    Stop,
    kernel_devices,
    remove,
    split_path,
    write_all,
)

_BLOCK = 512
_CHUNK = 256 * 1024
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Entry(NamedTuple):
    name: bytes
    kind: bytes
    mode: int
    size: int
    mtime: int
    link: bytes


class _Source:
    """Reads the tar stream made by the engine (which is trusted) from a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = os.read(self.fd, min(size - len(data), _CHUNK))
            if not more:
                raise Stop(FAILED, "the upload ended early")
            data += more
        return bytes(data)

    def next(self) -> _Entry | None:
        extra: dict[bytes, bytes] = {}
        while True:
            block = self.exactly(_BLOCK)
            if block == b"\0" * _BLOCK:
                self.exactly(_BLOCK)
                return None
            size, kind = _field(block[124:136]), block[156:157]
            if kind != b"x":
                break
            records = self.exactly(size + -size % _BLOCK)[:size]
            while records:
                length = int(records.split(b" ", 1)[0])
                key, _, value = records[:length].split(b" ", 1)[1].partition(b"=")
                extra[key] = value[:-1]
                records = records[length:]
        return _Entry(
            extra.get(b"path", block[:100].rstrip(b"\0")),
            kind,
            _field(block[100:108]),
            size,
            _field(block[136:148]),
            extra.get(b"linkpath", block[157:257].rstrip(b"\0")),
        )


def _field(raw: bytes) -> int:
    if raw[0] & 0x80:
        return int.from_bytes(raw[1:], "big")
    return int(raw.strip(b"\0 ") or b"0", 8)


class _Unpacker:
    def __init__(self, source: _Source, owner: tuple[int, int], mode: int | None) -> None:
        self.source, self.owner, self.mode = source, owner, mode

    def make_dir(self, dir_fd: int, name: bytes) -> None:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
        os.chown(name, self.owner[0], self.owner[1], dir_fd=dir_fd, follow_symlinks=False)

    def clear(self, dir_fd: int, name: bytes) -> None:
        """Remove what stands at a name; a directory is not replaced by a file."""
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            shown = name.decode("utf-8", "replace")
            raise Stop(FAILED, f"{shown}: a directory stands there") from None

    def directory(self, place: Place, name: bytes, entry: _Entry) -> None:
        try:
            self.make_dir(place.fd, name)
        except FileExistsError:
            info = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode) or _leads_to_dir(place, name, info):
                return  # merged; what exists keeps its mode (think of /tmp)
            self.clear(place.fd, name)
            self.make_dir(place.fd, name)
        fd = os.open(name, DIR_FLAGS, dir_fd=place.fd)
        try:
            os.fchmod(fd, entry.mode & 0o7777)
        finally:
            os.close(fd)

    def file(self, dir_fd: int, name: bytes, entry: _Entry) -> None:
        self.clear(dir_fd, name)
        fd = os.open(name, _WRITE_FLAGS, 0o600, dir_fd=dir_fd)
        try:
            left = entry.size
            while left:
                data = os.read(self.source.fd, min(left, _CHUNK))
                if not data:
                    raise Stop(FAILED, "the upload ended early")
                write_all(fd, data)
                left -= len(data)
            self.source.exactly(-entry.size % _BLOCK)
            os.fchown(fd, self.owner[0], self.owner[1])
            os.fchmod(fd, (entry.mode if self.mode is None else self.mode) & 0o7777)
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def symlink(self, dir_fd: int, name: bytes, entry: _Entry) -> None:
        self.clear(dir_fd, name)
        os.symlink(entry.link, name, dir_fd=dir_fd)
        os.chown(name, self.owner[0], self.owner[1], dir_fd=dir_fd, follow_symlinks=False)

    def apply(self, place: Place, name: bytes, entry: _Entry) -> None:
        if entry.kind == b"5":
            self.directory(place, name, entry)
        elif entry.kind == b"2":
            self.symlink(place.fd, name, entry)
        else:
            self.file(place.fd, name, entry)

    def run(self, banned: frozenset[int], base: list[bytes]) -> None:
        place = Place(banned)
        here: list[bytes] = []
        try:
            while True:
                entry = self.source.next()
                if entry is None:
                    return
                parts = base + split_path(entry.name)
                try:
                    target = parts if entry.kind == b"5" and parts == base else parts[:-1]
                    if target != here:
                        place.root()
                        here = target
                        place.walk(target, self.make_dir)
                    if target is not parts:
                        self.apply(place, parts[-1], entry)
                except OSError as error:
                    raise Stop(FAILED, _explain(parts, error)) from error
        finally:
            place.close()


def _explain(parts: list[bytes], error: OSError) -> str:
    why = os.strerror(error.errno or 0)
    if error.errno == errno.ELOOP:
        why = "a symbolic link stands there that root did not make"
    return "/{}: {}".format(b"/".join(parts).decode("utf-8", "replace"), why)


def _leads_to_dir(place: Place, name: bytes, info: os.stat_result) -> bool:
    """Whether a link made by root (such as /lib) stands for a directory and may be kept."""
    if not stat.S_ISLNK(info.st_mode) or info.st_uid != 0:
        return False
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=place.fd).st_mode)
    except OSError:  # it leads nowhere
        return False


def unpack(
    in_fd: int, path: str | bytes, uid: int, gid: int, mode: int | None = None, clear: bool = False
) -> tuple[int, str]:
    """Apply a tar stream of `packing.pack_tree` at `path`; returns `(OK | FAILED, reason)`.

    Missing parents are made, directories merged, files and links replaced (a link at a file's
    place is replaced, never written through). A link at a directory's place is followed only if
    root made it; whoever can make those can write anywhere in here anyway. What is made belongs
    to `uid:gid`; `mode` overrides the mode of files; existing directories keep mode and owner.
    `clear` first removes whatever stands at `path`, a link itself and never its target.
    """
    try:
        parts, banned = split_path(path), kernel_devices()
        if clear and parts:
            _clear_target(parts, banned)
        _Unpacker(_Source(in_fd), (uid, gid), mode).run(banned, parts)
        return OK, ""
    except Stop as stop:
        return FAILED, stop.reason
    except OSError as error:
        return FAILED, os.strerror(error.errno or 0)


def _clear_target(parts: list[bytes], banned: frozenset[int]) -> None:
    def missing(dir_fd: int, name: bytes) -> None:
        raise Stop(OK)

    place = Place(banned)
    try:
        place.walk(parts[:-1], missing)
        remove(place.fd, parts[-1])
    except Stop as stop:
        if stop.status != OK:
            raise
    except OSError as error:
        raise Stop(FAILED, _explain(parts, error)) from error
    finally:
        place.close()
