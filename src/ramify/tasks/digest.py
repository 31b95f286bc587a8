"""What identifies a task directory: a digest over everything in it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ramify.contracts.errors import ConfigError

_LEFT_OUT = frozenset({".git"})


def package_digest(path: Path) -> str:
    """Digest of a task directory, as hexadecimal text (safe as a file name).

    Covers names, whether a file is executable, bytes and link targets of every file; not times,
    owners, empty directories or `.git`, so every checkout of one content has one digest.

    Raises:
        ConfigError: a symbolic link that leaves the package, a special file, or something that
            cannot be read.
    """
    root = path.resolve()
    total = hashlib.blake2b(digest_size=32)
    try:
        for relative, entry in sorted(_entries(root, "")):
            kind, content = _entry_digest(root, relative, entry)
            name = os.fsencode(relative)
            total.update(b"%s %d %d\n" % (kind, len(name), len(content)))
            total.update(name)
            total.update(content)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=str(error.filename or path)
        ) from None
    return total.hexdigest()


def _entries(directory: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for entry in os.scandir(directory):
        if entry.name in _LEFT_OUT:
            continue
        relative = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), f"{relative}/")
        else:
            yield relative, Path(entry.path)


def _entry_digest(root: Path, relative: str, path: Path) -> tuple[bytes, bytes]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return b"link", os.fsencode(_inside(root, relative, path))
    if not stat.S_ISREG(mode):
        raise ConfigError(
            "is neither a file, a directory nor a link; remove it from the task", file=str(path)
        )
    with path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest()
    return (b"exec" if mode & 0o111 else b"file"), content


def _inside(root: Path, relative: str, path: Path) -> str:
    """The target of a link, which must lie in the package, however it is spelled."""
    target = os.readlink(path)
    spelled = os.path.normpath(os.path.join(os.path.dirname(relative), target))
    leaves = os.path.isabs(target) or spelled == ".." or spelled.startswith("../")
    if leaves or not path.resolve().is_relative_to(root):
        raise ConfigError(
            f"is a link that leaves the task directory (to {target!r}); copy the file instead",
            file=str(path),
        )
    return target
