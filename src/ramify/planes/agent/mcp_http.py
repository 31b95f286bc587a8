"""An MCP server over streamable HTTP: each request is a POST, answered by one body or a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import McpServer
from ramify.planes.agent.mcp_events import Events, Http, body_of, refusal
from ramify.planes.agent.mcp_reach import reach
from ramify.planes.agent.mcp_wire import McpError, SessionGoneError

_LEAVE_SEC = 1.0


async def open_http(server: McpServer, sandbox: Sandbox, ctx: Context) -> HttpLink:
    """A way to the server; nothing is asked yet. Raises ConfigError, SandboxError."""
    assert server.url is not None
    return await HttpState(server.url).restore(sandbox, ctx)


@dataclass(frozen=True, slots=True)
class HttpState:
    """A HttpLink as a value. Implements `mcp_wire.LinkState`."""

    url: str
    session: str | None = None
    version: str | None = None

    @property
    def lasting(self) -> bool:
        """The session is the server's, and no connection is needed to keep it."""
        return True

    async def restore(self, sandbox: Sandbox, ctx: Context) -> HttpLink:
        """A link with the same session. A server that does not know it says so when asked."""
        return HttpLink(Http(await reach(sandbox, ctx, self.url)), self)


class HttpLink:
    """Implements `mcp_wire.Link`."""

    def __init__(self, http: Http, at: HttpState) -> None:
        self._http, self._at = http, at
        given = http.route.given
        self._target = (given.path or "/") + (f"?{given.query}" if given.query else "")

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        if self._at.session is not None:
            headers["Mcp-Session-Id"] = self._at.session
        if self._at.version is not None:
            headers["MCP-Protocol-Version"] = self._at.version
        return headers

    async def ask(self, message: bytes) -> AsyncGenerator[bytes]:
        """POST a request; yields the body, or the events of the stream, that answer it."""
        try:
            async with aclosing(self._answers(message)) as answers:
                async for data in answers:
                    yield data
        finally:
            await self._http.route.settled()

    async def _answers(self, message: bytes) -> AsyncGenerator[bytes]:
        headers = self._headers()
        async with self._http.request("POST", self._target, headers, message) as response:
            if response.status in (400, 404) and self._at.session is not None:
                self._at = HttpState(self._at.url)
                why = f"it forgot the session: {await refusal(response)}"
                raise SessionGoneError(why, undone=True)
            if response.status != 200:
                raise McpError(await refusal(response))
            session = response.headers.get("Mcp-Session-Id")
            if session is not None:
                self._at = HttpState(self._at.url, session, self._at.version)
            if response.content_type != "text/event-stream":
                yield await body_of(response)
                return
            events = Events(response.content)
            while (event := await events.next()) is not None:
                if event.kind == "message":
                    yield event.data

    async def tell(self, message: bytes) -> None:
        """POST what nobody answers."""
        async with self._http.request("POST", self._target, self._headers(), message) as response:
            if response.status not in (200, 202, 204):
                raise McpError(await refusal(response))
        await self._http.route.settled()

    def agreed(self, version: str | None) -> None:
        """Every later request names version and session; with None there is neither."""
        session = self._at.session if version is not None else None
        self._at = HttpState(self._at.url, session, version)

    def state(self) -> HttpState:
        """The session's id."""
        return self._at

    async def aclose(self) -> None:
        """End the session at the server, if it answers at once, and every connection."""
        at, headers = self._at, self._headers()
        self._at = HttpState(at.url)
        if at.session is not None:
            with suppress(McpError, TimeoutError):
                async with asyncio.timeout(_LEAVE_SEC):
                    async with self._http.request("DELETE", self._target, headers):
                        pass
        await self._http.aclose()
