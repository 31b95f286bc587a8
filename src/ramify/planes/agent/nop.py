"""The agent that does nothing: what a task is worth untouched."""

from __future__ import annotations

from ramify.contracts.agent import AgentCapabilities, Checkpointable, StopReason
from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.planes.agent.session import Transcript, TurnSession, Unaided


class NopAgent:
    """Ends every turn at once. A sound task gives it the minimum reward."""

    name = "nop"

    def capabilities(self) -> AgentCapabilities:
        """It needs nothing."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session that touches nothing."""
        transcript = Transcript(ctx, role)
        return TurnSession(_Idler(transcript), transcript)


class _Idler:
    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript

    def begin(self, text: str, index: int) -> None:
        pass

    async def advance(self) -> None:
        self._transcript.ends(StopReason.END_TURN)

    def state(self) -> _IdlerState:
        return _IdlerState()

    async def aclose(self) -> None:
        pass


class _IdlerState(Unaided):
    __slots__ = ()

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Idler:
        return _Idler(transcript)
