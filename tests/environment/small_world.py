"""A small world in a real sandbox, for tests."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify import compose
from ramify.contracts.config import ramify_home
from ramify.contracts.context import Context
from ramify.contracts.environment import Environment, ReadinessProbe
from ramify.contracts.sandbox import Sandbox, SandboxProvider, SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.environment.manifest import load_manifest
from ramify.planes.environment.options import WorldOptions
from ramify.planes.environment.state.make import make_driver
from ramify.planes.environment.world import ManifestEnvironment
from ramify.testing.context import make_context

SMALL = Path(__file__).parent / "small"


def small(place: Path, *changes: tuple[str, str], add: str = "") -> Path:
    """The small world's manifest, in a directory of its own, with changes to its text."""
    place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(SMALL, place, dirs_exist_ok=True)
    manifest = place / "manifest.toml"
    text = manifest.read_text()
    for old, new in changes:
        assert old in text, f"{old!r} is not in the manifest"
        text = text.replace(old, new)
    manifest.write_text(text + add)
    return manifest


def ask(url: str, body: bytes | None = None) -> Any:
    """What a service answers; the test's own client, past the environment."""
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=20) as response:
        return json.load(response)


def tell_to_crash(url: str) -> None:
    """Make a service end without an answer."""
    try:
        ask(f"{url}/crash", b"")
    except (OSError, urllib.error.URLError):
        return
    raise AssertionError("the service did not crash")


@dataclass(frozen=True, slots=True)
class Room:
    """Where worlds are opened."""

    provider: SandboxProvider
    spec: SandboxSpec
    place: Path

    def world(self, manifest: Path, **how: Any) -> ManifestEnvironment:
        """A world that is not provisioned."""
        keep = self.place / "keep"
        return ManifestEnvironment(
            load_manifest(manifest), WorldOptions(make_driver, ramify_home(), keep, **how)
        )

    @asynccontextmanager
    async def sandbox(self, task: Task | None = None) -> AsyncGenerator[tuple[Sandbox, Context]]:
        """A sandbox and a context."""
        image = await self.provider.prepare(self.spec)
        sandbox = await self.provider.create(self.spec, image)
        number = len(list(self.place.glob("artifacts-*")))
        artifacts = self.place / f"artifacts-{number}"
        artifacts.mkdir()
        try:
            yield (
                sandbox,
                make_context(
                    task or Task("worlds:one"),
                    sandbox,
                    artifacts=artifacts,
                    provider=self.provider,
                    image=image,
                ),
            )
        finally:
            await sandbox.teardown()

    @asynccontextmanager
    async def opened(
        self, manifest: Path, **how: Any
    ) -> AsyncGenerator[tuple[ManifestEnvironment, Sandbox, Context]]:
        """A world, provisioned and healthy."""
        async with self.sandbox() as (sandbox, ctx):
            world = self.world(manifest, **how)
            try:
                await world.provision(sandbox, ctx)
                await healthy(world, ctx)
                yield world, sandbox, ctx
            finally:
                await world.teardown()


async def healthy(world: Environment, ctx: Context) -> ReadinessProbe:
    """Wait until a world is healthy."""
    while not (probe := await world.readiness()).healthy:
        await ctx.clock.sleep(probe.retry_in_sec)
    return probe


Asked = Callable[[str], Awaitable[Any]]

HOST_ROOT = SandboxSpec(host_root=True, workdir="/app")
SLIM = SandboxSpec(image="python:3.12-slim", workdir="/app")


def provider_of(spec: SandboxSpec) -> SandboxProvider:
    """The provider that a spec is for."""
    return compose.sandbox_provider("local" if spec.host_root else "docker")
