"""A world of a shared fleet, PostgreSQL and Redis, for tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from small_world import healthy
from state_worlds import DOCKERFILE

from ramify import compose
from ramify.contracts.config import ramify_home
from ramify.contracts.context import Context
from ramify.contracts.sandbox import BuildSpec, Sandbox, SandboxImage, SandboxProvider, SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.environment.fleet.host import Fleets
from ramify.planes.environment.fleet.world import FleetEnvironment
from ramify.planes.environment.opening import open_world
from ramify.testing.context import make_context

SHARED = Path(__file__).parent / "shared"
BASE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")


def shared(place: Path, *changes: tuple[str, str]) -> Path:
    """The shared world's manifest, in a directory of its own, with changes to its text."""
    shutil.copytree(SHARED, place)
    (place / "image").mkdir()
    (place / "image" / "Dockerfile").write_text(DOCKERFILE.format(base=BASE))
    manifest = place / "manifest.toml"
    text = manifest.read_text()
    for old, new in changes:
        assert old in text, f"{old!r} is not in the manifest"
        text = text.replace(old, new)
    manifest.write_text(text)
    return manifest


@dataclass(frozen=True, slots=True)
class Programs:
    """What runs in the sandbox of a tenant."""

    sandbox: Sandbox

    async def sh(self, line: str) -> tuple[int, str]:
        """Run a line with the tenant's variables."""
        result = await self.sandbox.exec(f'. "$FLEET_ENV"; {line}')
        return result.exit_code, (result.stdout + result.stderr).decode(errors="replace")

    async def add(self, text: str) -> None:
        """Add a row and a list's member."""
        line = f"psql -X -q -c \"INSERT INTO mail (subject) VALUES ('{text}')\" && "
        line += f'redis-cli --no-auth-warning -u "$REDIS_URL" RPUSH "${{REDIS_PREFIX}}l" {text}'
        code, said = await self.sh(f"{line} >/dev/null")
        assert code == 0, said

    async def seen(self) -> list[str]:
        """All rows and all members of the list, as the tenant's own programs see them."""
        code, said = await self.sh(
            'psql -X -At -c "SELECT subject FROM mail ORDER BY id"; echo; '
            'redis-cli --no-auth-warning -u "$REDIS_URL" LRANGE "${REDIS_PREFIX}l" 0 -1; '
            'redis-cli --no-auth-warning -u "$REDIS_URL" GET "${REDIS_PREFIX}greeting"'
        )
        assert code == 0, said
        return said.split()

    async def variables(self) -> dict[str, str]:
        """What the sandbox was told."""
        _, said = await self.sh('cat "$FLEET_ENV"')
        pairs = [line.removeprefix("export ").partition("=") for line in said.splitlines()]
        return {name: value.strip("'") for name, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Tenancy(Programs):
    """A rollout in a shared fleet."""

    world: FleetEnvironment
    ctx: Context


@dataclass(slots=True)
class Estate:
    """Where rollouts of one engine are made."""

    provider: SandboxProvider
    manifest: Path
    place: Path
    fleets: Fleets
    spec: SandboxSpec
    tenants: list[Tenancy] = field(default_factory=list[Tenancy])

    @property
    def book(self) -> Path:
        """Where leases stand."""
        (found,) = self.place.glob("keep/fleet-*/accounts.json")
        return found

    async def sandbox(self, image: SandboxImage | None = None) -> tuple[Sandbox, Context]:
        """A sandbox, and its context."""
        pristine = await self.provider.prepare(self.spec)
        sandbox = await self.provider.create(self.spec, image or pristine)
        artifacts = self.place / f"artifacts-{len(list(self.place.glob('artifacts-*')))}"
        artifacts.mkdir()
        ctx = make_context(
            Task("worlds:one"), sandbox, artifacts=artifacts, provider=self.provider, image=pristine
        )
        return sandbox, ctx

    async def world(self) -> FleetEnvironment:
        """A world that is not provisioned."""
        opened = open_world(
            self.manifest,
            home=ramify_home(),
            keep=self.place / "keep",
            fleets=self.fleets,
            revertible=True,
        )
        assert isinstance(opened, FleetEnvironment)
        return opened

    async def join(self) -> Tenancy:
        """A rollout whose world is healthy."""
        sandbox, ctx = await self.sandbox()
        tenancy = Tenancy(sandbox, await self.world(), ctx)
        self.tenants.append(tenancy)
        await tenancy.world.provision(sandbox, ctx)
        await healthy(tenancy.world, ctx)
        return tenancy

    async def fork(self, parent: Tenancy, image: SandboxImage) -> Tenancy:
        """A child of a branch."""
        sandbox, ctx = await self.sandbox(image)
        ctx = replace(ctx, rollout_id=parent.ctx.rollout_id)
        child = Tenancy(sandbox, await parent.world.fork(sandbox, ctx), ctx)
        self.tenants.append(child)
        await healthy(child.world, ctx)
        return child


@asynccontextmanager
async def estate_on(provider_name: str, place: Path) -> AsyncGenerator[Estate]:
    """An engine's fleets, with what was made in them; all is gone at the end."""
    manifest = shared(place / "shared")
    provider = compose.sandbox_provider(provider_name)
    spec = SandboxSpec(
        build=BuildSpec(str(manifest.parent / "image")),
        workdir="/app",
        env={"FLEET_ENV": "/run/fleet.env"},
    )
    estate = Estate(provider, manifest, place, Fleets(place / "keep"), spec)
    try:
        yield estate
    finally:
        for tenancy in reversed(estate.tenants):
            await tenancy.world.teardown()
            await tenancy.sandbox.teardown()
        await estate.fleets.aclose()
        await provider.aclose()
