"""Sandboxes as Docker containers, over the Engine API."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import ramify.planes.sandbox.docker.mounted as mounted
from ramify.contracts.config import ramify_home
from ramify.contracts.errors import (
    ConfigError,
    RamifyError,
    SandboxError,
    SandboxStartError,
    UnsupportedError,
)
from ramify.contracts.sandbox import (
    Capabilities,
    NetworkMode,
    ProbeReport,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.docker.client import ApiError, Daemon, EngineClient
from ramify.planes.sandbox.docker.images import PROVIDER, Images
from ramify.planes.sandbox.docker.launch import Plan, launch, remove_container
from ramify.planes.sandbox.docker.networks import check_policy, leave_bridge
from ramify.planes.sandbox.docker.owners import Owner
from ramify.planes.sandbox.docker.projects import Projects
from ramify.planes.sandbox.docker.runtime import Runtime
from ramify.planes.sandbox.docker.sandbox import DockerSandbox, Ties
from ramify.planes.sandbox.docker.sweep import sweep
from ramify.planes.sandbox.docker.watchdog import Watchdog
from ramify.planes.sandbox.docker.world import World

_CLOSE_SEC = 120.0
_LOG = logging.getLogger("ramify.sandbox.docker")
_T = TypeVar("_T")


class _Session:
    """What a provider has once it is connected."""

    def __init__(self, client: EngineClient, daemon: Daemon, home: Path) -> None:
        self.client, self.daemon = client, daemon
        self.owner = Owner(home)
        self.watchdog = Watchdog(client.address, self.owner.id)
        self.images = Images(client, self.owner.labels)
        self.runtime = Runtime(client, self.owner.labels)
        self.projects = Projects(client, self.images, self.runtime, self.owner.labels, daemon.arch)


class DockerProvider:
    """Makes a container per sandbox, with a supervisor of ours as its main process.

    A container ends within two seconds of its engine, however that ends: the supervisor's input
    is our connection. Nothing is done before the first call. `home` holds the lock that tells
    other engines of it that this one lives (default: `$RAMIFY_HOME`, else `~/.cache/ramify`).
    """

    def __init__(self, home: Path | None = None) -> None:
        self._home = home or ramify_home()
        self._client = EngineClient()
        self._session: _Session | None = None
        self._capabilities: Capabilities | None = None
        self._lock = asyncio.Lock()
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self._removals: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._closed = False

    @property
    def name(self) -> str:
        """`docker`."""
        return PROVIDER

    async def probe(self) -> ProbeReport:
        """Whether there is a daemon that can be used. Makes nothing."""
        try:
            daemon = await self._client.connect()
        except RamifyError as error:
            return ProbeReport(False, "unavailable", str(error))  # it says what to do
        self._capabilities = _capabilities(daemon, self._client.address)
        detail = f"Docker {daemon.version} (API {daemon.api}) at {self._client.address}"
        if daemon.os != "linux":
            return ProbeReport(False, daemon.os, detail, "use a daemon that runs Linux containers")
        return ProbeReport(True, "engine", detail)

    def capabilities(self) -> Capabilities:
        """What its sandboxes can do here. Raises: ConfigError before `probe` or `prepare`."""
        if self._capabilities is None:
            raise ConfigError("call probe() before capabilities()")
        return self._capabilities

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The pristine image of a spec: found, pulled, or built once per content.

        Of a Compose project: that of the agent's service, once those of all services are there.
        """
        _check_source(spec)
        _check_live(spec)
        return await self._pristine(await self._connect(), spec)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        """A new container on `image` (default: the pristine one).

        Of a Compose project with a new world of its services, or, on an image that was frozen in
        one, in that world, whose services went on meanwhile.

        Raises: UnsupportedError, ConfigError, SandboxStartError, EnvironmentFailed (a service
        beside it did not start, or was not healthy in time).
        """
        session = await self._connect()
        self._check_demands(spec)
        if image is None:
            _check_source(spec)
            image = await self._pristine(session, spec)
        elif image.provider != PROVIDER:
            raise UnsupportedError(f"the image is of the provider {image.provider!r}, not docker")
        volume, command = await session.runtime.ensure(image.id)
        plan = Plan(
            name=f"ramify-{session.owner.id}-{secrets.token_hex(6)}",
            spec=_within(spec, session.daemon),
            image=image,
            volume=volume,
            command=command,
            labels={**spec.labels, **session.owner.labels},
        )
        if spec.compose is not None:
            task = self._start(self._launch_beside(session, plan))
        else:
            task = self._start(self._launch(session, plan))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if spec.compose is not None:
                task.cancel()  # it may wait for long, and cleans up after itself
            await asyncio.wait([self._start(self._undo(session, plan, task))])
            raise

    async def discard(self, image: SandboxImage) -> None:
        """Free a frozen image; waits for containers on it that are being removed. Idempotent."""
        if image.pristine:
            return
        session = await self._connect()
        pending = [task for used, task in self._removals.values() if used == image.id]
        if pending:
            await asyncio.wait(pending)
        await session.projects.discard(image)
        await session.images.discard(image)

    async def sweep(self) -> int:
        """Remove what engines of this home that died on this machine left on the daemon."""
        await self._connect()
        return await sweep(self._client, self._home)

    async def aclose(self) -> None:
        """Tear down every sandbox, wait until all is removed, disconnect. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(_CLOSE_SEC):
                while self._sandboxes or self._work:
                    for sandbox in list(self._sandboxes.values()):
                        await sandbox.teardown()
                    if self._work:
                        await asyncio.wait(self._work)
                if self._session is not None:
                    await self._session.projects.aclose()
                    await self._session.images.aclose()
                    await self._session.watchdog.aclose()
                    self._session.owner.close()
        finally:
            await self._client.aclose()

    async def _connect(self) -> _Session:
        if self._closed:
            raise ConfigError("the docker provider was closed")
        async with self._lock:
            if self._session is None:
                daemon = await self._client.connect()
                self._capabilities = _capabilities(daemon, self._client.address)
                self._session = await asyncio.to_thread(_Session, self._client, daemon, self._home)
            return self._session

    async def _pristine(self, session: _Session, spec: SandboxSpec) -> SandboxImage:
        if spec.compose is not None:
            return await session.projects.prepare(spec.compose)
        return await session.images.prepare(spec)

    async def _launch_beside(self, session: _Session, plan: Plan) -> DockerSandbox:
        """Launch the agent's container among the services of its project."""
        world = await session.projects.join(plan.spec, plan.image, plan.name)
        try:
            if plan.image.pristine:
                await world.open()
            seated = dataclasses.replace(plan, seat=world.seat())
            if not plan.image.pristine:
                return await self._launch(session, seated, world)
            return await world.up(lambda: self._launch(session, seated, world))
        except BaseException:
            await asyncio.wait([self._start(self._abandon(session, plan, world))])
            raise

    async def _abandon(self, session: _Session, plan: Plan, world: World) -> None:
        """A project did not come up: end what there is of it."""
        await world.settled()
        if sandbox := self._sandboxes.get(plan.name):
            await sandbox.teardown()  # which leaves the world, once it is removed
        elif plan.name not in self._removals:
            await self._removed(session, plan, world)

    async def _launch(
        self, session: _Session, plan: Plan, world: World | None = None
    ) -> DockerSandbox:
        def lost(_reason: str) -> None:
            self._remove(session, plan, world)

        def ended() -> asyncio.Task[None]:
            self._sandboxes.pop(plan.name, None)
            return self._remove(session, plan, world)

        async def commit() -> SandboxImage:
            frozen = await session.images.freeze(plan.name, plan.name, plan.image)
            if world is not None:
                session.projects.keep(world, frozen)
            return frozen

        try:
            if plan.spec.mounts:
                await _open_overlays(session.client, plan)
            link = await launch(session.client, plan, lost)
        except BaseException:
            session.runtime.forget()  # perhaps it was removed, and that is why
            await asyncio.shield(self._clear(session, plan))
            raise

        def adopt(heir: DockerSandbox) -> None:
            self._sandboxes[plan.name] = heir

        async def cut_off() -> None:
            await leave_bridge(session.client, plan.name)

        ties = Ties(ended, commit, adopt, cut_off)
        sandbox = DockerSandbox(plan, link, self.capabilities(), ties)
        adopt(sandbox)
        try:
            await sandbox.connect_proxy()
        except BaseException:
            await asyncio.shield(sandbox.teardown())
            raise
        return sandbox

    async def _undo(self, session: _Session, plan: Plan, task: asyncio.Task[DockerSandbox]) -> None:
        """After a cancelled `create`: let it come to its end, then remove what it made.

        A call to the daemon that is cut off may still be carried out later.
        """
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().teardown()
        else:
            await self._clear(session, plan)

    async def _clear(self, session: _Session, plan: Plan) -> None:
        """Remove what there may be of a container that did not start."""
        await remove_container(session.client, plan.name)
        await mounted.close_overlays(session.client, plan.spec, plan.name, failed=True)

    def _remove(self, session: _Session, plan: Plan, world: World | None) -> asyncio.Task[None]:
        """Remove a container in the background, and leave its world; once."""
        if world is not None:
            world.leaving(plan.name)
        if plan.name not in self._removals:
            task = self._start(self._removed(session, plan, world))
            self._removals[plan.name] = (plan.image.id, task)
            task.add_done_callback(lambda _: self._removals.pop(plan.name, None))
            return task
        return self._removals[plan.name][1]

    async def _removed(self, session: _Session, plan: Plan, world: World | None) -> None:
        try:
            try:
                await remove_container(session.client, plan.name)
            finally:
                if world is not None:
                    await session.projects.leave(world, plan.name)
            await mounted.close_overlays(session.client, plan.spec, plan.name)
        except (SandboxError, TimeoutError, OSError, ExceptionGroup) as error:
            # Its processes end with our connection all the same; a sweep takes the rest.
            _LOG.warning("the container %s could not be removed: %s", plan.name, error)

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _check_demands(self, spec: SandboxSpec) -> None:
        able = self.capabilities()
        if spec.host_root:
            _check_source(spec)
        _check_live(spec)
        mounted.check(spec, able.mounts)
        asked = {
            name for name in spec.limits.__struct_fields__ if getattr(spec.limits, name) is not None
        }
        missing = asked - able.limits
        if missing:
            raise UnsupportedError(
                f"this Docker daemon cannot limit {', '.join(sorted(missing))}"
                + (" (disk limits need xfs with project quotas)" if "disk_mb" in missing else "")
            )
        check_policy(spec.network)


async def _open_overlays(client: EngineClient, plan: Plan) -> None:
    try:
        await mounted.open_overlays(client, plan.spec, plan.name, plan.labels)
    except (ApiError, OSError) as error:
        raise SandboxStartError(f"the mounts cannot be made: {error}") from error


def _check_source(spec: SandboxSpec) -> None:
    if spec.host_root:
        raise UnsupportedError(
            "the docker sandbox cannot use the host's file system as its root; use --sandbox local"
        )
    if sum(source is not None for source in (spec.image, spec.build, spec.compose)) != 1:
        raise ConfigError("a docker sandbox needs exactly one of `image`, `build` and `compose`")


def _check_live(spec: SandboxSpec) -> None:
    if spec.live:
        raise UnsupportedError(
            "the docker sandbox cannot capture running processes (`live`): use --sandbox local, "
            "whose sandboxes can (`ramify doctor` tells whether they can here), or branch without "
            "it, from frozen files: services and agents are then started again"
        )


def _within(spec: SandboxSpec, daemon: Daemon) -> SandboxSpec:
    """The spec with no more CPUs than there are: Docker refuses a limit that cannot bind."""
    cpus, most = spec.limits.cpus, daemon.info.get("NCPU")
    if cpus is None or not isinstance(most, int) or cpus <= most:
        return spec
    limits = msgspec.structs.replace(spec.limits, cpus=float(most))
    return msgspec.structs.replace(spec, limits=limits)


def _capabilities(daemon: Daemon, address: str) -> Capabilities:
    info = daemon.info
    limits = {
        "memory_mb": info.get("MemoryLimit"),
        "cpus": info.get("CpuCfsQuota"),
        "pids": info.get("PidsLimit"),
        "disk_mb": _can_limit_disk(info),
    }
    return Capabilities(
        isolation="container",
        lockdown=True,
        snapshot="freeze",
        network=frozenset(NetworkMode),
        limits=frozenset(name for name, able in limits.items() if able),
        host_root=False,
        images=True,
        builds=True,
        compose=True,
        mounts=mounted.offered(daemon, address),
    )


def _can_limit_disk(info: dict[str, Any]) -> bool:
    """Only these drivers take a size; overlay2 only on xfs, and then only with project quotas."""
    return info.get("Driver") in ("btrfs", "zfs", "devicemapper")
