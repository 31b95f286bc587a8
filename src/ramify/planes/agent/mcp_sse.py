"""An MCP server over the older HTTP transport: one stream of events, and POSTs beside it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import McpServer
from ramify.planes.agent.mcp_events import Events, Http, refusal
from ramify.planes.agent.mcp_reach import reach
from ramify.planes.agent.mcp_wire import McpError, SessionGoneError

_STRAYS = 100


async def open_sse(server: McpServer, sandbox: Sandbox, ctx: Context) -> SseLink:
    """A way to the server; nothing is asked yet. Raises ConfigError, SandboxError."""
    assert server.url is not None
    return SseLink(Http(await reach(sandbox, ctx, server.url)))


@dataclass(frozen=True, slots=True)
class SseState:
    """A SseLink as a value: its session is its connection, which no copy of a sandbox has."""

    @property
    def lasting(self) -> bool:
        """Never."""
        return False

    async def restore(self, sandbox: Sandbox, ctx: Context) -> None:
        """It has to be opened again."""
        return


class SseLink:
    """Implements `mcp_wire.Link`. The stream is opened with the first request."""

    def __init__(self, http: Http) -> None:
        self._http = http
        given = http.route.given
        self._target = (given.path or "/") + (f"?{given.query}" if given.query else "")
        self._open = AsyncExitStack()
        self._events: Events | None = None
        self._post = ""
        self._greeted = False

    async def ask(self, message: bytes) -> AsyncGenerator[bytes]:
        """POST a request; yields what comes over the stream from then on."""
        if self._events is None:
            await self._connect()
        events = self._events
        assert events is not None
        try:
            await self.tell(message)
        except McpError as error:
            raise await self._lost(str(error), undone=True) from None
        try:
            while (event := await events.next()) is not None:
                if event.kind == "message":
                    yield event.data
        except (aiohttp.ClientError, OSError) as error:
            raise await self._lost(f"{type(error).__name__}: {error}") from None
        raise await self._lost("it closed the stream")

    async def _lost(self, why: str, *, undone: bool = False) -> McpError:
        """The stream is over, and an open session with it."""
        greeted = self._greeted
        await self._disconnect()
        return SessionGoneError(why, undone) if greeted else McpError(why)

    async def _connect(self) -> None:
        request = self._http.request("GET", self._target, {"Accept": "text/event-stream"})
        response = await self._open.enter_async_context(request)
        try:
            if response.status != 200 or response.content_type != "text/event-stream":
                raise McpError(f"it opens no stream of events ({await refusal(response)})")
            events = Events(response.content)
            for _ in range(_STRAYS):
                event = await events.next()
                if event is None:
                    raise McpError("it closed the stream before it named its endpoint")
                if event.kind == "endpoint":
                    break
            else:
                raise McpError("it did not name its endpoint")
            reference = event.data.decode(errors="replace")
            post = self._http.route.target(reference, self._target)
            if post is None:
                raise McpError(f"its endpoint is on another server, {reference[:200]!r}")
        except (aiohttp.ClientError, OSError) as error:
            raise await self._lost(f"{type(error).__name__}: {error}") from None
        except BaseException:
            await self._disconnect()
            raise
        self._events, self._post = events, post

    async def _disconnect(self) -> None:
        stack, self._open = self._open, AsyncExitStack()
        self._events, self._greeted = None, False
        await stack.aclose()

    async def tell(self, message: bytes) -> None:
        """POST a message."""
        headers = {"Content-Type": "application/json"}
        async with self._http.request("POST", self._post, headers, message) as response:
            if response.status not in (200, 202, 204):
                raise McpError(await refusal(response))

    def agreed(self, version: str | None) -> None:
        """From here on there is a session to lose; or, with None, none yet."""
        self._greeted = version is not None

    def state(self) -> SseState:
        """Nothing that could be kept."""
        return SseState()

    async def aclose(self) -> None:
        """Close the stream. Idempotent."""
        await self._disconnect()
        await self._http.aclose()
