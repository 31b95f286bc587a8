"""What takes care of one part of a world's state, whatever keeps it: a file, a database, a service.

`ramify.testing.conformance_state` holds a driver against this contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ramify.contracts.sandbox import Endpoint


class DriverWorld(Protocol):
    """What a driver may ask of its world."""

    async def base_url(self, service: str) -> str:
        """`http://host:port` of a declared service, as the engine reaches it.

        Raises: ConfigError (no such service, or it has no port), SandboxError.
        """
        ...

    async def endpoint(self, port: int) -> Endpoint:
        """A host address that reaches `port` on the sandbox's loopback. Raises SandboxError."""
        ...

    async def stop(self, service: str) -> None:
        """End a declared service (TERM, then KILL); its whole process tree is gone. Idempotent.

        Raises: UnsupportedError (the image's entrypoint started it, not we), SandboxError.
        """
        ...

    async def start(self, service: str) -> None:
        """Start a declared service again and wait until it is healthy. Raises EnvironmentFailed."""
        ...


class StateDriver(Protocol):
    """Takes care of one part of a world's state.

    All methods may be called while the world is in use: what they read is one consistent cut of
    this part, whoever writes meanwhile. Calls on one driver never overlap. Each raises
    EnvironmentFailed (names the part and what went wrong; nothing half done is left in the
    world where the message does not say so), SandboxError.
    """

    @property
    def name(self) -> str:
        """What it is called in reports, e.g. `sqlite /data/*.db`. Unique within a world."""
        ...

    async def snapshot(self, place: Path) -> None:
        """Write the state into `place`, an empty directory of the host. The world goes on."""
        ...

    async def restore(self, place: Path) -> None:
        """Bring the live world back to exactly what `snapshot` wrote into `place`.

        May be called any number of times, and in other sandboxes of the same world. `place` is not
        changed.
        """
        ...

    async def digest(self) -> str:
        """A short text that is equal exactly for equal state (hex of at least 128 bits)."""
        ...

    async def describe(self) -> dict[str, dict[str, str]]:
        """The state as parts of a `WorldState`: part → key → content or a digest of it.

        Bounded: at most about 100,000 entries a part; beyond that a part is `{"digest": ...}`.
        """
        ...

    async def mutate(self) -> str:
        """Change the state a little, so that a check can see whether `restore` undoes it.

        Returns: what was changed, for a person. Raises UnsupportedError where the driver can only
        do so with `mutate` in the manifest and there is none.
        """
        ...
