"""Directories that every task may rely on, whatever its image did to them."""

from __future__ import annotations

import msgspec
import pytest
from small_world import Room

from ramify.contracts.frozen import Freezable
from ramify.planes.environment.package import LOG_DIRS, provision_package


@pytest.mark.namespaces
async def test_an_image_that_gives_the_logs_to_a_user(room: Room) -> None:
    """Root of a hardened sandbox has no power over files of others; verifiers start there."""
    async with room.sandbox() as (sandbox, _):
        made = await sandbox.exec("mkdir -p /logs/agent && chown 1000:1000 /logs/agent")
        assert made.ok, made.stderr
        assert isinstance(sandbox, Freezable)
        image = await sandbox.freeze()
    hardened = msgspec.structs.replace(room.spec, lockdown=True)
    try:
        async with room.sandbox() as (_, ctx):
            fresh = await room.provider.create(hardened, image)
            try:
                await provision_package(fresh, ctx)
                modes = await fresh.exec(
                    f"cd /logs && stat -c %a {' '.join(LOG_DIRS)} && touch agent/written"
                )
                assert (modes.stdout, modes.ok) == (b"777\n" * len(LOG_DIRS), True)
            finally:
                await fresh.teardown()
    finally:
        await room.provider.discard(image)
