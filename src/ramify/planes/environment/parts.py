"""All declared state of a world together: one digest, one snapshot, one restore."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from ramify.contracts.drivers import StateDriver
from ramify.contracts.environment import WorldState
from ramify.contracts.errors import EnvironmentFailed

_ATTEMPTS = 5


class Parts:
    """The drivers of a world, used one at a time by whoever holds the turn."""

    def __init__(self, drivers: Sequence[StateDriver]) -> None:
        self.drivers = tuple(drivers)
        self._turn = asyncio.Lock()

    async def digest(self) -> str:
        """Equal exactly for equal state of all parts. Raises EnvironmentFailed."""
        async with self._turn:
            return await self._digest()

    async def snapshot(self, place: Path) -> str:
        """Write the state of all parts below `place`; returns its digest.

        What is written is one cut over all parts: nothing changed in any of them meanwhile. Raises:
        EnvironmentFailed (also where the world does not stand still long enough).
        """
        async with self._turn:
            for attempt in range(_ATTEMPTS):
                before = await self._digest()
                tried = place / str(attempt)
                await asyncio.to_thread(tried.mkdir, parents=True)  # also where there is no state
                for index, driver in enumerate(self.drivers):
                    folder = tried / str(index)
                    await asyncio.to_thread(folder.mkdir)
                    await driver.snapshot(folder)
                if before == await self._digest():
                    await asyncio.to_thread(tried.rename, place / "parts")
                    return before
                await asyncio.to_thread(shutil.rmtree, tried)
            raise EnvironmentFailed(
                f"the state changed during each of {_ATTEMPTS} attempts to take a snapshot; stop "
                "what writes to it, or branch through a checkpoint, which stops it"
            )

    async def restore(self, place: Path, digest: str) -> None:
        """Bring all parts back to what `snapshot` wrote, and make sure of it by the digest.

        Raises: EnvironmentFailed (no such snapshot, or the state is another one afterwards).
        """
        async with self._turn:
            folders = [place / "parts" / str(index) for index in range(len(self.drivers))]
            if missing := [folder for folder in folders if not folder.is_dir()]:
                raise EnvironmentFailed(
                    f"{place} is no snapshot of this world ({missing[0]} is not there)"
                )
            for driver, folder in zip(self.drivers, folders, strict=True):
                await driver.restore(folder)
            if await self._digest() != digest:
                raise EnvironmentFailed(
                    "the state is not what it was when the snapshot was taken, although it was "
                    "restored; something writes to it, or a driver misses a part of it"
                )

    async def mutate(self) -> tuple[str, ...]:
        """Change each part a little; says what was changed. Raises UnsupportedError."""
        async with self._turn:
            return tuple([f"{driver.name}: {await driver.mutate()}" for driver in self.drivers])

    async def describe(self) -> WorldState:
        """What all parts hold. Raises EnvironmentFailed."""
        async with self._turn:
            parts: dict[str, dict[str, str]] = {}
            for driver in self.drivers:
                parts.update(await driver.describe())
            return WorldState(parts)

    async def _digest(self) -> str:
        total = hashlib.blake2b(digest_size=32)
        for driver in self.drivers:
            total.update(f"{driver.name}\0{await driver.digest()}\0".encode())
        return total.hexdigest()
