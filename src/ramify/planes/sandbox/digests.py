"""Naming trees by their content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ramify.planes.sandbox.descent import DIR_FLAGS

_PIECE = 4 * 1024 * 1024
_READ = 1024 * 1024
_PENDING = 64
_MAX_THREADS = 8
_OVERLAY_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")


def digest_tree(path: Path) -> str:
    """A digest of everything in a tree that programs can tell apart, save times: 64 hex digits.

    Covers, in the order of relative paths: path, type, permission bits (0777), size, content,
    link target and device number. Reads every file once, on up to 8 cores; blocking.
    Raises: OSError.
    """
    return _digest(path, as_layer=False)[0]


def digest_layer(path: Path) -> tuple[str, int]:
    """The digest of an overlay layer, and the bytes of its files.

    As `digest_tree`, and also owners, set-id bits and overlay's marks of opaque directories.
    """
    return _digest(path, as_layer=True)


def is_opaque(fd: int) -> bool:
    """Whether a directory of a layer hides what lower layers hold at its place."""
    try:
        names = os.listxattr(fd)
        return any(os.getxattr(fd, mark) == b"y" for mark in _OVERLAY_MARKS if mark in names)
    except OSError:  # the file system has no extended attributes, so nothing is marked
        return False


def _digest(path: Path, *, as_layer: bool) -> tuple[str, int]:
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Leaving the pool waits for its work, which closes the descriptors it was given.
        with ThreadPoolExecutor(threads, "ramify-digest") as pool:
            return _TreeDigest(pool, as_layer=as_layer).of(root)
    finally:
        os.close(root)


class _TreeDigest:
    """BLAKE2b over framed facts; contents enter it as SHA-256 of pieces, hashed by the pool.

    Processors have instructions for SHA-256 (three times as fast as BLAKE2b here), and pieces of
    a fixed size let one big file use all cores.
    """

    def __init__(self, pool: ThreadPoolExecutor, *, as_layer: bool) -> None:
        self._pool, self._as_layer = pool, as_layer
        self._digest = hashlib.blake2b(digest_size=32)
        self._queue: deque[bytes | Future[bytes]] = deque()
        self._bytes = 0

    def of(self, root: int) -> tuple[str, int]:
        """The digest of the tree below a descriptor, and the bytes of its files."""
        self._directory(root, b"")
        self._drain(0)
        return self._digest.hexdigest(), self._bytes

    def _put(self, part: bytes | Future[bytes]) -> None:
        self._queue.append(part)
        self._drain(_PENDING)

    def _drain(self, room: int) -> None:
        while len(self._queue) > room:
            part = self._queue.popleft()
            self._digest.update(part if isinstance(part, bytes) else part.result())

    def _directory(self, fd: int, prefix: bytes) -> None:
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            self._entry(fd, name, prefix + name, info)
            if stat.S_ISREG(info.st_mode):
                self._file(fd, name, info.st_size)
            elif stat.S_ISDIR(info.st_mode):
                child = os.open(name, DIR_FLAGS, dir_fd=fd)
                try:
                    if self._as_layer:
                        self._put(b"%d" % is_opaque(child))
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
        texts = (path, b" ".join(b"%d" % field for field in fields), target)
        self._put(b"".join(b"%d:%s" % (len(text), text) for text in texts))

    def _file(self, dir_fd: int, name: bytes, size: int) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=dir_fd)
        try:
            self._bytes += size
            if size <= _PIECE // 16:  # less work than handing it over
                self._put(_hash_piece(os.dup(fd), 0, size))
                return
            for start in range(0, size, _PIECE):
                length = min(_PIECE, size - start)
                self._put(self._pool.submit(_hash_piece, os.dup(fd), start, length))
        finally:
            os.close(fd)


def _hash_piece(fd: int, start: int, length: int) -> bytes:
    """SHA-256 of a piece of a file; closes the descriptor."""
    try:
        content = hashlib.sha256()
        while length and (data := os.pread(fd, min(length, _READ), start)):
            content.update(data)
            start += len(data)
            length -= len(data)
        return content.digest()
    finally:
        os.close(fd)
