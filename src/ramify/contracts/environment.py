"""The world an agent acts in: services and their state.

A ladder: `Environment` can be provisioned, gated, queried and torn down; `Revertible` adds exact
roll-back, which is what a Branch needs.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox


class ReadinessProbe(msgspec.Struct, frozen=True):
    """Whether the world is healthy.

    `answered_at` is the clock's monotonic time of the answer; `retry_in_sec` is when to ask again.
    """

    healthy: bool
    answered_at: float
    detail: str = ""
    retry_in_sec: float = 0.2


class StateSnapshot(msgspec.Struct, frozen=True):
    """The state of a world as a value: id, parent, size and content digest."""

    id: str
    digest: str
    parent: str | None = None
    size_bytes: int = -1


class Environment(Protocol):
    """The world's lifecycle. Readiness and teardown are the framework's burden, not a task's."""

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        """Put files in place and start services. Raises EnvironmentFailed, SandboxError.

        Called again before each step of a multi-step task, with `ctx.task` at that step.
        """
        ...

    async def readiness(self) -> ReadinessProbe:
        """Ask once whether the world is healthy. Raises EnvironmentFailed when it gives up."""
        ...

    async def query(self) -> dict[str, Any]:
        """The state, for a verifier. JSON-serialisable. Raises EnvironmentFailed."""
        ...

    async def teardown(self) -> None:
        """Stop services and free what lives outside the sandbox. Idempotent."""
        ...


@runtime_checkable
class Revertible(Environment, Protocol):
    """A world that can be put back exactly."""

    async def snapshot(self) -> StateSnapshot:
        """Capture the state as one consistent cut. Raises EnvironmentFailed, UnsupportedError."""
        ...

    async def restore(self, snapshot: StateSnapshot) -> None:
        """Return to exactly that state (digest-checked). Raises EnvironmentFailed."""
        ...

    async def reset(self) -> None:
        """Return to the state right after `provision`, exactly."""
        ...
