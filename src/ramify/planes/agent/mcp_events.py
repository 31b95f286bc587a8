"""Requests to MCP servers over HTTP: bounded answers, and streams of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp

from ramify.planes.agent.mcp_reach import Route
from ramify.planes.agent.mcp_wire import MAX_MESSAGE, McpError

_REDIRECTS = 3
_CONNECT_SEC = 10.0


class Event(NamedTuple):
    """A server-sent event."""

    kind: str
    data: bytes


class Events:
    """Server-sent events of one response, in order. What is left over is kept between calls."""

    def __init__(self, body: aiohttp.StreamReader) -> None:
        self._body = body
        self._rest = bytearray()

    async def next(self) -> Event | None:
        """The next event that has data; None at the end. Raises McpError when it is too long."""
        kind, data, size = "message", list[bytes](), 0
        while (line := await self._line()) is not None:
            if not line:
                if data:
                    return Event(kind, b"\n".join(data))
                kind = "message"
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                kind = value.decode(errors="replace")
            elif field == b"data":
                data.append(value)
                size += len(value) + 1
            if size > MAX_MESSAGE:
                raise McpError(f"it sent an event of more than {MAX_MESSAGE} bytes")
        return None

    async def _line(self) -> bytes | None:
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > MAX_MESSAGE:
                raise McpError(f"it sent a line of more than {MAX_MESSAGE} bytes")
            more = await self._body.readany()
            if not more:
                return None
            self._rest += more
        line = bytes(self._rest[:end]).removesuffix(b"\r")
        del self._rest[: end + 1]
        return line


class Http:
    """Requests along a route. No connection outlives its request.

    An open connection would be part of what a checkpoint has to capture.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self._session: aiohttp.ClientSession | None = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SEC),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # nothing that is small on the wire is large here
            )
        return self._session

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The response to a request; redirections to the same server are followed.

        Raises McpError when there is none, or when reading it fails.
        """
        headers = {**headers, "Host": self.route.host_header, "Accept-Encoding": "identity"}
        secure = self.route.given.hostname if self.route.given.scheme == "https" else None
        try:
            for _ in range(_REDIRECTS):
                async with self._client().request(
                    method,
                    self.route.url(target),
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    server_hostname=secure,
                ) as response:
                    if response.status not in (307, 308):
                        yield response
                        return
                    reference = response.headers.get("Location", "")
                if (there := self.route.target(reference, target)) is None:
                    raise McpError(f"it sends on to another server, {reference[:200]!r}")
                target = there
            raise McpError(f"it sends on more than {_REDIRECTS - 1} times")
        except (aiohttp.ClientError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            said = self.route.trouble.strip()
            raise McpError(f"{why} ({said})" if said else why) from None

    async def aclose(self) -> None:
        """Close every connection, and the route. Idempotent."""
        if self._session is not None:
            await self._session.close()
        await self.route.aclose()


async def body_of(response: aiohttp.ClientResponse, limit: int = MAX_MESSAGE) -> bytes:
    """The whole body. Raises McpError beyond `limit`."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise McpError(f"it answered with more than {limit} bytes")
    return bytes(data)


async def refusal(response: aiohttp.ClientResponse) -> str:
    """What a response other than a success says, in short."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > 500:
            break
    return f"HTTP {response.status}: {data[:500].decode(errors='replace').strip()}"
