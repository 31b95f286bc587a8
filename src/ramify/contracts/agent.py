"""Who acts: an Agent, and a live Session with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity, Step


class StopReason(StrEnum):
    """Why a prompt's turn ended."""

    END_TURN = "end_turn"
    """The agent is done with this prompt."""
    LIMIT = "limit"
    """A budget bound it."""
    REFUSED = "refused"
    """The agent declined."""
    CANCELLED = "cancelled"
    """`Session.cancel` was called."""


class AgentCapabilities(msgspec.Struct, frozen=True):
    """What an agent can do.

    `needs_model`: it cannot run without a policy. `multi_prompt`: a second prompt continues the
    same live session. `asks_user`: it can ask with enumerated options. `interactive`: it wants a
    person or a script at a terminal. `mcp`: it serves the MCP servers of a task, or acts without
    any (oracle). `skills`: the same for the skills of a task.
    """

    needs_model: bool = False
    multi_prompt: bool = False
    asks_user: bool = False
    interactive: bool = False
    mcp: bool = False
    skills: bool = False


class AskUser(msgspec.Struct, frozen=True):
    """A question with enumerated options: the branchable interaction primitive."""

    question: str
    options: tuple[str, ...]


AskUserHandler = Callable[[AskUser], Awaitable[int]]
"""Answers a question with the index of an option."""


class Session(Protocol):
    """A live agent session. One prompt at a time; close it with `aclose`."""

    async def prompt(self, text: str) -> StopReason:
        """Give the instruction, or a follow-up in the same session, and wait for the turn's end.

        Steps are recorded as they happen. Raises: AgentError (the agent failed),
        SandboxLostError.
        """
        ...

    async def cancel(self) -> None:
        """End the running turn; `prompt` returns CANCELLED. No effect when idle."""
        ...

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """Set who answers the agent's questions. Without a handler they are refused."""
        ...

    @property
    def steps(self) -> Sequence[Step]:
        """Steps of this session so far: its contribution to the tree."""
        ...

    async def aclose(self) -> None:
        """End the session and every process of it. Idempotent."""
        ...


class SessionState(Protocol):
    """A session as it stood at one moment, as a value that can be restored any number of times."""

    def fidelity(self, live: bool) -> Fidelity:
        """What `restore` gives in a sandbox with (`live`) or without the processes of then.

        FRESH means that it cannot be restored there: connect again instead.
        """
        ...

    async def restore(self, sandbox: Sandbox, ctx: Context) -> Checkpointable:
        """The session in a sandbox that was restored from a checkpoint of its own.

        It records through `ctx`, and does nothing before `proceed` or `prompt`. Raises:
        UnsupportedError (`fidelity` is FRESH there), AgentError, SandboxLostError.
        """
        ...


@runtime_checkable
class Checkpointable(Session, Protocol):
    """A session that can go on in several copies of its sandbox."""

    def checkpoint(self) -> SessionState:
        """The session as it stands between two steps.

        Call it while the session is idle, or while its turn waits in `Recorder.step`. Changes
        nothing; what the session does afterwards does not change the value.
        """
        ...

    async def proceed(self) -> StopReason:
        """Go on with the turn that was running at the checkpoint; END_TURN at once if none was.

        Raises what `prompt` raises.
        """
        ...


class Agent(Protocol):
    """Who acts. Not intelligent itself: it extracts the most from a policy."""

    @property
    def name(self) -> str:
        """The name it is chosen and recorded by."""
        ...

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session in `sandbox`. Raises AgentError, UnsupportedError, SandboxLostError."""
        ...

    def capabilities(self) -> AgentCapabilities:
        """What it can do."""
        ...
