"""Packing trees of the trusted host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ramify.planes.sandbox.packer import END, header

_BLOCK = 512
_CHUNK = 256 * 1024


def pack_tree(
    local: Path, *, mode: int | None = None, owner: tuple[int, int] = (0, 0)
) -> Iterator[bytes]:
    """The tar stream of a host file (entry `.`) or of a directory's content (from entry `./`).

    Entries come in the order of names, so that equal trees give equal streams apart from times.
    Symbolic links are packed as links (`local` itself is followed); sockets, FIFOs and devices
    are left out. A file that changes its size while it is read is cut or padded.

    Args:
        local: the file or directory.
        mode: mode of every regular file, instead of its own.
        owner: uid and gid of every entry.

    Raises: OSError (from iteration), FileNotFoundError among them.
    """
    info = local.stat()
    if stat.S_ISREG(info.st_mode):
        yield from _file(b".", os.fsencode(local), info, mode, owner)
    elif stat.S_ISDIR(info.st_mode):
        yield _head(b"./", info, b"5", 0, owner)
        yield from _batched(_directory(os.fsencode(local), b"", mode, owner))
    else:
        raise FileNotFoundError(f"{local} is neither a regular file nor a directory")
    yield END


def _directory(
    path: bytes, prefix: bytes, mode: int | None, owner: tuple[int, int]
) -> Iterator[bytes]:
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name, info = prefix + entry.name, entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            yield _head(name + b"/", info, b"5", 0, owner)
            yield from _directory(entry.path, name + b"/", mode, owner)
        elif stat.S_ISREG(info.st_mode):
            yield from _file(name, entry.path, info, mode, owner)
        elif stat.S_ISLNK(info.st_mode):
            yield _head(name, info, b"2", 0, owner, os.readlink(entry.path))


def _head(
    name: bytes,
    info: os.stat_result,
    kind: bytes,
    size: int,
    owner: tuple[int, int],
    link: bytes = b"",
    mode: int | None = None,
) -> bytes:
    bits = stat.S_IMODE(info.st_mode) if mode is None else mode
    return header(name, bits, owner[0], owner[1], size, int(info.st_mtime), kind, link)


def _file(
    name: bytes, path: bytes, info: os.stat_result, mode: int | None, owner: tuple[int, int]
) -> Iterator[bytes]:
    with open(path, "rb") as source:
        left = os.fstat(source.fileno()).st_size
        pad = -left % _BLOCK
        yield _head(name, info, b"0", left, owner, mode=mode)
        while left:
            data = source.read(min(left, _CHUNK)) or bytes(min(left, _CHUNK))
            left -= len(data)
            yield data
    if pad:
        yield bytes(pad)


def _batched(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Joins small pieces, so that a tree of small files is not a flood of tiny writes."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
