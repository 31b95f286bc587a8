"""What the chat agent works with: the tools of the sandbox, and those of a task's MCP servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity
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


@dataclass(frozen=True, slots=True)
class Kit:
    """Tools by name, and what is injected into them."""

    settings: Settings
    tools: Mapping[str, Runnable]
    values: Mapping[str, object]

    def state(self) -> KitState:
        """A copy of where it stands."""
        return KitState(self.settings)

    async def aclose(self) -> None:
        """Nothing outlives a turn."""


@dataclass(frozen=True, slots=True)
class KitState:
    """A Kit as a value."""

    settings: Settings

    def fidelity(self, live: bool) -> Fidelity:
        """LIVE."""
        return Fidelity.LIVE

    async def restore(self, sandbox: Sandbox, ctx: Context) -> Kit:
        """The same tools in another sandbox."""
        return await open_kit(sandbox, ctx, self.settings)


async def open_kit(sandbox: Sandbox, ctx: Context, settings: Settings) -> Kit:
    """The tools of the sandbox."""
    box = Box(
        sandbox, agent_user(ctx), ctx.workdir, settings.bash_timeout_sec, settings.output_limit
    )
    return Kit(settings, sandbox_tools(), {"box": box})
