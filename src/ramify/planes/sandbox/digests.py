"""Naming trees by their content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ramify.planes.sandbox.layer_view import check_level, entries

_PIECE = 4 * 1024 * 1024
_READ = 1024 * 1024
_PENDING = 64
_MAX_THREADS = 8
_KEPT_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl")


def digest_tree(path: Path) -> str:
    """A digest of everything in a tree that programs can tell apart, save times: 64 hex digits.

    Covers, in the order of relative paths: path, type, permission bits (0777), size, content,
    link target and device number. Reads every file once, on up to 8 cores; blocking.
    Raises: OSError.
    """
    return _digest([path], as_layer=False)[0]


def digest_layer(path: Path) -> tuple[str, int]:
    """The digest of an overlay layer, and the bytes of its files.

    As `digest_tree`, and also owners, set-id bits, extended attributes that programs see, and
    overlay's marks of opaque directories.
    """
    return _digest([path], as_layer=True)


def digest_stack(layers: Sequence[Path]) -> tuple[str, int]:
    """The digest of what a stack of layers (topmost first) shows, and the bytes of its files.

    That of `digest_layer` for the layer they can be merged into: it does not depend on how the
    content is spread over layers. Raises: SandboxError (nested too deeply), OSError.
    """
    return _digest(layers, as_layer=True)


def _digest(layers: Sequence[Path], *, as_layer: bool) -> tuple[str, int]:
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    with ExitStack() as stack:
        fds: list[int] = []
        for layer in layers:
            fds.append(os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        # Leaving the pool waits for its work, which closes the descriptors it was given.
        with ThreadPoolExecutor(threads, "ramify-digest") as pool:
            return _TreeDigest(pool, as_layer=as_layer).of(fds)


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

    def of(self, roots: Sequence[int]) -> tuple[str, int]:
        """The digest of what the trees below descriptors show, and the bytes of its files."""
        self._directory(roots, b"", level=0, covered=False)
        self._drain(0)
        return self._digest.hexdigest(), self._bytes

    def _put(self, part: bytes | Future[bytes]) -> None:
        self._queue.append(part)
        self._drain(_PENDING)

    def _drain(self, room: int) -> None:
        while len(self._queue) > room:
            part = self._queue.popleft()
            self._digest.update(part if isinstance(part, bytes) else part.result())

    def _directory(self, fds: Sequence[int], prefix: bytes, *, level: int, covered: bool) -> None:
        check_level(level)
        for entry in entries(fds, covered=covered):
            self._entry(entry.holder, entry.name, prefix + entry.name, entry.info)
            if stat.S_ISREG(entry.info.st_mode):
                self._file(entry.holder, entry.name, entry.info.st_size)
            elif entry.parts:
                if self._as_layer:
                    self._put(b"%d" % entry.opaque)
                    self._attributes(entry.parts[0])
                inside = prefix + entry.name + b"/"
                self._directory(entry.parts, inside, level=level + 1, covered=entry.opaque)

    def _attributes(self, fd: int) -> None:
        """Extended attributes of a file or directory of a layer."""
        for name in sorted(name for name in os.listxattr(fd) if name.startswith(_KEPT_ATTRIBUTES)):
            value = os.getxattr(fd, name)
            self._put(b"%d:%s%d:%s" % (len(name), os.fsencode(name), len(value), value))

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
            if self._as_layer:
                self._attributes(fd)
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
