"""Connections through a container's wire: readers, writers, listeners and endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import ramify.planes.sandbox.docker.wire as wire
from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.sandbox import Endpoint
from ramify.contracts.streams import ByteReader, ConnectionHandler
from ramify.planes.sandbox.docker.link import Channel, Link

_OPEN_SEC = 10.0
_FLUSH_SEC = 10.0


class _Reader:
    """The reading half of a channel, as `ByteReader`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes, b"" at the end, also when the sandbox is gone."""
        try:
            return await self._channel.out.read(n)
        except SandboxLostError:
            return b""


class _Writer:
    """The writing half of a channel, as `ByteWriter`; `pump` is what sends."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()
        self._closing = False
        self._broken = False

    def write(self, data: bytes) -> None:
        """Buffer `data`."""
        if not self._closing and not self._broken:
            self._buffer += data
            self._changed.set()

    async def drain(self) -> None:
        """Wait until the buffer is below one window."""
        while len(self._buffer) >= wire.WINDOW and not self._broken:
            self._sent.clear()
            await self._sent.wait()
        if self._broken:
            raise ConnectionResetError("the other side of the connection is gone")

    def close(self) -> None:
        """Close the connection once the buffer is sent."""
        self._closing = True
        self._changed.set()

    async def pump(self) -> None:
        """Send what is written, until it is closed and sent."""
        try:
            while True:
                while not self._buffer:
                    if self._closing:
                        return
                    self._changed.clear()
                    await self._changed.wait()
                piece = bytes(self._buffer[: wire.CHUNK])
                await self._channel.send(piece)
                del self._buffer[: len(piece)]
                self._sent.set()
        except (BrokenPipeError, SandboxLostError):
            self._broken = True
        finally:
            self._sent.set()
            self._channel.close()


class Tasks:
    """Tasks that belong to one sandbox and end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`; what it raises is dropped, so it must handle what matters."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def aclose(self) -> None:
        """Cancel and await all."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a connection of a sandbox failed", "exception": error, "task": task}
            )


class ChannelListener:
    """A listener of ours inside a container, as the `Listener` contract."""

    def __init__(self, link: Link, channel: Channel, port: int, handler: ConnectionHandler) -> None:
        self._link, self._channel, self._port = link, channel, port
        self._handler = handler
        self._tasks = Tasks()
        link.on_accept(channel, self._take)

    @property
    def port(self) -> int:
        """The port on the container's loopback."""
        return self._port

    async def aclose(self) -> None:
        """Stop listening and end open connections. Idempotent."""
        self._link.on_accept(self._channel, None)
        self._channel.close()
        await self._tasks.aclose()

    def _take(self, channel: Channel) -> None:
        self._tasks.start(self._serve(channel))

    async def _serve(self, channel: Channel) -> None:
        writer = _Writer(channel)
        pump = asyncio.create_task(writer.pump())
        try:
            await self._handler(_Reader(channel), writer)
            writer.close()
            await asyncio.wait([pump], timeout=_FLUSH_SEC)
        except ConnectionError:
            return  # the inside hung up; the handler need not care
        finally:
            pump.cancel()
            await asyncio.wait([pump])
            channel.close()


async def listen_inside(link: Link, port: int, handler: ConnectionHandler) -> ChannelListener:
    """Listen on a port inside. Raises: SandboxError (the port is taken), SandboxLostError."""
    channel = link.open({"op": "listen", "port": port})
    try:
        async with asyncio.timeout(_OPEN_SEC):
            event = await channel.until("listening", "failed")
        if event["event"] == "failed":
            raise SandboxError(f"cannot listen on port {port} inside: {event.get('text')}")
        number = event.get("port")
        if not isinstance(number, int):
            raise SandboxLostError("the supervisor answered with nonsense")
    except BaseException:
        channel.close()
        raise
    return ChannelListener(link, channel, number, handler)


class PortForward:
    """A listener on the host whose connections reach a port inside. Made by `expose`."""

    def __init__(self, link: Link, port: int) -> None:
        self._link, self._port = link, port
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def start(self) -> Endpoint:
        """Listen on a free port of the host's loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Endpoint(host, port)

    async def aclose(self) -> None:
        """Stop listening and end open connections. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._carry(reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel: Channel | None = None
        try:
            channel = self._link.open({"op": "dial", "port": self._port})
            async with asyncio.timeout(_OPEN_SEC):
                event = await channel.until("connected", "failed")
            if event["event"] == "failed":
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(_send_all(reader, channel))
                group.create_task(_receive_all(channel, writer))
        except* (OSError, SandboxLostError, TimeoutError):
            pass  # one side hung up: the connection ends, which its peer notices
        finally:
            if channel is not None:
                channel.close()
            writer.close()


async def _send_all(reader: ByteReader, channel: Channel) -> None:
    try:
        while data := await reader.read(wire.CHUNK):
            await channel.send(data)
        channel.send_eof()
    except BrokenPipeError:
        return  # the inside takes no more, but may still have something to say


async def _receive_all(channel: Channel, writer: asyncio.StreamWriter) -> None:
    while data := await channel.out.read(wire.CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
