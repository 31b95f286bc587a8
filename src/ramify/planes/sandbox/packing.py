"""Packing trees of the trusted host, and naming trees by their content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ramify.planes.sandbox.descent import DIR_FLAGS
from ramify.planes.sandbox.packer import END, header

_BLOCK = 512
_CHUNK = 256 * 1024
_DIGEST_CHUNK = 1024 * 1024
_OVERLAY_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")


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


def digest_tree(path: Path) -> str:
    """A digest of everything in a tree that programs can tell apart, save times: 64 hex digits.

    Covers, in the order of relative paths: path, type, permission bits (0777), size, content,
    link target and device number. Reads every file once; blocking. Raises: OSError.
    """
    return _TreeDigest(as_layer=False).of(path)[0]


def digest_layer(path: Path) -> tuple[str, int]:
    """The digest of an overlay layer, and the bytes of its files.

    As `digest_tree`, and also owners, set-id bits and overlay's marks of opaque directories.
    """
    return _TreeDigest(as_layer=True).of(path)


class _TreeDigest:
    def __init__(self, *, as_layer: bool) -> None:
        self._as_layer = as_layer
        self._digest = hashlib.blake2b(digest_size=32)
        self._bytes = 0

    def of(self, path: Path) -> tuple[str, int]:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._directory(root, b"")
        finally:
            os.close(root)
        return self._digest.hexdigest(), self._bytes

    def _directory(self, fd: int, prefix: bytes) -> None:
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            self._entry(fd, name, prefix + name, info)
            if stat.S_ISREG(info.st_mode):
                self._file(fd, name)
            elif stat.S_ISDIR(info.st_mode):
                child = os.open(name, DIR_FLAGS, dir_fd=fd)
                try:
                    if self._as_layer:
                        self._digest.update(b"%d" % is_opaque(child))
                    self._directory(child, prefix + name + b"/")
                finally:
                    os.close(child)

    def _entry(self, dir_fd: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        regular, link = stat.S_ISREG(info.st_mode), stat.S_ISLNK(info.st_mode)
        bits = 0o7777 if self._as_layer else 0o777
        fields = (
            stat.S_IFMT(info.st_mode),
            0 if link else info.st_mode & bits,
            info.st_size if regular else 0,
            info.st_rdev,
            *((info.st_uid, info.st_gid) if self._as_layer else ()),
        )
        target = os.readlink(name, dir_fd=dir_fd) if link else b""
        for text in (path, b" ".join(b"%d" % field for field in fields), target):
            self._digest.update(b"%d:%s" % (len(text), text))

    def _file(self, dir_fd: int, name: bytes) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=dir_fd)
        try:
            # The content has a digest of its own, so a file that changes cannot shift the framing;
            # SHA-256, as processors have instructions for it (three times as fast here).
            content = hashlib.sha256()
            while data := os.read(fd, _DIGEST_CHUNK):
                content.update(data)
                self._bytes += len(data)
            self._digest.update(content.digest())
        finally:
            os.close(fd)


def is_opaque(fd: int) -> bool:
    """Whether a directory of a layer hides what lower layers hold at its place."""
    try:
        names = os.listxattr(fd)
        return any(os.getxattr(fd, mark) == b"y" for mark in _OVERLAY_MARKS if mark in names)
    except OSError:  # the file system has no extended attributes, so nothing is marked
        return False
