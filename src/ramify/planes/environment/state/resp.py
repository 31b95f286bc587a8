"""A small client for the Redis protocol (RESP2). The server may be hostile: replies are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from ramify.contracts.sandbox import MIB, Endpoint

Reply: TypeAlias = "bytes | int | None | ReplyError | list[Reply]"

_DEPTH = 16
_LINE = 64 * 1024


class ReplyError(Exception):
    """The server answered a command with an error."""


class RespClient:
    """One connection. Use it with `async with`; one caller at a time.

    Everything raises OSError where the server is gone or does not speak the protocol.
    """

    def __init__(self, endpoint: Endpoint, largest_reply: int = 2048 * MIB) -> None:
        self._endpoint = endpoint
        self._largest = largest_reply
        self._left = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> RespClient:
        self._streams = await asyncio.open_connection(
            self._endpoint.host, self._endpoint.port, limit=_LINE
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def call(self, *command: bytes | str | int) -> Reply:
        """The reply to one command. Raises ReplyError."""
        (reply,) = await self.pipeline([command])
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def pipeline(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Reply]:
        """The replies to several commands, sent at once; an error is among the replies."""
        if self._streams is None:
            raise ConnectionError("not connected")
        reader, writer = self._streams
        sending = asyncio.create_task(self._send(writer, commands))
        try:
            return await self._receive(reader, len(commands))
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()  # whoever hangs up on the sender hangs up on the reader, too

    async def _send(
        self, writer: asyncio.StreamWriter, commands: Sequence[Sequence[bytes | str | int]]
    ) -> None:
        for command in commands:
            words = [w if isinstance(w, bytes) else str(w).encode() for w in command]
            writer.write(b"*%d\r\n" % len(words))
            for word in words:
                writer.write(b"$%d\r\n%b\r\n" % (len(word), word))
            await writer.drain()

    async def _receive(self, reader: asyncio.StreamReader, count: int) -> list[Reply]:
        self._left = self._largest
        return [await self._reply(reader, 0) for _ in range(count)]

    async def _reply(self, reader: asyncio.StreamReader, depth: int) -> Reply:
        try:
            line = (await reader.readuntil(b"\r\n"))[:-2]
            kind, rest = line[:1], line[1:]
            self._take(len(line) + 16)
            if kind == b"+":
                return rest
            if kind == b"-":
                return ReplyError(rest.decode(errors="replace"))
            number = int(rest)
            if kind == b":":
                return number
            if kind not in (b"$", b"*") or depth > _DEPTH:
                raise ValueError(f"a reply begins with {kind!r}")
            if number < 0:
                return None
            if kind == b"*":
                self._take(8 * number)
                return [await self._reply(reader, depth + 1) for _ in range(number)]
            self._take(number)
            return (await reader.readexactly(number + 2))[:-2]
        except asyncio.IncompleteReadError:
            raise ConnectionError("the server hung up") from None
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise ConnectionError(f"this is not Redis: {error}") from error

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"replies longer than {self._largest} bytes")
