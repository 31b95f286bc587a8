"""A client of one MCP server: opens a session, lists its tools, calls them.

Versions of the protocol with a handshake (2024-11-05 to 2025-11-25). Of what a client may offer a
server, nothing is offered: no sampling, no roots, no elicitation. Tools are listed once; that a
server changes them later is ignored.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple, cast

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import McpServer
from ramify.planes.agent.mcp_http import open_http
from ramify.planes.agent.mcp_sse import open_sse
from ramify.planes.agent.mcp_stdio import open_stdio
from ramify.planes.agent.mcp_wire import (
    JSON,
    Incoming,
    Link,
    LinkState,
    McpError,
    SessionGoneError,
    answer,
    as_object,
    incoming,
    notification,
    request,
)

_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
_PAGES, _TOOLS, _TOOLS_BYTES = 100, 512, 1024 * 1024
_STRAYS = 10_000
"""Messages of a server that answer nothing, while one request waits."""
_RETRY_SEC = 0.25
_CANCEL_SEC = 1.0


class Patience(NamedTuple):
    """Seconds until a server answers for the first time, and for one call."""

    start_sec: float
    call_sec: float


class Offered(NamedTuple):
    """A tool as its server offers it."""

    name: str
    description: str
    schema: JSON


class Answered(NamedTuple):
    """What a call gave: content blocks as the server sent them, and whether it is an error."""

    content: list[Any]
    structured: Any
    is_error: bool


@dataclass(frozen=True, slots=True)
class McpState:
    """A McpClient as a value."""

    server: McpServer
    offered: tuple[Offered, ...]
    asked: int
    link: LinkState
    lost: bool

    def survives(self, live: bool) -> bool:
        """Whether `restore` finds the server as it was, memory included."""
        return live and self.link.lasting

    async def restore(self, sandbox: Sandbox, ctx: Context, patience: Patience) -> McpClient:
        """The client in a copy of the sandbox; the server is started or greeted anew if need be.

        Raises: EnvironmentFailed, SandboxLostError.
        """
        link = await self.link.restore(sandbox, ctx)
        if link is None:
            return await connect_mcp(self.server, sandbox, ctx, patience, self.offered)
        return McpClient(self.server, link, patience, self.offered, self.asked, self.lost)


async def connect_mcp(
    server: McpServer,
    sandbox: Sandbox,
    ctx: Context,
    patience: Patience,
    offered: tuple[Offered, ...] | None = None,
) -> McpClient:
    """Open a session with a server. `offered`: what is known of its tools, else it is asked.

    A server that listens on the network may need time to come up: it is tried again until
    `patience.start_sec` are over.

    Raises: EnvironmentFailed (it does not start, answer, or keep to the protocol),
    ConfigError (its address is none), SandboxError.
    """
    client = McpClient(server, await _link(server, sandbox, ctx), patience, offered or ())
    failed = ""
    try:
        async with asyncio.timeout(patience.start_sec):
            while True:
                try:
                    await client.greet()
                    if offered is None:
                        await client.list_tools()
                    return client
                except McpError as error:
                    failed = str(error)
                if server.transport == "stdio":
                    break
                await ctx.clock.sleep(_RETRY_SEC)
    except TimeoutError:
        late = f"no answer within {patience.start_sec:g} s"
        failed = f"{late} ({failed})" if failed else late
    except BaseException:
        await client.aclose()
        raise
    await client.aclose()
    where = server.command if server.transport == "stdio" else server.url
    raise EnvironmentFailed(
        f"the MCP server {server.name} ({server.transport}, {where}) cannot be used: {failed}"
    )


async def _link(server: McpServer, sandbox: Sandbox, ctx: Context) -> Link:
    match server.transport:
        case "stdio":
            return await open_stdio(server, sandbox, ctx)
        case "sse":
            return await open_sse(server, sandbox, ctx)
        case "streamable-http":
            return await open_http(server, sandbox, ctx)


class McpClient:
    """A session with one server. One request at a time.

    Attributes:
        server: which.
        offered: its tools.
    """

    def __init__(
        self,
        server: McpServer,
        link: Link,
        patience: Patience,
        offered: tuple[Offered, ...] = (),
        asked: int = 0,
        lost: bool = False,
    ) -> None:
        self.server, self.offered = server, offered
        self._link, self._patience, self._asked = link, patience, asked
        self._lost = lost
        self._turn = asyncio.Lock()

    async def greet(self) -> None:
        """Open the session. Raises McpError."""
        client = {"name": "ramify", "version": version("ramify")}
        params: JSON = {
            "protocolVersion": _VERSIONS[0], "capabilities": {}, "clientInfo": client,
        }  # fmt: skip
        self._link.agreed(None)
        result = await self._ask("initialize", params)
        agreed = result.get("protocolVersion")
        if agreed not in _VERSIONS:
            raise McpError(f"it speaks version {agreed!r}, not one of {', '.join(_VERSIONS)}")
        self._link.agreed(agreed)
        await self._link.tell(notification("notifications/initialized"))
        self._lost = False

    async def list_tools(self) -> None:
        """Ask for all of its tools. Raises McpError, also when there are too many."""
        found: dict[str, Offered] = {}
        params: JSON = {}
        size = 0
        for _ in range(_PAGES):
            result = await self._ask("tools/list", params)
            tools: Any = result.get("tools")
            if not isinstance(tools, list):
                raise McpError("it lists no tools where they should be")
            size += len(msgspec.json.encode(tools))
            for tool in cast("list[Any]", tools):
                made = _offered(tool)
                found.setdefault(made.name, made)
            if len(found) > _TOOLS or size > _TOOLS_BYTES:
                raise McpError(f"it lists more than {_TOOLS} tools or {_TOOLS_BYTES} bytes")
            if not (cursor := result.get("nextCursor")):
                self.offered = tuple(found.values())
                return
            params = {"cursor": cursor}
        raise McpError(f"its list of tools has more than {_PAGES} pages")

    async def call(self, name: str, arguments: JSON) -> Answered:
        """Call a tool. Raises McpError (it does not answer, or refuses), SandboxLostError."""
        params: JSON = {"name": name, "arguments": arguments}
        seconds = self._patience.call_sec
        scope = asyncio.timeout(seconds)
        try:
            async with scope, self._turn:
                result = await self._called(params)
        except TimeoutError:
            if not scope.expired():
                raise
            raise McpError(f"no answer within {seconds:g} s") from None
        content: Any = result.get("content")
        blocks = cast("list[Any]", content) if isinstance(content, list) else []
        return Answered(blocks, result.get("structuredContent"), result.get("isError") is True)

    async def _called(self, params: JSON) -> JSON:
        """The result of a call, which is made at most once; in a new session if need be."""
        if self._lost:
            await self.greet()
        try:
            return await self._ask("tools/call", params)
        except SessionGoneError as gone:
            self._lost = True
            if not gone.undone:
                raise
        await self.greet()
        return await self._ask("tools/call", params)

    async def _ask(self, method: str, params: JSON) -> JSON:
        """The result of a request. Raises McpError."""
        self._asked += 1
        number = self._asked
        strays = 0
        try:
            async with aclosing(self._link.ask(request(number, method, params))) as heard:
                async for data in heard:
                    for message in incoming(data):
                        if message.answers(number):
                            return _result(message)
                        await self._react(message)
                    strays += 1
                    if strays > _STRAYS:
                        raise McpError(f"it sent {strays} messages and no answer")
        except asyncio.CancelledError:
            await self._give_up(number, method)
            raise
        raise McpError("it ended its answer without one")

    async def _react(self, message: Incoming) -> None:
        """Answer what the server asks meanwhile; everything else is passed over."""
        if message.method is not None and message.id is not None:
            await self._link.tell(answer(message.id, {} if message.method == "ping" else None))

    async def _give_up(self, number: int, method: str) -> None:
        """Tell the server, if it listens, that nobody waits for an answer any more."""
        if method == "initialize":
            return
        told = {"requestId": number, "reason": "nobody waits for it any more"}
        with suppress(McpError, TimeoutError):
            async with asyncio.timeout(_CANCEL_SEC):
                await self._link.tell(notification("notifications/cancelled", told))

    def state(self) -> McpState:
        """Where it stands. Nothing may be waiting for an answer."""
        return McpState(self.server, self.offered, self._asked, self._link.state(), self._lost)

    async def aclose(self) -> None:
        """Leave the server. Idempotent."""
        await self._link.aclose()


def _result(message: Incoming) -> JSON:
    if message.error is not None:
        fields = as_object(message.error)
        said = str(fields.get("message") or message.error)[:2000]
        raise McpError(f"it refuses: {said} ({fields.get('code')})")
    result: Any = message.result
    if not isinstance(result, dict):
        raise McpError("its answer is no object")
    return cast("JSON", result)


def _offered(tool: Any) -> Offered:
    """A tool of a list. Raises McpError."""
    fields = as_object(tool)
    name: Any = fields.get("name")
    schema: Any = fields.get("inputSchema")
    if not isinstance(name, str) or not name or not isinstance(schema, dict):
        raise McpError(f"it lists a tool without a name or schema: {str(tool)[:200]}")
    description: Any = fields.get("description") or fields.get("title")
    return Offered(name, description if isinstance(description, str) else "", cast("JSON", schema))
