"""The Compose projects of one engine: their images, and the worlds that are kept for a verifier."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from ramify.contracts.errors import (
    ConfigError,
    SandboxLostError,
    UnsupportedError,
)
from ramify.contracts.sandbox import BuildSpec, ComposeSpec, SandboxImage, SandboxSpec
from ramify.planes.sandbox.docker.client import EngineClient
from ramify.planes.sandbox.docker.composefile import Project, read_project
from ramify.planes.sandbox.docker.composeservice import Service
from ramify.planes.sandbox.docker.images import Images
from ramify.planes.sandbox.docker.runtime import Runtime
from ramify.planes.sandbox.docker.world import World

_BUILD_SEC = 1800.0


class Projects:
    """Makes worlds. One that the agent's file system was frozen in stays until that is discarded.

    `labels` are put on everything that is made.
    """

    def __init__(
        self,
        client: EngineClient,
        images: Images,
        runtime: Runtime,
        labels: Mapping[str, str],
        arch: str,
    ) -> None:
        self._client, self._images, self._runtime = client, images, runtime
        self._labels, self._arch = labels, arch
        self._kept: dict[str, World] = {}

    async def prepare(self, spec: ComposeSpec) -> SandboxImage:
        """The image of the agent's service, once those of all services are there.

        Its user, work directory and environment are the service's. Raises: ConfigError,
        UnsupportedError, SandboxStartError.
        """
        project = await asyncio.to_thread(read_project, spec)
        images = await self._all_images(project)
        return images[project.main]

    async def join(self, spec: SandboxSpec, image: SandboxImage | None, name: str) -> World:
        """The world for a container of that name; `leave` it, whatever happens.

        A new one, not started, unless `image` was frozen in one: then that one, with its services
        as they stand. Raises: ConfigError, UnsupportedError, SandboxStartError.
        """
        if image is not None and not image.pristine:
            world = self._kept.get(image.id)
            if world is None:
                raise SandboxLostError(
                    f"the services that {image.id} was frozen beside are gone; it cannot run alone"
                )
        else:
            project = await asyncio.to_thread(read_project, _compose(spec))
            images = await self._all_images(project)
            labels = {**spec.labels, **self._labels}
            world = World(self._client, project, images, name, labels, spec.network, self._runtime)
        await world.enter(name)
        return world

    def keep(self, world: World, image: SandboxImage) -> None:
        """Keep a world, whose container was just frozen, until `discard` of that image."""
        if image.id not in self._kept:
            self._kept[image.id] = world
            world.users += 1

    async def leave(self, world: World, name: str) -> None:
        """A container in it is gone: remove it, unless it is kept. Raises: SandboxError."""
        if world.leave(name) and world.users == 0:
            await world.remove()

    async def discard(self, image: SandboxImage) -> None:
        """Remove the world that an image was frozen in, if it was. Raises: SandboxError."""
        world = self._kept.pop(image.id, None)
        if world is not None:
            await self._release(world)

    async def aclose(self) -> None:
        """Remove what is still kept. Raises: SandboxError."""
        for key in list(self._kept):
            await self._release(self._kept.pop(key))

    async def _release(self, world: World) -> None:
        world.users -= 1
        if world.users == 0:
            await world.remove()

    async def _all_images(self, project: Project) -> dict[str, SandboxImage]:
        """One after the other: builds share layers, and the machine."""
        built = {s.image or "": s for s in project.services.values() if s.build and s.image}
        found: dict[str, SandboxImage] = {}
        for name, service in project.services.items():
            # A service may run what another one builds.
            source = service if service.build else built.get(service.image or "", service)
            image = await self._image(project, source)
            if service.platform and service.platform.split("/")[:2] != ["linux", self._arch]:
                raise UnsupportedError(
                    f"{project.file}: services.{name}.platform: this daemon runs "
                    f"linux/{self._arch}, not {service.platform}"
                )
            found[name] = image if name != project.main else _as_declared(image, service)
        return found

    async def _image(self, project: Project, service: Service) -> SandboxImage:
        build = service.build
        if build is not None:
            spec = BuildSpec(str(build.context), build.dockerfile, _BUILD_SEC)
            return await self._images.build(spec, build.args, build.target)
        if service.image is None:
            raise ConfigError("needs `image` or `build`", project.file, f"services.{service.name}")
        return await self._images.prepare(SandboxSpec(image=service.image))


def _as_declared(image: SandboxImage, service: Service) -> SandboxImage:
    return msgspec.structs.replace(
        image,
        user=service.user or image.user,
        workdir=service.workdir or image.workdir,
        env={**image.env, **service.env},
    )


def _compose(spec: SandboxSpec) -> ComposeSpec:
    if spec.compose is None:
        raise ConfigError("the sandbox is no Compose project")
    return spec.compose
