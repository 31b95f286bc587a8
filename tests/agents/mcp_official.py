"""An MCP server made with the official package: `python mcp_official.py TRANSPORT [PORT]`."""

from __future__ import annotations

import asyncio
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import EmbeddedResource, ImageContent, TextContent, TextResourceContents

server = MCPServer("notes")
kept: dict[str, str] = {}


@server.tool()
def remember(key: str, value: str) -> str:
    """Keep a value in memory.

    Until the server ends.
    """
    kept[key] = value
    return f"{len(kept)} kept"


@server.tool()
def recall(key: str) -> str:
    """What was kept."""
    if key not in kept:
        raise ToolError(f"nothing is kept as {key}")
    return kept[key]


@server.tool()
async def sleep(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "rested"


@server.tool()
def show() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Some of each."""
    text = TextResourceContents(uri="memo://1", mime_type="text/plain", text="a memo")
    return [
        TextContent(type="text", text="look:"),
        ImageContent(type="image", data="aGVsbG8=", mime_type="image/png"),
        EmbeddedResource(type="resource", resource=text),
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stdio"]:
            server.run("stdio")
        case ["streamable-http", port]:
            server.run("streamable-http", port=int(port))
        case ["sse", port]:
            server.run("sse", port=int(port))
        case words:
            raise SystemExit(f"not understood: {words}")
