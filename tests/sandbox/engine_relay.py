"""A relay before the Docker daemon's socket: it counts exports of images, and spoils them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_EXPORT = b"/get HTTP/1.1"
_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")


class EngineRelay:
    """What it does with the bytes of an export, from the `after`th on: pass, cut, flip or stall."""

    def __init__(self) -> None:
        self.exports = 0
        self.mode = "pass"
        self.after = 64 * 1024
        self.reached = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        real = next(path for path in _SOCKETS if os.path.exists(path))  # noqa: ASYNC240
        back, forth = await asyncio.open_unix_connection(real)
        exporting = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._up(reader, forth, exporting))
                await self._down(back, writer, exporting)
                up.cancel()
        except* OSError:  # one end is gone, and so is the connection
            pass
        finally:
            for end in (forth, writer):
                end.transport.abort()

    async def _up(
        self, reader: asyncio.StreamReader, forth: asyncio.StreamWriter, exporting: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if _EXPORT in data:
                self.exports += 1
                exporting.set()
            forth.write(data)
            await forth.drain()
        with suppress(OSError):
            forth.write_eof()

    async def _down(
        self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, exporting: asyncio.Event
    ) -> None:
        passed = 0
        while data := await back.read(65536):
            if exporting.is_set():
                passed += len(data)
            if passed > self.after and self.mode != "pass":
                self.reached.set()
                if self.mode == "cut":
                    return
                if self.mode == "stall":
                    await asyncio.Event().wait()
                if self.mode == "flip":
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 0x20]) + data[middle + 1 :]
                    self.mode = "pass"
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def engine_relay(socket: Path) -> AsyncGenerator[EngineRelay]:
    """A relay that listens on `socket`."""
    relay = EngineRelay()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(relay.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_unix_server(accept, str(socket))
    try:
        yield relay
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
