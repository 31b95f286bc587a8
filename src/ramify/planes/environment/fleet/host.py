"""The fleets of one engine: started when the first rollout needs one, ended with the engine."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.sandbox import BuildSpec, Sandbox, SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.environment.fleet.joining import Fleet
from ramify.planes.environment.fleet.make import make_fleet
from ramify.planes.environment.manifest import Manifest
from ramify.planes.environment.placing import upload_files
from ramify.planes.environment.records import TaskSelection
from ramify.planes.environment.site import Site

_WORKDIR = "/app"
_MOST = 512
"""How many tasks may be members at once; a branch's copies count."""


@dataclass(frozen=True, slots=True)
class StandingFleet:
    """A fleet whose services are healthy.

    Attributes:
        fleet: who joins it.
        site: where its services are.
    """

    fleet: Fleet
    site: Site

    @property
    def broken(self) -> bool:
        """Whether one of its services has ended."""
        try:
            self.site.check()
        except EnvironmentFailed:
            return True
        return False


class Fleets:
    """Makes each manifest's fleet once, for all rollouts of an engine, and ends them.

    A fleet has a sandbox of its own, which ends with the engine however that dies, and with it
    every tenant's place; leases are on disk below `keep`, and those of an engine that died are
    ended before anybody joins.

    Args:
        keep: a directory of the host that one engine at a time uses.
    """

    def __init__(self, keep: Path) -> None:
        self._keep = keep
        self._standing: dict[Path, tuple[StandingFleet, AsyncExitStack]] = {}
        self._turn = asyncio.Lock()

    async def of(self, manifest: Manifest, ctx: Context, env: Mapping[str, str]) -> StandingFleet:
        """The fleet of a manifest, started for the first that asks, in whose kind of sandbox.

        One with a service that has ended is ended, and another started in its place. `env`:
        variables of the host that the services get. Raises: EnvironmentFailed (a service does not
        get healthy), ConfigError, UnsupportedError, SandboxError.
        """
        async with self._turn:
            found = self._standing.get(manifest.path)
            if found is not None and not found[0].broken:
                return found[0]
            await self._end(manifest.path)
            async with AsyncExitStack() as undo:
                fleet = await self._start(manifest, ctx, env, undo)
                self._standing[manifest.path] = fleet, undo.pop_all()
            return fleet

    async def aclose(self) -> None:
        """End all fleets. Idempotent."""
        async with self._turn, asyncio.TaskGroup() as group:
            for path in list(self._standing):
                group.create_task(self._end(path))

    async def _end(self, path: Path) -> None:
        found = self._standing.pop(path, None)
        if found is not None:
            await uninterrupted(found[1].aclose())

    async def _start(
        self, manifest: Manifest, ctx: Context, env: Mapping[str, str], undo: AsyncExitStack
    ) -> StandingFleet:
        sandboxes = ctx.sandboxes
        if sandboxes is None or ctx.sandbox is None:
            raise EnvironmentFailed("a fleet was asked for without a provider of sandboxes")
        name = manifest.environment.name
        place = self._keep / f"fleet-{name}-{_short(manifest.path)}"
        lock = await asyncio.to_thread(_claim, place, name)
        undo.callback(os.close, lock)
        spec = _fleet_spec(manifest, ctx.sandbox, ctx)
        image = await sandboxes.prepare(spec)
        sandbox = await sandboxes.create(spec, image)
        undo.push_async_callback(sandbox.teardown)
        own = _own_manifest(manifest, spec)
        about = replace(
            ctx,
            task=Task(f"fleets:{name}"),
            rollout_id="",
            artifacts=place,
            sandbox=sandbox,
            image=image,
        )
        await upload_files(own, sandbox, about, None)
        site = Site(own, sandbox, about, own.services(), env)
        undo.push_async_callback(site.services.aclose)
        await site.start_all()
        while any(answer.wrong for answer in await site.ask(site.probes)):
            await ctx.clock.sleep(site.pause())
        await site.services.owners()
        ports = [service.port for service in own.environment.services if service.port]
        book = place / "accounts.json"
        fleet = make_fleet(manifest.state, ports, sandbox, book, ctx.clock, _MOST)
        await fleet.take_over()
        return StandingFleet(fleet, site)


def _own_manifest(manifest: Manifest, spec: SandboxSpec) -> Manifest:
    """The manifest as the fleet's own sandbox has it: for no task in particular."""
    environment = msgspec.structs.replace(
        manifest.environment, task_selection=TaskSelection(), workdir=spec.workdir
    )
    return replace(manifest, environment=environment)


def _fleet_spec(manifest: Manifest, sandbox: Sandbox, ctx: Context) -> SandboxSpec:
    """What the fleet's sandbox is made from: the manifest's root, else the task's."""
    environment, task = manifest.environment, sandbox.spec
    workdir = environment.workdir or _WORKDIR
    image = environment.image or environment.base_image
    package = ctx.task.package
    image_free = task.host_root and package is not None and package.host_root_ok
    if (image is None and manifest.build is None) or image_free:
        if task.compose is not None:
            raise UnsupportedError(
                f"{manifest.path}: the task is a Compose project, of which a shared fleet cannot "
                "be made; give the manifest an `image` or `build`"
            )
        return SandboxSpec(
            image=task.image, build=task.build, host_root=task.host_root, workdir=workdir
        )
    build = BuildSpec(context=str(manifest.build)) if manifest.build is not None else None
    return SandboxSpec(image=image, build=build, workdir=workdir)


def _short(path: Path) -> str:
    return hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()


def _claim(place: Path, name: str) -> int:
    """Keep other engines away while the returned descriptor is open. Raises EnvironmentFailed."""
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise EnvironmentFailed(
            f"another engine uses the fleet of {name!r} in {place}; wait until its run has ended"
        ) from None
    return lock
