"""Pipes and terminals of commands on the engine's side of a sandbox."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os

from ramify.planes.sandbox.capture import Capture

_READ = 64 * 1024
_FLOOD_READ = 1024 * 1024
_DRAIN_LIMIT = 4 * _FLOOD_READ


class Collector:
    """Reads a pipe to its end as it fills, in bounded memory. Owns the descriptor (-1: closed).

    After `discard` what still comes is read and thrown away, so that a process left in the
    background does not die of a closed pipe.
    """

    def __init__(self, fd: int, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._size = _READ
        self._keep = True
        self.capture = Capture(limit)
        self.closed = self._loop.create_future()
        if fd < 0:
            self.closed.set_result(None)
            return
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    @property
    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd

    def drain(self) -> None:
        """Take what is in the pipe now."""
        start = self.capture.total
        while self._fd >= 0 and self.capture.total - start < _DRAIN_LIMIT and self._readable():
            continue

    def discard(self) -> None:
        """Throw away what comes from now on."""
        self._keep = False

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            if not self.closed.done():
                self.closed.set_result(None)

    def _readable(self) -> bool:
        """Read once; False when there is nothing to read now or ever."""
        try:
            data = os.read(self._fd, self._size)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        if self._keep:
            self.capture.feed(data)
        if len(data) == _READ == self._size:  # a flood: fewer, larger reads
            self._size = _FLOOD_READ
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _FLOOD_READ)
            except OSError:  # above this user's limit: the pipe keeps its size
                return True
        return True


class FdReader:
    """Reads a pipe or terminal on demand: what is not read stays there and slows the writer."""

    def __init__(self, fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._waiter: asyncio.Future[None] | None = None
        if fd >= 0:
            os.set_blocking(fd, False)

    @property
    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes (-1: 64 KiB); b"" at the end or after `close`."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, n if n >= 0 else _READ)
            except BlockingIOError:
                await self._until_readable()
            except OSError as error:
                if error.errno == errno.EIO:  # a terminal that nobody has open any more
                    return b""
                raise
        return b""

    async def _until_readable(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("another task reads this stream")
        self._waiter = self._loop.create_future()
        self._loop.add_reader(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Close the descriptor; a waiting `read` returns b"". Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._wake()


class FdWriter:
    """Writes to a pipe or terminal, waiting while it is full."""

    def __init__(self, fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._lock = asyncio.Lock()
        self._waiter: asyncio.Future[None] | None = None
        if fd >= 0:
            os.set_blocking(fd, False)

    @property
    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises BrokenPipeError when the other end, or this, is closed."""
        async with self._lock:
            view = memoryview(data)
            while view:
                if self._fd < 0:
                    raise BrokenPipeError(errno.EPIPE, "standard input is closed")
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._until_writable()
                except OSError as error:
                    if error.errno == errno.EIO:  # a terminal without a process
                        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
                    raise

    async def _until_writable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._wake()
