"""The supervisor's event loop and its streams. Standard library only; runs in the container.

One thread, one epoll. A `Source` carries a descriptor outward, a `Sink` carries data from the
engine into a descriptor; both keep to the windows of `wire`, so what is held here is bounded.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import termios
from collections import deque
from typing import TYPE_CHECKING

import ramify.planes.sandbox.docker.wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

_OUT_HIGH = 1024 * 1024
_OUT_LOW = 512 * 1024
_READ_SIZE = 256 * 1024


class Loop:
    """Calls back when descriptors are ready. A callback gets no arguments."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, mask: int, call: Callable[[], None]) -> None:
        """Call `call` while `fd` is ready for `mask` (also on hang-up); replaces an earlier one."""
        if fd in self._calls:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Stop watching. No effect on what is not watched. Before the descriptor is closed."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def gone(self, fd: int) -> None:
        """Stop calling for a descriptor that was closed already (epoll dropped it by itself)."""
        self._calls.pop(fd, None)

    def step(self, timeout: float) -> None:
        """Wait up to `timeout` seconds (-1: for ever) and serve what is ready."""
        for fd, _ in self._epoll.poll(timeout):
            call = self._calls.get(fd)
            if call is not None:
                call()


class Pipe:
    """The connection to the engine: frames in, frames out.

    `take(kind, channel, payload)` gets each frame. `resumed` is called when a congested
    connection has room again.
    """

    def __init__(self, loop: Loop, in_fd: int, out_fd: int) -> None:
        self._loop, self._in, self._out = loop, in_fd, out_fd
        self._decoder = wire.Decoder()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self.take: Callable[[int, int, bytes], None] = _nothing
        self._paused: list[Source] = []
        self.open = True
        os.set_blocking(in_fd, False)
        os.set_blocking(out_fd, False)
        loop.watch(in_fd, READ, self._readable)

    @property
    def congested(self) -> bool:
        """Whether sources must wait."""
        return self._queued >= _OUT_HIGH

    def pause(self, source: Source) -> None:
        """Wake `source` when there is room again."""
        self._paused.append(source)

    def send(self, data: bytes) -> None:
        """Send a frame, now or as the engine takes it."""
        if not self._queue:
            try:
                sent = os.write(self._out, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.open = False
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.watch(self._out, WRITE, self._writable)
        self._queue.append(memoryview(data))
        self._queued += len(data)

    def _writable(self) -> None:
        try:
            sent = os.writev(self._out, [self._queue[i] for i in range(min(len(self._queue), 16))])
        except BlockingIOError:
            return
        except OSError:
            self.open = False
            return
        self._queued -= sent
        while sent:
            first = self._queue[0]
            if len(first) > sent:
                self._queue[0] = first[sent:]
                break
            sent -= len(first)
            self._queue.popleft()
        if not self._queue:
            self._loop.forget(self._out)
        if self._queued < _OUT_LOW and self._paused:
            paused, self._paused = self._paused, []
            for source in paused:
                source.update()

    def _readable(self) -> None:
        try:
            data = os.read(self._in, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.open = False
            self._loop.forget(self._in)
            return
        for kind, channel, payload in self._decoder.feed(data):
            self.take(kind, channel, payload)


class Source:
    """Carries what can be read from a descriptor to the engine.

    `ended` is called once when the descriptor is at its end and closed; `drained` when the bytes
    asked for by `drain` have gone out.
    """

    def __init__(self, loop: Loop, pipe: Pipe, fd: int, channel: int, *, err: bool = False) -> None:
        self._loop, self._pipe, self.fd = loop, pipe, fd
        self._channel = channel
        self._kinds = (wire.DATA_ERR, wire.EOF_ERR) if err else (wire.DATA, wire.EOF)
        self._credit = wire.WINDOW
        self._discard = False
        self._due = 0
        self.ended: Callable[[], None] = _no_call
        self.drained: Callable[[], None] = _no_call
        os.set_blocking(fd, False)
        self.update()

    @property
    def alive(self) -> bool:
        """Whether the descriptor is still open."""
        return self.fd >= 0

    def grant(self, count: int) -> None:
        """The engine took `count` bytes."""
        self._credit += count
        self.update()

    def discard(self) -> None:
        """From now on read and drop, so that a writer left behind is not blocked or killed."""
        self._discard = True
        self.update()

    @property
    def due(self) -> bool:
        """Whether something that `drain` asked for is still to be sent."""
        return self.alive and self._due > 0

    def drain(self) -> None:
        """Count what is readable now: `due` until that is sent. What comes later does not count."""
        if self.alive and not self._discard:
            waiting = array.array("i", [0])
            fcntl.ioctl(self.fd, termios.FIONREAD, waiting)
            self._due = waiting[0]

    def update(self) -> None:
        """Watch the descriptor just while something may be read from it."""
        if not self.alive:
            return
        if self._discard:
            self._loop.watch(self.fd, READ, self._readable)
        elif self._credit <= 0:
            self._loop.forget(self.fd)
        elif self._pipe.congested:
            self._loop.forget(self.fd)
            self._pipe.pause(self)
        else:
            self._loop.watch(self.fd, READ, self._readable)

    def close(self) -> None:
        """Close the descriptor without a word."""
        if self.alive:
            self._loop.forget(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _readable(self) -> None:
        want = wire.CHUNK if self._discard else min(wire.CHUNK, self._credit)
        try:
            data = os.read(self.fd, want)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last process left the terminal; ECONNRESET: a socket's peer
            data = b""
        if not data:
            self.close()
            if not self._discard:
                self._pipe.send(wire.frame(self._kinds[1], self._channel))
            self.ended()
            return
        if self._discard:
            return
        self._credit -= len(data)
        self._pipe.send(wire.frame(self._kinds[0], self._channel, data))
        if self._due > 0:
            self._due -= min(len(data), self._due)
            if self._due == 0:
                self.drained()
        if self._credit <= 0 or self._pipe.congested:
            self.update()


class Sink:
    """Carries data from the engine into a descriptor, as fast as its reader takes it.

    `finish(fd)` is called with the descriptor once the end of the stream has been written; it
    closes or half-closes it.
    """

    def __init__(
        self, loop: Loop, pipe: Pipe, fd: int, channel: int, finish: Callable[[int], None]
    ) -> None:
        self._loop, self._pipe, self.fd = loop, pipe, fd
        self._channel, self._finish = channel, finish
        self._queue: deque[memoryview] = deque()
        self._held = 0
        self._ending = False
        os.set_blocking(fd, False)

    @property
    def alive(self) -> bool:
        """Whether it still takes data."""
        return self.fd >= 0

    def put(self, data: bytes) -> None:
        """Take data from the engine. Raises: WireError beyond the window."""
        if not self.alive:
            self._refuse(len(data))
            return
        self._held += len(data)
        if self._held > wire.WINDOW or self._ending:
            raise wire.WireError("data beyond the window or the end")
        self._queue.append(memoryview(data))
        if len(self._queue) == 1:
            self._writable()

    def end(self) -> None:
        """End the stream after what is queued."""
        self._ending = True
        if self.alive and not self._queue:
            self._done()

    def close(self) -> None:
        """Close the descriptor and drop what is queued."""
        if self.alive:
            self._loop.forget(self.fd)
            os.close(self.fd)
            self.fd = -1
            self._queue.clear()

    def _writable(self) -> None:
        sent = 0
        while self._queue:
            first = self._queue[0]
            try:
                count = os.write(self.fd, first)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENOTCONN):
                    raise
                held = self._held
                self.close()
                self._refuse(held)
                return
            sent += count
            if count == len(first):
                self._queue.popleft()
            else:
                self._queue[0] = first[count:]
        if sent:
            self._held -= sent
            self._pipe.send(wire.credit(wire.CREDIT, self._channel, sent))
        if self._queue:
            self._loop.watch(self.fd, WRITE, self._writable)
            return
        self._loop.forget(self.fd)
        if self._ending:
            self._done()

    def _done(self) -> None:
        fd, self.fd = self.fd, -1
        self._loop.forget(fd)
        self._finish(fd)

    def _refuse(self, count: int) -> None:
        """The reader is gone: give the window back and say so."""
        self._pipe.send(wire.frame(wire.EVENT, self._channel, b'{"event": "refused"}'))
        self._pipe.send(wire.credit(wire.CREDIT, self._channel, count))


def _nothing(kind: int, channel: int, payload: bytes) -> None:
    """Until the supervisor is ready, frames are not read; this is never called."""


def _no_call() -> None:
    """Nobody waits for this."""
