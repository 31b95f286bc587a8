"""A copy of a repository to verify in its place."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from ramify.contracts.errors import ConfigError


def copy_repository(repo: Path, target: Path) -> None:
    """Copy everything: what git ignores and `.git` too; links as links, modes, times, owners.

    What disappears meanwhile is left out; sockets, FIFOs and devices too. Blocks.

    Raises: ConfigError (something cannot be read), OSError.
    """
    try:
        shutil.copytree(repo, target, symlinks=True, copy_function=_copy, ignore=_special)
    except shutil.Error as error:
        raise ConfigError(f"cannot be copied: {error.args[0][0][2]}", str(repo)) from error
    if os.geteuid() == 0:
        _give(repo, target)


def _copy(source: str, target: str) -> None:
    try:
        shutil.copy2(source, target, follow_symlinks=False)
    except FileNotFoundError:  # removed while the copy is made; whether that matters is seen later
        return


def _special(place: str, names: list[str]) -> set[str]:
    left: set[str] = set()
    for name in names:
        try:
            mode = os.lstat(os.path.join(place, name)).st_mode
        except FileNotFoundError:
            left.add(name)
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            left.add(name)
    return left


def _give(repo: Path, target: Path) -> None:
    """Owners as in the repository."""
    for place, directories, files in os.walk(target):
        for name in (".", *directories, *files):
            copy = os.path.join(place, name)
            try:
                facts = os.lstat(repo / os.path.relpath(copy, target))
            except FileNotFoundError:  # as in _copy
                continue
            os.chown(copy, facts.st_uid, facts.st_gid, follow_symlinks=False)
