"""The tools of MCP servers, as the chat agent's policy sees and calls them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from ramify.contracts.messages import ToolSpec
from ramify.planes.agent.mcp import Answered, McpClient
from ramify.planes.agent.mcp_wire import JSON, McpError, as_object
from ramify.planes.agent.tools import ToolError, clipped

_LONGEST_NAME = 64
"""Characters that endpoints allow in the name of a tool."""
_DESCRIPTION = 4000


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """A tool of a server. Implements `tools.Runnable`.

    Attributes:
        spec: as the policy sees it; the schema is the server's own.
        client, name: whose tool it is, and what it is called there.
        output_limit: characters of an answer.
    """

    spec: ToolSpec
    client: McpClient
    name: str
    output_limit: int

    @property
    def safe(self) -> bool:
        """A server is asked one thing at a time."""
        return False

    async def run(self, arguments: str, values: Mapping[str, Any]) -> str:
        """Call it. Raises ToolError."""
        try:
            given: Any = msgspec.json.decode(arguments.strip() or "{}")
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ToolError(f"invalid arguments for {self.spec.name}: {error}") from None
        if not isinstance(given, dict):
            raise ToolError(f"invalid arguments for {self.spec.name}: not an object")
        server = self.client.server.name
        try:
            answered = await self.client.call(self.name, cast("JSON", given))
        except McpError as failure:
            raise ToolError(f"the MCP server {server}: {failure}") from None
        text = clipped(_text(answered), self.output_limit)
        if answered.is_error:
            raise ToolError(text or "it failed without a word")
        return text or "[no output]"


def remote_tools(
    clients: Sequence[McpClient], taken: Collection[str], output_limit: int
) -> dict[str, RemoteTool]:
    """Name → tool, of all servers; names are `server__tool`, and none of `taken`.

    A name that is too long, or stands already for another tool, ends in a digest of server and
    tool, so that it is the same in every run.
    """
    tools: dict[str, RemoteTool] = {}
    for client in clients:
        for offered in client.offered:
            name = _unique(client.server.name, offered.name, {*taken, *tools})
            spec = ToolSpec(name, clipped(offered.description, _DESCRIPTION), offered.schema)
            tools[name] = RemoteTool(spec, client, offered.name, output_limit)
    return tools


def _unique(server: str, tool: str, taken: Collection[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")
    if len(name) <= _LONGEST_NAME and name not in taken:
        return name
    digest = hashlib.sha256(f"{server}\0{tool}".encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}_{digest}"


def _text(answered: Answered) -> str:
    """An answer as text: what is no text is named, with its type and size."""
    parts = [_block(block) for block in answered.content]
    if not parts and answered.structured is not None:
        parts.append(msgspec.json.encode(answered.structured).decode())
    return "\n".join(parts)


def _block(block: Any) -> str:
    fields = as_object(block)
    match fields.get("type"):
        case "text":
            return str(fields.get("text", ""))
        case "image" | "audio" as kind:
            return _unshown(kind, fields.get("mimeType"), fields.get("data"))
        case "resource":
            resource = as_object(fields.get("resource"))
            where = f"resource {resource.get('uri')}"
            if isinstance(text := resource.get("text"), str):
                return f"[{where}]\n{text}"
            return _unshown(where, resource.get("mimeType"), resource.get("blob"))
        case "resource_link":
            return f"[resource {fields.get('uri')}: {fields.get('name')}]"
        case kind:
            return f"[content of an unknown type: {str(kind)[:50]}]"


def _unshown(what: str, mime: object, data: object) -> str:
    size = len(data) * 3 // 4 if isinstance(data, str) else 0
    return f"[{what[:500]}, {str(mime)[:100]}, about {size} bytes: not shown]"
