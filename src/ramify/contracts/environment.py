"""The world an agent acts in: services and their state.

A ladder: `Environment` can be provisioned, gated, queried and torn down; `Revertible` adds exact
roll-back in place; `Forkable` comes through a checkpoint of its sandbox, which is what a Branch
needs.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class WorldState(msgspec.Struct, frozen=True):
    """What a world holds, for comparing two nodes of a tree.

    Attributes:
        parts: part (`sqlite /data/mail.db`, `files /app`, `services`) → key (table and primary
            key, path, service name) → content or a digest of it, as text. Equal worlds are equal.
        left_out: entries beyond a bound, by part; such a part is compared by its digest.
    """

    parts: dict[str, dict[str, str]]
    left_out: dict[str, int] = {}


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


@runtime_checkable
class Forkable(Environment, Protocol):
    """A world inside a sandbox that goes on in several copies of that sandbox."""

    async def quiesce(self, live: bool) -> Mapping[str, str]:
        """Make ready for a checkpoint; `live` says that processes are captured with the files.

        Services that are declared to restart are stopped, hooks write down what would be lost.

        Returns: service → how it comes through: `live`, `restart` or `hook`.

        Raises: UnsupportedError (names each service whose state in memory would be lost; nothing
        was changed), EnvironmentFailed.
        """
        ...

    async def resume(self) -> None:
        """Undo `quiesce` in the same sandbox, after a checkpoint that was refused."""
        ...

    async def fork(self, sandbox: Sandbox, ctx: Context) -> Forkable:
        """The same world in a sandbox made from the checkpoint that followed `quiesce`.

        Starts what was stopped and gives hooks their state back. The new world's `readiness` says
        when it is healthy; its `teardown` is its own. May be called many times at once.

        Raises: EnvironmentFailed, SandboxError.
        """
        ...

    async def describe(self) -> WorldState:
        """What the world holds now, without changing it. Raises EnvironmentFailed."""
        ...
