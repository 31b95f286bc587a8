"""The world of a Compose project: its networks, volumes and services, without the agent's own.

Every network of a project is a private bridge that leads nowhere: the host has no address on it.
Where the policy is `open`, each service shares the network of a container of ours, its gate, which
is on the way out too and closes private addresses before the service starts. Where it is an
allow-list, only the agent's container has a way out, through the proxy.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ramify.contracts.errors import (
    ConfigError,
    EnvironmentFailed,
    SandboxError,
    SandboxStartError,
    UnsupportedError,
)
from ramify.contracts.sandbox import (
    Healthcheck,
    NetworkMode,
    NetworkPolicy,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.docker.client import ApiError, EngineClient
from ramify.planes.sandbox.docker.composefile import Project
from ramify.planes.sandbox.docker.composeservice import Service
from ramify.planes.sandbox.docker.containers import Seat, sidecar_body
from ramify.planes.sandbox.docker.copies import fill_volume
from ramify.planes.sandbox.docker.health import Watched
from ramify.planes.sandbox.docker.launch import Plan, launch, remove_container
from ramify.planes.sandbox.docker.link import Link
from ramify.planes.sandbox.docker.networks import (
    connect_networks,
    host_name_servers,
    make_network,
    remove_network,
)
from ramify.planes.sandbox.docker.owners import WORLD_LABEL
from ramify.planes.sandbox.docker.runtime import Runtime, remove_volume

_START_SEC = 120.0
_UP_SEC = 900.0
_VACANT_SEC = 120.0
_T = TypeVar("_T")


class World:
    """One running project. `users` counts who needs it; it is removed by `remove`.

    The agent's place in it is taken by one container at a time: `enter`, `leaving`, `leave`.

    Args:
        client: of the daemon.
        project: what the Compose file says.
        images: the image of each service.
        name: of the agent's first container; what is made is named after it.
        labels: put on everything.
        network: what the services may reach.
        runtime: what gates run.
    """

    def __init__(
        self,
        client: EngineClient,
        project: Project,
        images: Mapping[str, SandboxImage],
        name: str,
        labels: Mapping[str, str],
        network: NetworkPolicy,
        runtime: Runtime,
    ) -> None:
        self._client, self._project, self._images = client, project, images
        self._network_policy, self._runtime = network, runtime
        self._gates: dict[str, Link] = {}
        self._volumes = {volume: f"{name}-vol-{_plain(volume)}" for volume in project.volumes}
        self._copies = {
            source: f"{name}-dir-{number}" for number, source in enumerate(_written(project))
        }
        self.name = name
        self._labels = {**labels, WORLD_LABEL: name}
        self.users = 0
        self._occupant: str | None = None
        self._ending = False
        self._vacant = asyncio.Event()
        self._vacant.set()
        self._subnets: dict[str, str] = {}
        self._calls: set[asyncio.Task[Any]] = set()

    async def enter(self, name: str) -> None:
        """Take the agent's place for a container, once the last one is gone.

        Raises: UnsupportedError (that one goes on), SandboxStartError (it does not go).
        """
        if self._occupant is not None and not self._ending:
            raise UnsupportedError(
                "a Compose project is used by another container already, and its services cannot "
                "be copied: run one after the other"
            )
        self._ending = False
        try:
            async with asyncio.timeout(_VACANT_SEC):
                await self._vacant.wait()
        except TimeoutError as error:
            raise SandboxStartError("the container that was frozen could not be removed") from error
        self._vacant.clear()
        self._occupant = name
        self.users += 1

    def leaving(self, name: str) -> None:
        """A container is being removed."""
        self._ending = self._ending or self._occupant == name

    def leave(self, name: str) -> bool:
        """A container is gone; whether it had been here until now."""
        if self._occupant != name:
            return False
        self._occupant = None
        self._vacant.set()
        self.users -= 1
        return True

    async def open(self) -> None:
        """Make the networks and volumes. Raises: SandboxStartError."""
        try:
            for network in self._project.networks:
                await self._do(self._make_network(network))
            for volume in (*self._volumes.values(), *self._copies.values()):
                await self._do(self._make_volume(volume))
            image = self._images[self._project.main].id
            for source, volume in self._copies.items():
                await self._do(fill_volume(self._client, volume, Path(source), image, self._labels))
        except ApiError as error:
            raise SandboxStartError(str(error)) from error

    def seat(self, service: str | None = None) -> Seat:
        """The place of a service; None: of the agent's."""
        found = self._project.services[service or self._project.main]
        others = [item for item in self._project.services.values() if item is not found]
        peers = {item.name for item in others}
        for item in others:
            peers.update(alias for aliases in item.networks.values() for alias in aliases)
        return Seat(
            service=found,
            networks=tuple(
                (self._network(name), tuple(dict.fromkeys((found.name, *aliases))))
                for name, aliases in found.networks.items()
            ),
            subnets=tuple(self._subnets[name] for name in found.networks),
            volumes={**self._volumes, **self._copies},
            peers=tuple(sorted(peers)),
            name_servers=host_name_servers(),
        )

    async def up(self, main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Start the services in their order, the agent's with `main`; wait until all are well.

        Raises: EnvironmentFailed (with the end of the log of the service that failed),
        SandboxStartError, ConfigError.
        """
        start = _Start(self._project, self._images, self._container)
        made: list[_T] = []

        async def bring_up(service: Service) -> None:
            await start.ready_for(service)
            if service.name == self._project.main:
                made.append(await self._do(main()))
            else:
                await self._do(self._start(service))
            await start.follow(service, self._watched(service))

        try:
            async with asyncio.timeout(_UP_SEC), asyncio.TaskGroup() as group:
                for service in self._project.services.values():
                    group.create_task(bring_up(service))
        except TimeoutError:
            raise EnvironmentFailed(f"the services were not up within {_UP_SEC:.0f} s") from None
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        for service in self._sidecars():
            await self._watched(service).unbroken()
        return made[0]

    async def settled(self) -> None:
        """Wait until nothing is being started any more."""
        if self._calls:
            await asyncio.wait(self._calls)

    async def remove(self) -> None:
        """Remove containers, networks and volumes. Raises: SandboxError."""
        await self.settled()
        async with asyncio.TaskGroup() as group:
            for service in self._sidecars():
                group.create_task(remove_container(self._client, self._container(service.name)))
        while self._gates:
            gate, link = self._gates.popitem()
            await link.aclose()
            await remove_container(self._client, gate)
        for network in self._project.networks:
            await remove_network(self._client, self._network(network))
        for volume in (*self._volumes.values(), *self._copies.values()):
            await remove_volume(self._client, volume)

    def _sidecars(self) -> list[Service]:
        return [s for s in self._project.services.values() if s.name != self._project.main]

    def _watched(self, service: Service) -> Watched:
        return Watched(self._client, service.name, self._container(service.name), service.tty)

    async def _start(self, service: Service) -> None:
        seat, name = self.seat(service.name), self._container(service.name)
        gate = await self._gate(seat, f"{name}-gate")
        try:
            await self._client.call(
                "POST",
                "/containers/create",
                f"create the service {service.name}",
                query={"name": name},
                body=sidecar_body(seat, self._images[service.name].id, self._labels, gate),
                timeout_sec=_START_SEC,
            )
            if gate is None:
                await connect_networks(self._client, name, seat.networks[1:])
            await self._client.call(
                "POST",
                f"/containers/{name}/start",
                f"start the service {service.name}",
                timeout_sec=_START_SEC,
            )
        except ApiError as error:
            if error.status in (400, 404):  # a command that is not there, a mount on a file
                raise EnvironmentFailed(str(error)) from error
            raise SandboxStartError(str(error)) from error

    async def _gate(self, seat: Seat, name: str) -> str | None:
        """A container whose network a service shares, where that has a way out; its name."""
        if self._network_policy.mode is not NetworkMode.OPEN or not seat.networks:
            return None
        service, image = seat.service, self._images[seat.service.name]
        volume, command = await self._runtime.ensure(image.id)
        bare = Service(service.name, hostname=service.hostname or service.name)
        plan = Plan(
            name=name,
            spec=SandboxSpec(network=self._network_policy),
            image=image,
            volume=volume,
            command=command,
            labels=self._labels,
            seat=dataclasses.replace(seat, service=bare),
        )
        try:
            self._gates[name] = await launch(self._client, plan, lambda _reason: None)
        except BaseException:
            await asyncio.shield(remove_container(self._client, name))
            raise
        return name

    async def _make_network(self, network: str) -> None:
        name = self._network(network)
        self._subnets[network] = await make_network(self._client, name, self._labels)

    async def _make_volume(self, volume: str) -> None:
        body = {"Name": volume, "Labels": self._labels}
        await self._client.call("POST", "/volumes/create", "make a volume", body=body)

    async def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Carry out what changes the daemon, to its end, also where we are cancelled meanwhile.

        A call that is cut off may still be carried out after everything was removed.
        """
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    def _container(self, service: str) -> str:
        if service == self._project.main:
            return self.name
        return f"{self.name}-{_plain(service)}"

    def _network(self, network: str) -> str:
        return f"{self.name}-net-{_plain(network)}"


class _Start:
    """Who waits for whom while a project starts."""

    def __init__(
        self,
        project: Project,
        images: Mapping[str, SandboxImage],
        container: Callable[[str], str],
    ) -> None:
        self._project, self._container = project, container
        wanted = [item for s in project.services.values() for item in s.depends_on.items()]
        self._to_complete = {n for n, how in wanted if how == "service_completed_successfully"}
        needed = {name for name, how in wanted if how == "service_healthy"}
        self._checks = {
            name: check
            for name, service in project.services.items()
            if (check := _check(service, images[name])) is not None
            # The agent's container does not run what its image would be well for.
            and (name != project.main or name in needed or service.healthcheck is not None)
        }
        if lacking := sorted(needed - set(self._checks)):
            raise ConfigError(
                "another service waits until it is healthy, but it has no healthcheck",
                file=project.file,
                field=f"services.{lacking[0]}",
            )
        self._started = {name: asyncio.Event() for name in project.services}
        self._well = {name: asyncio.Event() for name in project.services}

    async def ready_for(self, service: Service) -> None:
        """Wait for what a service depends on."""
        for name, condition in service.depends_on.items():
            events = self._started if condition == "service_started" else self._well
            await events[name].wait()

    async def follow(self, service: Service, watched: Watched) -> None:
        """A service was started: tell the others, and again once it is well, or complete."""
        self._started[service.name].set()
        if service.name in self._to_complete:
            await watched.completed()
        elif check := self._checks.get(service.name):
            await watched.healthy(check)
        self._well[service.name].set()


def _check(service: Service, image: SandboxImage) -> Healthcheck | None:
    """The healthcheck of a service: the file's, over what it leaves to the image."""
    own, base = service.healthcheck, image.healthcheck
    if own is None:
        found = base
    elif own.test or base is None:
        found = own
    else:
        found = Healthcheck(
            base.test,
            own.interval_sec or base.interval_sec,
            own.timeout_sec or base.timeout_sec,
            own.start_period_sec or base.start_period_sec,
            own.retries or base.retries,
        )
    return None if found is None or not found.test or found.test[0] == "NONE" else found


def _written(project: Project) -> list[str]:
    """Directories of the task that a service may write."""
    mounts = [mount for service in project.services.values() for mount in service.mounts]
    return list(dict.fromkeys(m.source for m in mounts if m.kind == "bind" and not m.read_only))


def _plain(name: str) -> str:
    """A name of the file as a part of a name on the daemon."""
    return "".join(c if c.isalnum() and c.isascii() or c in "._-" else "_" for c in name)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error to report of those that came at once."""
    for kind in (EnvironmentFailed, SandboxError, Exception):
        if (found := errors.subgroup(kind)) is not None:
            return _leaf(found)
    return _leaf(errors)


def _leaf(error: BaseException) -> BaseException:
    inner = cast("Sequence[BaseException]", getattr(error, "exceptions", ()))
    return _leaf(inner[0]) if inner else error
