"""Copying trees into overlay layers, and merging layers into one."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ramify.contracts.errors import SandboxError
from ramify.planes.sandbox.descent import DIR_FLAGS, remove
from ramify.planes.sandbox.layer_unpack import make_whiteout, mark_opaque
from ramify.planes.sandbox.layer_view import is_opaque

_CHUNK = 64 * 1024 * 1024
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_UNMERGEABLE = ("redirect", "metacopy")


def copy_over(source: Path, target: Path) -> None:
    """Apply the layer (or plain tree) `source` on top of the layer `target`. Blocking.

    Modes, times, hard links within `source` and, as root, owners are kept. Whiteouts and opaque
    directories of `source` hide what `target` holds and stay as marks for the layers below it.
    Devices, FIFOs and sockets are left out.

    Raises: SandboxError (a layer uses overlay features that cannot be merged), OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source_fd = os.open(source, flags)
    try:
        target_fd = os.open(target, flags)
        try:
            _Merge(target_fd).directory(source_fd, target_fd, b"")
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


class _Merge:
    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._owners = os.geteuid() == 0
        self._linked: dict[tuple[int, int], bytes] = {}

    def directory(self, source: int, target: int, path: bytes) -> None:
        """Merge the content of one directory, then take over its attributes."""
        info = os.fstat(source)
        for name in os.listdir(source):
            raw = os.fsencode(name)
            self._entry(source, target, raw, path + raw)
        self._attributes(source, target, info)

    def _entry(self, source: int, target: int, name: bytes, path: bytes) -> None:
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        mode = info.st_mode
        if stat.S_ISDIR(mode):
            self._subdirectory(source, target, name, path)
        elif stat.S_ISREG(mode):
            remove(target, name)
            self._file(source, target, name, path, info)
        elif stat.S_ISLNK(mode):
            remove(target, name)
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if self._owners:
                os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            times = (info.st_atime_ns, info.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISCHR(mode) and info.st_rdev == 0:
            remove(target, name)
            make_whiteout(target, name)

    def _subdirectory(self, source: int, target: int, name: bytes, path: bytes) -> None:
        from_fd = os.open(name, DIR_FLAGS, dir_fd=source)
        try:
            opaque = is_opaque(from_fd)
            try:
                there = os.stat(name, dir_fd=target, follow_symlinks=False)
                if opaque or not stat.S_ISDIR(there.st_mode):
                    opaque = True  # what it hid of this layer it also hides of those below
                    remove(target, name)
            except FileNotFoundError:
                pass
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=target)
            to_fd = os.open(name, DIR_FLAGS, dir_fd=target)
            try:
                if opaque:
                    mark_opaque(to_fd)
                self.directory(from_fd, to_fd, path + b"/")
            finally:
                os.close(to_fd)
        finally:
            os.close(from_fd)

    def _file(
        self, source: int, target: int, name: bytes, path: bytes, info: os.stat_result
    ) -> None:
        key = (info.st_dev, info.st_ino)
        first = self._linked.get(key)
        if first is not None:
            os.link(first, name, src_dir_fd=self._root_fd, dst_dir_fd=target)
            return
        from_fd = os.open(name, _READ_FLAGS, dir_fd=source)
        try:
            to_fd = os.open(name, _WRITE_FLAGS, 0o600, dir_fd=target)
            try:
                _copy_data(from_fd, to_fd)
                self._attributes(from_fd, to_fd, info)
            finally:
                os.close(to_fd)
        finally:
            os.close(from_fd)
        if info.st_nlink > 1:
            self._linked[key] = path

    def _attributes(self, source: int, target: int, info: os.stat_result) -> None:
        if self._owners:
            os.chown(target, info.st_uid, info.st_gid)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        for name in os.listxattr(source):
            if name.startswith(_OVERLAY):
                if name.split(".")[2] in _UNMERGEABLE:
                    raise SandboxError(
                        f"a layer uses overlay's {name.split('.')[2]!r}, which cannot be merged;"
                        " mount with redirect_dir=off,metacopy=off"
                    )
            elif name.startswith("user.") or (self._owners and name.startswith("security.cap")):
                os.setxattr(target, name, os.getxattr(source, name))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _copy_data(source: int, target: int) -> None:
    """By reflink or in the kernel where it can."""
    try:
        while os.copy_file_range(source, target, _CHUNK):
            pass
    except OSError:
        # Not between these file systems: copy by hand, from the start.
        os.lseek(source, 0, os.SEEK_SET)
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        while data := os.read(source, 1024 * 1024):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
