"""Our end of the wire to one container's supervisor: channels with flow control.

Everything that arrives is distrusted: a malformed frame, data beyond its window or a frame for a
channel that was never open ends the link, and every channel on it raises SandboxLostError.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import ramify.planes.sandbox.docker.wire as wire
from ramify.contracts.errors import SandboxLostError

Event = dict[str, Any]
Tap = Callable[[bytes], object]

_HELLO = 1
_STDCOPY_HEAD = 8
_STDERR_KEPT = 2000
_MAX_EVENTS = 16
_MAX_ACCEPTED = 4096


class Stdcopy:
    """Splits the daemon's attach stream into standard output and standard error."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The pieces in `data`, as (1 or 2, bytes). Raises: WireError."""
        pieces: list[tuple[int, bytes]] = []
        start = 0
        while start < len(data):
            if self._left:
                piece = data[start : start + self._left]
                self._left -= len(piece)
                start += len(piece)
                pieces.append((self._stream, piece))
                continue
            part = data[start : start + _STDCOPY_HEAD - len(self._head)]
            self._head += part
            start += len(part)
            if len(self._head) == _STDCOPY_HEAD:
                self._stream = self._head[0]
                if self._stream not in (1, 2) or any(self._head[1:4]):
                    raise wire.WireError("malformed frame of the daemon")
                self._left = int.from_bytes(self._head[4:], "big")
                self._head.clear()
        return pieces


class Inflow:
    """One stream from the container: a buffer of at most one window, or a tap that takes it all."""

    def __init__(self, grant: Callable[[int], None], tap: Tap | None) -> None:
        self._grant = grant
        self._tap = tap
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._owed = 0
        self._ready = asyncio.Event()
        self._ended = False
        self._error: str | None = None

    def put(self, data: bytes) -> None:
        """Take bytes from the wire. Raises: WireError beyond the window."""
        if self._ended:
            raise wire.WireError("data after the end of a stream")
        if self._tap is not None:
            self._tap(data)
            self._settle(len(data))
            return
        self._held += len(data)
        if self._held > wire.WINDOW:
            raise wire.WireError("data beyond the window")
        self._chunks.append(data)
        self._ready.set()

    def end(self, error: str | None = None) -> None:
        """No more will come; readers are told `error` (or the end) after what is buffered."""
        if not self._ended:
            self._ended, self._error = True, error
        self._ready.set()

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" at the end. Raises: SandboxLostError."""
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise SandboxLostError(self._error)
                return b""
            self._ready.clear()
            await self._ready.wait()
        first = self._chunks.popleft()
        if len(first) > limit > 0:
            self._chunks.appendleft(first[limit:])
            first = first[:limit]
        self._held -= len(first)
        self._settle(len(first))
        return first

    def _settle(self, count: int) -> None:
        """Grant what was consumed, in portions worth a frame."""
        self._owed += count
        if not self._ended and (self._owed >= wire.WINDOW // 4):
            self._grant(self._owed)
            self._owed = 0


class Channel:
    """One conversation with the supervisor: requests and events, two streams in, one out."""

    def __init__(self, link: Link, number: int, taps: tuple[Tap | None, Tap | None]) -> None:
        self._link = link
        self.number = number
        self.out = Inflow(lambda n: link.push(wire.credit(wire.CREDIT, number, n)), taps[0])
        self.err = Inflow(lambda n: link.push(wire.credit(wire.CREDIT_ERR, number, n)), taps[1])
        self._credit = wire.WINDOW
        self._room = asyncio.Event()
        self._events: dict[str, Event] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._failure: str | None = None
        self._refused = False
        self._closed = False

    async def until(self, *kinds: str) -> Event:
        """The event of the first of `kinds` that has arrived. Raises: SandboxLostError."""
        while True:
            for kind in kinds:
                if kind in self._events:
                    return self._events[kind]
            if self._failure is not None:
                raise SandboxLostError(self._failure)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def tell(self, request: Event) -> None:
        """Send a request on this channel; nothing once it is closed or lost."""
        if not self._closed and self._failure is None:
            self._link.push(wire.frame(wire.EVENT, self.number, _encode(request)))

    async def send(self, data: bytes) -> None:
        """Send bytes of the main stream, as the other side takes them.

        Raises: BrokenPipeError (the other side takes no more), SandboxLostError.
        """
        view = memoryview(data)
        while view:
            while not self._credit and not self._refused and self._failure is None:
                self._room.clear()
                await self._room.wait()
            self._check_writable()
            piece = view[: min(self._credit, wire.CHUNK)]
            self._credit -= len(piece)
            self._link.push(wire.frame(wire.DATA, self.number, bytes(piece)))
            view = view[len(piece) :]
            await self._link.drain()
        self._check_writable()

    def send_eof(self) -> None:
        """End the main stream outward."""
        if not self._closed and self._failure is None:
            self._link.push(wire.frame(wire.EOF, self.number))

    def close(self) -> None:
        """Say that the channel is of no more use. Idempotent."""
        if not self._closed:
            self._closed = True
            self._link.push(wire.frame(wire.CLOSE, self.number))
            self._link.forget(self)
            self.fail("the channel is closed")

    def fail(self, error: str) -> None:
        """Wake everyone with SandboxLostError(`error`)."""
        if self._failure is None:
            self._failure = error
        self.out.end(error)
        self.err.end(error)
        self._room.set()
        self._wake()

    def take(self, kind: int, payload: bytes) -> None:
        """A frame from the supervisor. Raises: WireError."""
        if self._failure is not None:
            return
        if kind == wire.DATA:
            self.out.put(payload)
        elif kind == wire.DATA_ERR:
            self.err.put(payload)
        elif kind == wire.EOF:
            self.out.end()
        elif kind == wire.EOF_ERR:
            self.err.end()
        elif kind == wire.CREDIT:
            self._credit += wire.granted(payload)
            if self._credit > wire.WINDOW:
                raise wire.WireError("credit beyond the window")
            self._room.set()
        elif kind == wire.EVENT:
            self._take_event(_decode(payload))
        else:
            raise wire.WireError(f"unexpected frame of kind {kind}")

    def _take_event(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "refused":
            self._refused = True
            self._room.set()
        elif not isinstance(kind, str) or kind in self._events or len(self._events) >= _MAX_EVENTS:
            raise wire.WireError("an unexpected event")
        else:
            self._events[kind] = event
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise SandboxLostError(self._failure)
        if self._refused:
            raise BrokenPipeError("the process takes no more input")


class Link:
    """The wire to one supervisor. `lost` is called once, with the reason, when it ends."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: Callable[[str], None],
    ) -> None:
        self._reader, self._writer, self._lost = reader, writer, lost
        self._channels: dict[int, Channel] = {}
        self._closed_numbers: set[int] = set()
        self._accepting: dict[int, Callable[[Channel], None]] = {}
        self._next = 2
        self._last_accepted = 1
        self._error: str | None = None
        self._stderr = bytearray()
        self.ready = asyncio.Event()
        self._task = asyncio.create_task(self._receive(), name="docker-link")

    async def greeted(self) -> None:
        """Wait until the supervisor is there. Raises: SandboxLostError."""
        await self.ready.wait()
        if self._error is not None:
            raise SandboxLostError(self._error)

    def open(self, request: Event, out: Tap | None = None, err: Tap | None = None) -> Channel:
        """Open a channel with a request; `out` and `err` take its streams as they come.

        Raises: SandboxLostError.
        """
        if self._error is not None:
            raise SandboxLostError(self._error)
        channel = Channel(self, self._next, (out, err))
        self._next += 2
        self._channels[channel.number] = channel
        self.push(wire.frame(wire.OPEN, channel.number, _encode(request)))
        return channel

    def on_accept(self, channel: Channel, take: Callable[[Channel], None] | None) -> None:
        """Give the connections accepted for a listening channel to `take` (None: stop)."""
        if take is None:
            self._accepting.pop(channel.number, None)
        else:
            self._accepting[channel.number] = take

    def push(self, data: bytes) -> None:
        """Write frames; what is not yet sent is bounded by the windows of the channels."""
        if self._error is None and not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the connection takes more. Raises: SandboxLostError."""
        if self._error is not None:
            raise SandboxLostError(self._error)
        try:
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise SandboxLostError(f"the connection to the container broke: {error}") from error

    def forget(self, channel: Channel) -> None:
        """Drop a channel that we closed; frames on their way to it are ignored from now on."""
        if self._channels.pop(channel.number, None) is not None:
            self._closed_numbers.add(channel.number)

    def abandon(self, reason: str) -> None:
        """Fail every channel that is open now; new ones can still be opened."""
        for channel in self._channels.values():
            channel.fail(reason)

    def end(self, reason: str) -> None:
        """End every channel with SandboxLostError(reason). Idempotent."""
        if self._error is not None:
            return
        self._error = reason
        self._writer.transport.abort()
        self.ready.set()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(reason)
        self._lost(reason)

    async def aclose(self) -> None:
        """End the link and its task. Idempotent."""
        self.end("the sandbox was torn down")
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(OSError):  # how the connection ended no longer matters
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        split, decoder = Stdcopy(), wire.Decoder()
        reason = "its main process ended"
        try:
            while data := await self._reader.read(1 << 18):
                for stream, piece in split.feed(data):
                    if stream == 2:
                        self._stderr += piece
                        del self._stderr[:-_STDERR_KEPT]
                        continue
                    for kind, number, payload in decoder.feed(piece):
                        self._route(kind, number, payload)
        except wire.WireError as error:
            reason = f"its supervisor broke the protocol: {error}"
        except OSError as error:
            reason = f"the connection to it broke: {error}"
        said = bytes(self._stderr).decode("utf-8", "replace").strip()
        self.end(f"the container is gone: {reason}" + (f"; it said: {said}" if said else ""))

    def _route(self, kind: int, number: int, payload: bytes) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            if kind == wire.CLOSE:
                raise wire.WireError("a channel of ours was closed by the other side")
            channel.take(kind, payload)
        elif kind == wire.OPEN and number == _HELLO:
            self.ready.set()
        elif kind == wire.OPEN:
            self._accepted(number, _decode(payload))
        elif number in self._closed_numbers:
            if kind == wire.CLOSE:
                self._closed_numbers.discard(number)
        else:
            raise wire.WireError(f"a frame for channel {number}, which is not open")

    def _accepted(self, number: int, request: Event) -> None:
        if number % 2 == 0 or number <= self._last_accepted:
            raise wire.WireError(f"channel {number} cannot be opened")
        if len(self._channels) > _MAX_ACCEPTED:
            raise wire.WireError("a flood of connections")
        self._last_accepted = number
        channel = Channel(self, number, (None, None))
        self._channels[number] = channel
        listener = request.get("listener")
        take = self._accepting.get(listener) if isinstance(listener, int) else None
        if take is None:
            channel.close()
        else:
            take(channel)


def _encode(message: Event) -> bytes:
    payload = json.dumps(message).encode()
    if len(payload) > wire.MAX_PAYLOAD:
        raise ValueError(f"a request of {len(payload)} bytes is too large")
    return payload


def _decode(payload: bytes) -> Event:
    try:
        message: Any = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise wire.WireError("malformed event") from error
    if not isinstance(message, dict):
        raise wire.WireError("malformed event")
    return cast(Event, message)
