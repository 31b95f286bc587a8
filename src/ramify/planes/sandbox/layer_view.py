"""What a stack of overlay layers shows: the topmost entry of each name, directories merged."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from typing import NamedTuple

from ramify.contracts.errors import SandboxError
from ramify.planes.sandbox.descent import DIR_FLAGS

MAX_LEVELS = 256
"""How deep directories may be nested in layers that are merged or compared."""

_OVERLAY_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")


class Entry(NamedTuple):
    """One name in a directory of a stack.

    `holder` is the directory of the topmost layer that has it. `parts` are its own directories
    that show through, topmost first (empty for what is no directory), open while the entry is
    looked at; `opaque` says that nothing below this stack does.
    """

    name: bytes
    info: os.stat_result
    holder: int
    parts: tuple[int, ...]
    opaque: bool


def entries(fds: Sequence[int], *, covered: bool) -> Generator[Entry]:
    """The content of a directory of a stack, given as descriptors, topmost first; by name.

    Whiteouts are entries too, as they hide what lies below the stack, unless nothing does below
    this directory (`covered`; then it does not below those in it). Raises: OSError.
    """
    first: dict[bytes, int] = {}
    for index, fd in enumerate(fds):
        for name in os.listdir(fd):
            first.setdefault(os.fsencode(name), index)
    for name in sorted(first):
        holders = fds[first[name] :]
        info = os.stat(name, dir_fd=holders[0], follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            if not (covered and is_whiteout(info)):
                yield Entry(name, info, holders[0], (), False)
            continue
        parts: list[int] = []
        try:
            opaque = _open_parts(holders, name, parts) or covered
            yield Entry(name, info, holders[0], tuple(parts), opaque)
        finally:
            for part in parts:
                os.close(part)


def is_opaque(fd: int) -> bool:
    """Whether a directory of a layer hides what lower layers hold at its place."""
    try:
        names = os.listxattr(fd)
        return any(os.getxattr(fd, mark) == b"y" for mark in _OVERLAY_MARKS if mark in names)
    except OSError:  # the file system has no extended attributes, so nothing is marked
        return False


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an entry of a layer hides what lower layers hold at its place."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def check_level(level: int) -> None:
    """Raises SandboxError where directories are nested too deeply to be walked."""
    if level > MAX_LEVELS:
        raise SandboxError(
            f"the sandbox's directories are nested more than {MAX_LEVELS} deep, which layers"
            " cannot be merged or compared with: remove them"
        )


def _open_parts(holders: Sequence[int], name: bytes, parts: list[int]) -> bool:
    """Add to `parts` what shows through of a directory; whether nothing further down does."""
    for fd in holders:
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(info.st_mode):
            return True  # a whiteout or a file: it hides what is below it
        parts.append(os.open(name, DIR_FLAGS, dir_fd=fd))
        if is_opaque(parts[-1]):
            return True
    return False
