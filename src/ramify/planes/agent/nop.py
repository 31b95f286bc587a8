"""The agent that does nothing: what a task is worth untouched."""

from __future__ import annotations

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.planes.agent.session import Transcript, TurnSession


class NopAgent:
    """Ends every turn at once. A sound task gives it the minimum reward."""

    name = "nop"

    def capabilities(self) -> AgentCapabilities:
        """It needs nothing."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session that touches nothing."""
        return TurnSession(_end_turn, Transcript(ctx, role))


async def _end_turn(text: str, index: int) -> StopReason:
    return StopReason.END_TURN
