"""Files that Git LFS keeps out of the repository: what is committed is a pointer to the content.

The program of git-lfs is not run, as no filter is: a pointer says the SHA-256 and the size of the
content, so whether a file is what was committed can be told without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ramify.apps.pipeline.git import Git, TreeEntry

_LARGEST = 1024
_VERSION = b"version https://git-lfs.github.com/spec/v1\n"
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size ([0-9]{1,18})$", re.MULTILINE)


class Pointer(NamedTuple):
    """What a pointer says of the content: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: int


def read_pointer(data: bytes) -> Pointer | None:
    """The pointer that a committed file is; None where it is none."""
    if not data.startswith(_VERSION) or len(data) >= _LARGEST:
        return None
    oid, size = _OID.search(data), _SIZE.search(data)
    return Pointer(oid[1].decode(), int(size[1])) if oid and size else None


async def pointers_of(
    git: Git, files: Mapping[str, TreeEntry], tracked: Mapping[str, TreeEntry]
) -> dict[str, Pointer]:
    """Path → pointer, of files that are not as git tracks them because a pointer is tracked.

    Raises: ConfigError (git cannot read what is tracked).
    """
    differing = {
        path: entry.oid
        for path, entry in tracked.items()
        if path in files and files[path] != entry and entry.mode.startswith("100")
    }
    contents = await git.read_small(differing.values(), _LARGEST)
    found = {path: read_pointer(contents.get(oid, b"")) for path, oid in differing.items()}
    return {path: pointer for path, pointer in found.items() if pointer is not None}


def is_content(file: Path, pointer: Pointer, sha256: str) -> bool:
    """Whether a file of this SHA-256 is what a pointer stands for."""
    return sha256 == pointer.sha256 and file.stat().st_size == pointer.size
