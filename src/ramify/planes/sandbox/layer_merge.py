"""Merging the layers of a stack into one, without copying what they hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ramify.contracts.errors import SandboxError
from ramify.planes.sandbox.descent import DIR_FLAGS
from ramify.planes.sandbox.layer_unpack import mark_opaque
from ramify.planes.sandbox.layer_view import Entry, check_level, entries, is_whiteout

_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_ORIGIN = {True: "trusted.overlay.origin", False: "user.overlay.origin"}
_UNMERGEABLE = ("redirect", "metacopy")


def merge_layers(layers: Sequence[Path], target: Path) -> None:
    """Make the empty directory `target` show what `layers` (topmost first) show. Blocking.

    Files are hard links to those of the layers, so that their inode numbers stay what they were
    (SQLite and restored processes mind) and no content is copied; until the merged layers are
    gone their link counts are higher. Whiteouts and opaque directories keep hiding what lies
    below the stack.

    Raises: SandboxError (a layer uses overlay features that cannot be merged, or is nested too
    deeply), OSError (a directory of another user that cannot be read, too many links).
    """
    with ExitStack() as stack:
        fds: list[int] = []
        for layer in layers:
            fds.append(os.open(layer, _ROOT_FLAGS))
            stack.callback(os.close, fds[-1])
        into = os.open(target, _ROOT_FLAGS)
        stack.callback(os.close, into)
        _directory(fds, into, level=0, covered=False)


def _directory(fds: Sequence[int], target: int, *, level: int, covered: bool) -> None:
    """Merge the content of one directory, then take over its attributes."""
    check_level(level)
    hides = False
    for entry in entries(fds, covered=covered):
        if entry.parts:
            _subdirectory(entry, target, level + 1)
            continue
        _refuse_unmergeable(entry)
        hides = hides or is_whiteout(entry.info)
        name, holder = entry.name, entry.holder
        os.link(name, name, src_dir_fd=holder, dst_dir_fd=target, follow_symlinks=False)
    if hides:
        # Without it overlay would list whiteouts in a directory that no other layer has.
        os.setxattr(target, _ORIGIN[os.geteuid() == 0], b"")
    _attributes(fds[0], target)


def _subdirectory(entry: Entry, target: int, level: int) -> None:
    os.mkdir(entry.name, 0o700, dir_fd=target)
    made = os.open(entry.name, DIR_FLAGS, dir_fd=target)
    try:
        if entry.opaque:
            mark_opaque(made)
        _directory(entry.parts, made, level=level, covered=entry.opaque)
    finally:
        os.close(made)


def _attributes(source: int, target: int) -> None:
    info = os.fstat(source)
    for name in os.listxattr(source):
        if name.startswith(_OVERLAY):
            _refuse(name)
        elif name.startswith("user.") or os.geteuid() == 0:
            os.setxattr(target, name, os.getxattr(source, name))
    if os.geteuid() == 0:
        os.chown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _refuse_unmergeable(entry: Entry) -> None:
    """Only a file that overlay left without content of its own has size, but no blocks."""
    info = entry.info
    if not stat.S_ISREG(info.st_mode) or info.st_blocks or not info.st_size:
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(entry.name, flags, dir_fd=entry.holder)
    try:
        for name in os.listxattr(fd):
            if name.startswith(_OVERLAY):
                _refuse(name)
    finally:
        os.close(fd)


def _refuse(name: str) -> None:
    """Raise SandboxError for an attribute by which a layer's entry needs the layers below it."""
    kind = name.split(".")[2]
    if kind in _UNMERGEABLE:
        raise SandboxError(
            f"a layer uses overlay's {kind!r}, which cannot be merged;"
            " mount with redirect_dir=off,metacopy=off"
        )
