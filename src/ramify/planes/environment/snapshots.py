"""The snapshots that one world took of itself, kept on this host until its teardown."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.environment import StateSnapshot
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.parts import Parts


class Snapshots:
    """Takes them and brings them back.

    Attributes:
        first: that of the state in which the world was healthy first, where it was kept.
    """

    def __init__(self) -> None:
        self.first: StateSnapshot | None = None
        self._scratch = Scratch()
        self._taken: dict[str, StateSnapshot] = {}

    async def fresh_place(self) -> Path:
        """An empty directory, gone with the world. Raises StoreError."""
        return Path(await asyncio.to_thread(self._make))

    async def take(self, parts: Parts) -> StateSnapshot:
        """Capture all parts as one cut. Raises EnvironmentFailed, StoreError."""
        place = await self.fresh_place()
        digest = await parts.snapshot(place)
        size = await asyncio.to_thread(_size, place)
        found = StateSnapshot(place.name, digest, next(reversed(self._taken), None), size)
        self._taken[found.id] = found
        return found

    def check(self, snapshot: StateSnapshot) -> None:
        """Raises: EnvironmentFailed (it is none of these)."""
        if self._taken.get(snapshot.id) != snapshot:
            raise EnvironmentFailed(
                f"{snapshot.id!r} is no snapshot of this world; restore those that its own "
                "`snapshot` returned, before its teardown"
            )

    async def restore(self, snapshot: StateSnapshot, parts: Parts) -> None:
        """Bring all parts back to one that passes `check`. Raises EnvironmentFailed."""
        self.check(snapshot)
        place = await asyncio.to_thread(self._scratch.make)
        await parts.restore(place / snapshot.id, snapshot.digest)

    def reset_to(self) -> StateSnapshot:
        """The first. Raises UnsupportedError (it was not kept)."""
        if self.first is None:
            raise UnsupportedError(
                "this world was made without `revertible`, so its first state was not kept"
            )
        return self.first

    async def remove(self) -> None:
        """Remove all of them, also when cancelled. Idempotent. Raises OSError."""
        self._taken.clear()
        await uninterrupted(asyncio.to_thread(self._scratch.remove))

    def _make(self) -> str:
        return tempfile.mkdtemp(prefix="state-", dir=self._scratch.make())


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
