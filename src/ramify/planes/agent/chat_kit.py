"""What the chat agent works with: the tools of the sandbox, and those of a task's MCP servers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.mcp import McpClient, McpState, Patience, connect_mcp
from ramify.planes.agent.mcp_tools import remote_tools
from ramify.planes.agent.sandbox_tools import Box, sandbox_tools
from ramify.planes.agent.session import agent_user
from ramify.planes.agent.tools import Runnable


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of tools; see ChatAgent."""

    bash_timeout_sec: float
    output_limit: int
    mcp_timeout_sec: float
    mcp_start_sec: float

    @property
    def patience(self) -> Patience:
        """How long MCP servers are waited for."""
        return Patience(self.mcp_start_sec, self.mcp_timeout_sec)


@dataclass(frozen=True, slots=True)
class Kit:
    """Tools by name, what is injected into them, and the connections behind them."""

    settings: Settings
    tools: Mapping[str, Runnable]
    values: Mapping[str, object]
    servers: tuple[McpClient, ...]

    def state(self) -> KitState:
        """A copy of where it stands."""
        return KitState(self.settings, tuple(server.state() for server in self.servers))

    async def aclose(self) -> None:
        """Leave every MCP server."""
        await _leave(self.servers)


@dataclass(frozen=True, slots=True)
class KitState:
    """A Kit as a value."""

    settings: Settings
    servers: tuple[McpState, ...]

    def fidelity(self, live: bool) -> Fidelity:
        """LIVE, unless what an MCP server may hold in memory is lost: then RESUMED."""
        kept = all(server.survives(live) for server in self.servers)
        return Fidelity.LIVE if kept else Fidelity.RESUMED

    async def restore(self, sandbox: Sandbox, ctx: Context) -> Kit:
        """The same tools in another sandbox. Raises EnvironmentFailed, SandboxLostError."""
        patience = self.settings.patience
        made = (state.restore(sandbox, ctx, patience) for state in self.servers)
        return _kit(sandbox, ctx, self.settings, await _each(made))


async def open_kit(sandbox: Sandbox, ctx: Context, settings: Settings) -> Kit:
    """Tools, with connections to the MCP servers of the task, in their order.

    Raises EnvironmentFailed when one of them cannot be used, SandboxError.
    """
    package = ctx.task.package
    servers = package.mcp_servers if package else ()
    made = (connect_mcp(server, sandbox, ctx, settings.patience) for server in servers)
    return _kit(sandbox, ctx, settings, await _each(made))


async def _each(connecting: Iterable[Coroutine[None, None, McpClient]]) -> list[McpClient]:
    """All clients, one after the other; where one fails, the others are left again."""
    clients: list[McpClient] = []
    try:
        for one in connecting:
            client = await one
            clients.append(client)
    except BaseException:
        await _leave(clients)
        raise
    return clients


def _kit(sandbox: Sandbox, ctx: Context, settings: Settings, servers: list[McpClient]) -> Kit:
    limit = settings.output_limit
    box = Box(sandbox, agent_user(ctx), ctx.workdir, settings.bash_timeout_sec, limit)
    own = sandbox_tools()
    tools = {**own, **remote_tools(servers, own, limit)}
    return Kit(settings, tools, {"box": box}, tuple(servers))


async def _leave(servers: Sequence[McpClient]) -> None:
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.aclose())
