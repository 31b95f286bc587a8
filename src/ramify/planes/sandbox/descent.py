"""Going down a hostile tree one directory descriptor at a time.

Shared by `packer` and `unpacker`, which run inside sandboxes: standard library only, Python 3.8
syntax, nothing imported from Ramify.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OK = 0
NOT_FOUND = 3
"""Nothing at the path, or a symbolic link stands in it."""
WRONG_TYPE = 4
"""Neither a regular file nor a directory."""
TOO_MUCH = 5
"""The tree exceeds a limit; the stream ends early."""
FAILED = 6
"""Any other refusal or I/O error; a reason comes with it."""
_TRIES = 4

DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened; fails on a link with ELOOP or ENOTDIR."""

_MAX_HOPS = 40
_KERNEL_FILE_SYSTEMS = frozenset(
    (
        b"proc sysfs cgroup cgroup2 devpts securityfs debugfs tracefs bpf mqueue fusectl"
        b" binfmt_misc configfs pstore efivarfs nsfs"
    ).split()
)


class Stop(Exception):  # noqa: N818  (a way out with a status, turned into a return value)
    """Ends a transfer with one of the statuses above and a reason for people."""

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


def kernel_devices() -> frozenset[int]:
    """Device numbers of the mounted kernel file systems, which are never walked into.

    A procfs would answer with the secrets of the very process that reads it.
    """
    found: set[int] = set()
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            for line in lines:
                fields = line.split()
                if fields[fields.index(b"-") + 1] in _KERNEL_FILE_SYSTEMS:
                    major, minor = fields[2].split(b":")
                    found.add(os.makedev(int(major), int(minor)))
    except FileNotFoundError:  # without a /proc there is none to walk into
        pass
    return frozenset(found)


def split_path(path: str | bytes) -> list[bytes]:
    """The components of a path, without empty ones and `.`. Raises: Stop (it contains NUL)."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise Stop(NOT_FOUND, "the path contains NUL")
    return [part for part in raw.split(b"/") if part not in (b"", b".")]


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Place:
    """A directory below `/`, reached without the kernel's own resolution of links.

    `fds` holds one descriptor per component, so `..` can never climb above the root and no
    component is looked up twice.
    """

    def __init__(self, banned: frozenset[int]) -> None:
        self.banned = banned
        self.fds = [os.open("/", DIR_FLAGS)]

    @property
    def fd(self) -> int:
        """Descriptor of the directory itself."""
        return self.fds[-1]

    def close(self) -> None:
        """Free the descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def root(self) -> None:
        """Go back to `/`."""
        while len(self.fds) > 1:
            os.close(self.fds.pop())

    def _down(self, name: bytes) -> None:
        fd = os.open(name, DIR_FLAGS, dir_fd=self.fd)
        self.fds.append(fd)
        if os.fstat(fd).st_dev in self.banned:
            raise Stop(WRONG_TYPE, "the path leads into a kernel file system")

    def walk(self, parts: list[bytes], make: Callable[[int, bytes], None] | None) -> None:
        """Go to `parts` from here; without `make` any link on the way is an OSError.

        With `make(dir_fd, name)` missing directories are made, and links that root made are
        followed (by hand, inside this root). Raises: OSError, Stop.
        """
        todo, hops = list(reversed(parts)), 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if len(self.fds) > 1:
                    os.close(self.fds.pop())
                continue
            try:
                self._down(name)
            except FileNotFoundError:
                if make is None:
                    raise
                make(self.fd, name)
                todo.append(name)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR) or make is None:
                    raise
                hops += 1
                target = _link_of_root(self.fd, name)
                if target is None or hops > _MAX_HOPS:
                    raise
                if target.startswith(b"/"):
                    self.root()
                todo.extend(reversed(split_path(target)))


def _link_of_root(dir_fd: int, name: bytes) -> bytes | None:
    """Where a symbolic link leads if root made it; else None, or OSError ELOOP for another's."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        if not stat.S_ISLNK(info.st_mode):
            return None
        if info.st_uid != 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.readlink(b"", dir_fd=fd)  # of the very link that was looked at
    finally:
        os.close(fd)


def remove(dir_fd: int, name: bytes) -> None:
    """Remove a file, a link itself, or a directory with all it holds.

    What is missing, or goes meanwhile, is fine: two may remove the same tree at once.

    Never follows a link, and goes to any depth with a constant number of descriptors: what lies
    deep is first moved up beside the directory being removed.
    """
    with suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=dir_fd)
            return
        except (IsADirectoryError, PermissionError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                raise
        for tries_left in reversed(range(_TRIES)):
            _empty(dir_fd, name)
            try:
                os.rmdir(name, dir_fd=dir_fd)
                return
            except OSError as error:  # somebody put something into it, or pulled something up
                if error.errno != errno.ENOTEMPTY or not tries_left:
                    raise


def _empty(dir_fd: int, name: bytes) -> None:
    fd = _open_for_removal(dir_fd, name)
    try:
        token = os.urandom(8).hex().encode()  # what the tree holds cannot be named like it
        serial = 0
        while _remove_level(fd, b".%s.%d" % (token, serial)):
            serial += 1
    finally:
        os.close(fd)


def _open_for_removal(dir_fd: int, name: bytes) -> int:
    """A directory's descriptor, made usable first where its mode forbids (overlay's `work`)."""
    if os.geteuid() != 0:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700:
            os.chmod(name, 0o700, dir_fd=dir_fd)
    return os.open(name, DIR_FLAGS, dir_fd=dir_fd)


def _children(fd: int) -> list[tuple[bytes, bool]]:
    with os.scandir(fd) as entries:
        return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]


def _remove_level(root: int, prefix: bytes) -> bool:
    """Empty `root`, except for the grandchildren that are directories: those are pulled up."""
    pulled = 0
    for name, is_dir in _children(root):
        with suppress(FileNotFoundError):
            if is_dir:
                pulled += _remove_child(root, name, prefix, pulled)
            else:
                os.unlink(name, dir_fd=root)
    return pulled > 0


def _remove_child(root: int, name: bytes, prefix: bytes, pulled: int) -> int:
    """Remove a directory in `root`; how many directories in it were pulled up to `root`."""
    moved = 0
    child = _open_for_removal(root, name)
    try:
        for below, is_dir in _children(child):
            with suppress(FileNotFoundError):
                if not is_dir:
                    os.unlink(below, dir_fd=child)
                    continue
                os.close(_open_for_removal(child, below))  # moving it needs the right to write it
                new = prefix + b".%d" % (pulled + moved)
                os.rename(below, new, src_dir_fd=child, dst_dir_fd=root)
                moved += 1
    finally:
        os.close(child)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=root)
    return moved
