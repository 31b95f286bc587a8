"""Ports between engine and sandbox: sockets of the inside, handed out by the supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.sandbox import Endpoint
from ramify.contracts.streams import ConnectionHandler
from ramify.planes.sandbox.local.control import Control

_CHUNK = 256 * 1024
_CLOSE_SEC = 5.0


class Server:
    """A listening socket, each connection of which is served by a task of ours."""

    def __init__(self, handler: ConnectionHandler) -> None:
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, sock: socket.socket) -> None:
        """Serve what arrives at a listening socket. Owns it."""
        self.port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._connected, sock=sock)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            await self._handler(reader, writer)
        except (OSError, SandboxError):
            writer.transport.abort()  # the connection, not the listener, is what failed
        finally:
            if task is not None:
                self._tasks.discard(task)
            writer.close()

    async def aclose(self) -> None:
        """Stop listening and end open connections. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SEC)


async def listen_inside(control: Control, port: int, handler: ConnectionHandler) -> Server:
    """See `Sandbox.serve_in`."""
    try:
        reply = await control.ask({"op": "listen", "port": port})
    except SandboxLostError:
        raise
    except SandboxError as error:
        raise SandboxError(f"cannot listen on port {port} inside: {error}") from error
    sock = socket.socket(fileno=reply.fds[0])
    sock.setblocking(False)
    server = Server(handler)
    await server.start(sock)
    return server


async def expose(control: Control, port: int) -> tuple[Endpoint, Server]:
    """See `Sandbox.expose_port`."""

    async def bridge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = await control.ask({"op": "connect", "port": port})
        sock = socket.socket(fileno=reply.fds[0])
        try:
            await _until_connected(sock)
            inner_reader, inner_writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, inner_writer))
                group.create_task(_pump(inner_reader, writer))
        except* OSError:
            writer.transport.abort()  # one side broke off; so does the other
        finally:
            inner_writer.close()

    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    server = Server(_as_handler(bridge))
    await server.start(sock)
    return Endpoint("127.0.0.1", server.port), server


def _as_handler(
    bridge: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> ConnectionHandler:
    return bridge  # type: ignore[return-value]  # our own servers pass asyncio's streams


async def _until_connected(sock: socket.socket) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise ConnectionRefusedError(code, os.strerror(code))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
