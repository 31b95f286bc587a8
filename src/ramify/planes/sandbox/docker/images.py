"""Images of one daemon: found, pulled, built once per content, frozen, discarded.

Freezing is a commit: the daemon writes what was changed into an archive and unpacks it as a layer,
so its cost grows with that. It is logged, and `size_bytes` tells it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from ramify.contracts.errors import ConfigError, SandboxError, SandboxStartError
from ramify.contracts.sandbox import BuildSpec, SandboxImage, SandboxSpec
from ramify.planes.sandbox.capture import tail_text
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json
from ramify.planes.sandbox.docker.context import BuildContext, make_context
from ramify.planes.sandbox.docker.launch import remove_container
from ramify.planes.sandbox.oci import image_config

PROVIDER = "docker"

_FROZEN = "ramify/frozen"
_PULL_SEC = 1800.0
_COMMIT_SEC = 900.0
_LOG_LINES = 30
_MOST_LAYERS = 100
"""A frozen image of more layers is made of one: Docker's overlays end at about 125."""

_KEPT_CONFIG = ("Env", "Cmd", "Entrypoint", "User", "WorkingDir", "Healthcheck", "StopSignal")
_UNSET: Json = {"Env": [], "Cmd": [], "Entrypoint": [], "User": "", "WorkingDir": "",
                "Healthcheck": {"Test": ["NONE"]}, "StopSignal": "SIGTERM"}  # fmt: skip
_LOG = logging.getLogger("ramify.sandbox.docker")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the daemon says about an image: its value, its size, its volumes and names."""

    image: SandboxImage
    size: int
    volumes: tuple[str, ...]
    names: tuple[str, ...]
    config: Json
    layers: int


class Images:
    """The images of one daemon. `labels` are put on what is made for this engine alone."""

    def __init__(self, client: EngineClient, labels: dict[str, str]) -> None:
        self._client = client
        self._labels = labels
        self._locks: dict[str, asyncio.Lock] = {}
        self._ready: dict[str, str] = {}
        self._frozen: dict[str, SandboxImage] = {}

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The pristine image of a spec. Raises: ConfigError, SandboxStartError, ApiError."""
        if spec.build is not None:
            return await self.build(spec.build)
        name = spec.image or ""
        async with self._locks.setdefault(name, asyncio.Lock()):
            known = await self._inspect(self._ready.get(name, name))
            if known is None:
                await self._pull(name)
                known = await self._inspect(name)
            if known is None:
                raise ConfigError(f"the image {name!r} vanished after it was pulled", field="image")
            self._ready[name] = known.image.id
            return known.image

    async def freeze(self, container: str, tag: str, image: SandboxImage) -> SandboxImage:
        """Commit a container as a child of `image`, with what `image` says of how it is run.

        Raises: SandboxError, ApiError.
        """
        started = time.monotonic()
        parent = await self._inspect(image.id)
        if parent is None:
            raise SandboxError(f"the image {image.id} of the sandbox was removed")
        if parent.volumes:
            raise SandboxError(
                f"cannot freeze: the image declares a VOLUME ({', '.join(parent.volumes)}), and "
                "Docker leaves volumes out of images; use the local sandbox, or an image without"
            )
        if parent.layers < _MOST_LAYERS:
            made = await self._commit(container, tag, parent.config)
        else:
            made = await self._flatten(container, tag, parent.config)
        child = await self._inspect(made)
        if child is None:
            raise SandboxError("the frozen image vanished")
        frozen = msgspec.structs.replace(
            image,
            id=child.image.id,
            digest=child.image.id,
            parent=image.id,
            size_bytes=max(0, child.size - parent.size),
            pristine=False,
        )
        self._frozen[frozen.id] = frozen
        spent = time.monotonic() - started
        _LOG.info("froze %s: %d bytes in %.2f s", container, frozen.size_bytes, spent)
        return frozen

    async def _commit(self, container: str, tag: str, config: Json) -> str:
        """Make an image of a container, to be run as `config` says; its id."""
        kept: Json = {key: config.get(key) or _UNSET[key] for key in _KEPT_CONFIG}
        made = await self._client.call(
            "POST",
            "/commit",
            "freeze the container",
            query={"container": container, "repo": _FROZEN, "tag": tag, "pause": "0"},
            body={**kept, "Labels": self._labels},
            timeout_sec=_COMMIT_SEC,
        )
        return str(made["Id"])

    async def _flatten(self, container: str, tag: str, config: Json) -> str:
        """As `_commit`, in one layer. It costs an archive of the whole file system.

        The daemon takes back what it exports, but without a configuration: a container that never
        runs is made of that, and committed.
        """
        flat = f"{tag}-flat"
        # So that it is swept should this engine die now.
        marks = (f"LABEL {key}={json.dumps(value)}" for key, value in self._labels.items())
        query = {"fromSrc": "-", "repo": _FROZEN, "tag": flat, "changes": "\n".join(marks)}
        source = self._client.fetch(
            f"/containers/{container}/export", "export the container", timeout_sec=_COMMIT_SEC
        )
        try:
            async with aclosing(source):
                await self._pull_stream(query, "flatten the container", source)
            await self._client.call(
                "POST",
                "/containers/create",
                "make a container of the flattened image",
                query={"name": flat},
                body={"Image": f"{_FROZEN}:{flat}", "Cmd": ["true"], "Labels": self._labels},
            )
            return await self._commit(flat, tag, config)
        except _StreamError as error:
            raise SandboxError(f"the daemon cannot flatten the container: {error}") from error
        finally:
            await asyncio.shield(self._forget_flat(flat))

    async def _forget_flat(self, flat: str) -> None:
        """Remove what flattening went through; the frozen image keeps the layer."""
        await remove_container(self._client, flat)
        await remove_image(self._client, f"{_FROZEN}:{flat}")

    async def discard(self, image: SandboxImage) -> None:
        """Remove a frozen image; pristine ones stay. Idempotent. Raises: ApiError."""
        if image.pristine:
            return
        # By its name: an image that others were made from then goes together with the last of them.
        known = await self._inspect(image.id)
        for name in known.names if known is not None else ():
            if name.startswith(_FROZEN + ":"):
                await remove_image(self._client, name)
        self._frozen.pop(image.id, None)

    async def aclose(self) -> None:
        """Discard what is still frozen, children first."""
        for image in reversed(list(self._frozen.values())):
            await self.discard(image)

    async def _inspect(self, name: str) -> _Known | None:
        try:
            found: Json = await self._client.call(
                "GET", f"/images/{quote(name)}/json", "show an image"
            )
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status == 400:
                raise ConfigError(
                    f"{name!r} is no image name: {error.reason}", field="image"
                ) from error
            raise
        config: Json = found.get("Config") or {}
        wants = image_config(config)
        image = SandboxImage(
            id=str(found["Id"]),
            provider=PROVIDER,
            digest=str(found["Id"]),
            user=wants.user,
            workdir=wants.workdir,
            env=wants.env,
            entrypoint=wants.entrypoint,
            cmd=wants.command,
            healthcheck=wants.healthcheck,
        )
        volumes, names = tuple(config.get("Volumes") or ()), tuple(found.get("RepoTags") or ())
        root: Json = found.get("RootFS") or {}
        layers = len(root.get("Layers") or ())
        return _Known(image, int(found.get("Size", 0)), volumes, names, config, layers)

    async def _pull(self, name: str) -> None:
        repository, tag = _split_reference(name)
        what = f"pull the image {name}"
        try:
            await self._pull_stream({"fromImage": repository, "tag": tag}, what, b"")
        except (ApiError, _StreamError) as error:
            reason = error.reason if isinstance(error, ApiError) else str(error)
            raise ConfigError(
                f"there is no image {name!r} here, and it cannot be pulled: {reason}; build or "
                "import it first (`docker images` lists what is there; where no registry can be "
                "reached, dev/base-images makes stand-ins for common base images)",
                field="image",
            ) from error

    async def _pull_stream(
        self, query: Mapping[str, str], what: str, data: bytes | AsyncIterator[bytes]
    ) -> None:
        stream = self._client.send(
            "POST", "/images/create", what, data, query=query, timeout_sec=_PULL_SEC
        )
        async for message in stream:
            if "error" in message:
                raise _StreamError(str(message["error"]))

    async def build(
        self, build: BuildSpec, args: Mapping[str, str] | None = None, target: str = ""
    ) -> SandboxImage:
        """The image of a Dockerfile, of one of its stages if `target` names one.

        Raises: ConfigError, SandboxStartError, ApiError.
        """
        context = await asyncio.to_thread(
            make_context, Path(build.context), build.dockerfile, build.sources
        )
        with context.archive:
            how = {"buildargs": json.dumps(dict(args), sort_keys=True)} if args else {}
            if target:
                how["target"] = target
            tag = build_name(context, how)
            async with self._locks.setdefault(tag, asyncio.Lock()):
                known = await self._inspect(tag)
                if known is None:
                    await self._build(build, context, {**how, "t": tag})
                    known = await self._inspect(tag)
                if known is None:
                    raise SandboxStartError(f"the image built from {build.context} vanished")
                return known.image

    async def _build(self, build: BuildSpec, context: BuildContext, how: dict[str, str]) -> None:
        query = {
            **how,
            "dockerfile": build.dockerfile,
            "rm": "1",
            "forcerm": "1",
            "labels": '{"ramify": "1", "ramify.build": "1"}',
        }
        log = _BuildLog()
        started = time.monotonic()
        try:
            async with asyncio.timeout(build.timeout_sec):
                stream = self._client.send(
                    "POST",
                    "/build",
                    "build the image",
                    _in_pieces(context),
                    query=query,
                    timeout_sec=build.timeout_sec + 30,
                )
                async for message in stream:
                    log.take(message)
        except TimeoutError as error:
            raise SandboxStartError(
                f"building {build.context} took longer than {build.timeout_sec:.0f} s "
                f"(after {time.monotonic() - started:.0f} s); last lines:\n{log.tail()}"
            ) from error
        except ApiError as error:
            raise ConfigError(error.reason, file=f"{build.context}/{build.dockerfile}") from error
        if log.error:
            raise _build_error(build, log)


def build_name(context: BuildContext, how: Mapping[str, str] | None = None) -> str:
    """The name of the image that is built from a context: the same content, the same name.

    `how` is what else the build is told.
    """
    digest = context.digest
    if how:
        digest = hashlib.sha256(f"{digest} {sorted(how.items())}".encode()).hexdigest()
    return f"ramify/build:{digest[:32]}"


class _StreamError(Exception):
    """An error within a stream of messages."""


class _BuildLog:
    """The end of a build's output, and its error."""

    def __init__(self) -> None:
        self._text = ""
        self.error = ""

    def take(self, message: Json) -> None:
        self._text = (self._text + str(message.get("stream", "")))[-64 * 1024 :]
        if "error" in message:
            self.error = str(message["error"])

    def tail(self) -> str:
        return tail_text(self._text.encode(), lines=_LOG_LINES)


def _build_error(build: BuildSpec, log: _BuildLog) -> Exception:
    where = f"{build.context}/{build.dockerfile}"
    text = f"{log.error}; the last lines of the build:\n{log.tail()}"
    if "returned a non-zero code" in log.error:
        return SandboxStartError(f"cannot build {where}: {text}")
    if "BuildKit" in log.error:
        text = f"it needs BuildKit, which is not supported: {text}"
    return ConfigError(text, file=where)


async def _in_pieces(context: BuildContext) -> AsyncIterator[bytes]:
    chunks = context.chunks()
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


async def remove_image(client: EngineClient, image: str) -> bool:
    """Remove an image; whether there was one. Raises: ApiError."""
    try:
        await client.call(
            "DELETE", f"/images/{quote(image)}", "remove an image", query={"force": "1"}
        )
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


def _split_reference(name: str) -> tuple[str, str]:
    """An image name as the repository and the tag or digest that the daemon wants to be told."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return head, tag
    return name, "latest"
