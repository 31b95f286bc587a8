"""Sandboxes as Docker containers, over the Engine API."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError, RamifyError, SandboxError, UnsupportedError
from ramify.contracts.sandbox import (
    Capabilities,
    NetworkMode,
    ProbeReport,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.docker.client import Daemon, EngineClient
from ramify.planes.sandbox.docker.images import PROVIDER, Images
from ramify.planes.sandbox.docker.launch import Plan, launch, remove_container
from ramify.planes.sandbox.docker.owners import Owner
from ramify.planes.sandbox.docker.runtime import Runtime
from ramify.planes.sandbox.docker.sandbox import DockerSandbox
from ramify.planes.sandbox.docker.sweep import sweep
from ramify.planes.sandbox.docker.watchdog import Watchdog

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


class DockerProvider:
    """Makes a container per sandbox, with a supervisor of ours as its main process.

    A container ends within two seconds of its engine, however that ends: the supervisor's input
    is our connection. Nothing is done before the first call. `home` holds the lock that tells
    other engines that this one lives (default: `$RAMIFY_HOME`, else `~/.cache/ramify`).
    """

    def __init__(self, home: Path | None = None) -> None:
        self._home = home or ramify_home()
        self._client = EngineClient()
        self._session: _Session | None = None
        self._capabilities: Capabilities | None = None
        self._lock = asyncio.Lock()
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self._removals: dict[str, tuple[str, asyncio.Task[Any]]] = {}
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
            return ProbeReport(False, "unavailable", str(error), "run dev/docker-engine")
        self._capabilities = _capabilities(daemon)
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
        """The pristine image of a spec: found, pulled, or built once per content."""
        _check_source(spec)
        return await (await self._connect()).images.prepare(spec)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        """A new container on `image` (default: the pristine one).

        Raises: UnsupportedError, ConfigError, SandboxStartError.
        """
        session = await self._connect()
        self._check_demands(spec)
        if image is None:
            _check_source(spec)
            image = await session.images.prepare(spec)
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
        task = self._start(self._launch(session, plan))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
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
        await session.images.discard(image)

    async def sweep(self) -> int:
        """Remove what engines that died on this machine left on the daemon."""
        await self._connect()
        return await sweep(self._client)

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
                self._capabilities = _capabilities(daemon)
                self._session = await asyncio.to_thread(_Session, self._client, daemon, self._home)
            return self._session

    async def _launch(self, session: _Session, plan: Plan) -> DockerSandbox:
        def lost(_reason: str) -> None:
            self._remove(session, plan)

        def ended() -> None:
            self._sandboxes.pop(plan.name, None)
            self._remove(session, plan)

        async def commit() -> SandboxImage:
            return await session.images.freeze(plan.name, plan.name, plan.image)

        try:
            link = await launch(session.client, plan, lost)
        except BaseException:
            session.runtime.forget()  # perhaps it was removed, and that is why
            await asyncio.shield(remove_container(session.client, plan.name))
            raise
        sandbox = DockerSandbox(plan, link, self.capabilities(), ended, commit)
        self._sandboxes[plan.name] = sandbox
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
            await remove_container(session.client, plan.name)

    def _remove(self, session: _Session, plan: Plan) -> None:
        """Remove a container in the background; once."""
        if plan.name not in self._removals:
            task = self._start(self._removed(session, plan.name))
            self._removals[plan.name] = (plan.image.id, task)
            task.add_done_callback(lambda _: self._removals.pop(plan.name, None))

    async def _removed(self, session: _Session, name: str) -> None:
        try:
            await remove_container(session.client, name)
        except (SandboxError, TimeoutError) as error:
            # Its processes end with our connection all the same; a sweep takes the rest.
            _LOG.warning("the container %s could not be removed: %s", name, error)

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _check_demands(self, spec: SandboxSpec) -> None:
        able = self.capabilities()
        if spec.host_root:
            _check_source(spec)
        asked = {
            name for name in spec.limits.__struct_fields__ if getattr(spec.limits, name) is not None
        }
        missing = asked - able.limits
        if missing:
            raise UnsupportedError(
                f"this Docker daemon cannot limit {', '.join(sorted(missing))}"
                + (" (disk limits need xfs with project quotas)" if "disk_mb" in missing else "")
            )
        if spec.network.allowed_hosts and spec.network.mode is not NetworkMode.ALLOWLIST:
            raise ConfigError(
                f"allowed_hosts is set, but the mode is {spec.network.mode.value!r}; "
                'set mode = "allowlist"',
                field="network",
            )


def _check_source(spec: SandboxSpec) -> None:
    if spec.host_root:
        raise UnsupportedError(
            "the docker sandbox cannot use the host's file system as its root; use --sandbox local"
        )
    if (spec.image is None) == (spec.build is None):
        raise ConfigError("a docker sandbox needs exactly one of `image` and `build`")


def _within(spec: SandboxSpec, daemon: Daemon) -> SandboxSpec:
    """The spec with no more CPUs than there are: Docker refuses a limit that cannot bind."""
    cpus, most = spec.limits.cpus, daemon.info.get("NCPU")
    if cpus is None or not isinstance(most, int) or cpus <= most:
        return spec
    limits = msgspec.structs.replace(spec.limits, cpus=float(most))
    return msgspec.structs.replace(spec, limits=limits)


def _capabilities(daemon: Daemon) -> Capabilities:
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
    )


def _can_limit_disk(info: dict[str, Any]) -> bool:
    """Only these drivers take a size; overlay2 only on xfs, and then only with project quotas."""
    return info.get("Driver") in ("btrfs", "zfs", "devicemapper")
