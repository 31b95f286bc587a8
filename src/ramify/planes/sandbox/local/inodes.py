"""Keeping the inode numbers of files that captured processes write to. Blocking; needs root.

An overlay shows a file of its upper layer under the number of the file it was copied from, which
an extended attribute names; it shows one of a lower layer under its own. So the first copy of a
file keeps its number, and a copy of the copy does not, unless the upper layer begins with a copy
that carries the attribute on. Programs notice: SQLite refuses to write to a file that "moved".
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ramify.contracts.errors import SandboxStartError

_CLONE = 0x40049409


def keep_inodes(
    files: Sequence[tuple[str, int]],
    parts: Sequence[tuple[str, str]],
    layer: Path,
    upper: Path,
) -> None:
    """Begin `upper` with copies of those files of `layer` whose number would change.

    Args:
        files: their paths inside, and the number each must have.
        parts: (where, part of a layer) of each overlay of the root.
        layer: the layer that was the upper one when the numbers were taken.
        upper: the upper directory of a sandbox that is not yet built.

    Raises: SandboxStartError (the layer does not hold a file), OSError.
    """
    for path, inode in files:
        inside, below = _locate(path, parts)
        source = _descend(layer / inside, below[:-1])
        try:
            info = os.stat(below[-1], dir_fd=source, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode):
                raise SandboxStartError(f"the image does not hold the file {path}")
            if info.st_ino != inode:
                _copy_file(source, upper / inside, layer / inside, below)
        except FileNotFoundError as error:
            raise SandboxStartError(f"the image does not hold the file {path}") from error
        finally:
            os.close(source)


def _locate(path: str, parts: Sequence[tuple[str, str]]) -> tuple[str, list[str]]:
    for target, inside in sorted(parts, key=lambda one: -len(one[0])):
        below = os.path.relpath(path, f"/{target}")
        if not below.startswith("../"):
            return inside, below.split("/")
    raise SandboxStartError(f"the file {path} lies in no layer")


def _descend(top: Path, names: Sequence[str]) -> int:
    """A directory below `top`; links are not followed."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            below = os.open(name, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _copy_file(source: int, upper: Path, layer: Path, names: Sequence[str]) -> None:
    to = _make_parents(upper, layer, names[:-1])
    try:
        old = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            new = os.open(names[-1], flags, 0o600, dir_fd=to)
            try:
                _copy(old, new)
            finally:
                os.close(new)
        finally:
            os.close(old)
    finally:
        os.close(to)


def _make_parents(upper: Path, layer: Path, names: Sequence[str]) -> int:
    """The directories above a file, with owner, mode and attributes as in the layer."""
    done: list[str] = []
    for name in names:
        above = _descend(upper, done)
        model = _descend(layer, [*done, name])
        try:
            os.mkdir(name, 0o700, dir_fd=above)
            made = _descend(upper, [*done, name])
            try:
                _take_over(model, made)
            finally:
                os.close(made)
        except FileExistsError:
            pass
        finally:
            os.close(above)
            os.close(model)
        done.append(name)
    return _descend(upper, done)


def _copy(old: int, new: int) -> None:
    try:
        fcntl.ioctl(new, _CLONE, old)
    except OSError:  # this file system shares no blocks
        size = os.fstat(old).st_size
        os.truncate(new, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(old, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = os.lseek(old, at, os.SEEK_HOLE)
            os.lseek(new, at, os.SEEK_SET)
            while at < end:
                sent = os.sendfile(new, old, at, end - at)
                if not sent:
                    break
                at += sent
    _take_over(old, new)


def _take_over(old: int, new: int) -> None:
    info = os.fstat(old)  # a directory that hides what is below it in its layer must not do so here
    os.fchown(new, info.st_uid, info.st_gid)
    os.fchmod(new, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(old):
        if not (stat.S_ISDIR(info.st_mode) and name.startswith("trusted.overlay.")):
            os.setxattr(new, name, os.getxattr(old, name))
    os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns))
