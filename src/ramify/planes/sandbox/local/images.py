"""Images of the `local` sandbox: found in the layer store, else taken over from a Docker daemon.

What a daemon built or pulled is imported once, as it streams out of it; from then on the same task
runs without the daemon. An image found by the name it has at a daemon is compared with the one
there, while there is one; an image built from a Dockerfile is named by the content it is built
from, so a daemon is not asked again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ramify.contracts.errors import ConfigError, SandboxError, SandboxStartError
from ramify.contracts.sandbox import BuildSpec, SandboxImage, SandboxSpec
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json
from ramify.planes.sandbox.docker.context import make_context
from ramify.planes.sandbox.docker.images import Images, build_name
from ramify.planes.sandbox.layer_index import MARK
from ramify.planes.sandbox.layer_names import is_marked
from ramify.planes.sandbox.layer_stream import Incoming
from ramify.planes.sandbox.layers import LayerStore

_IMPORT_SEC = 1800.0
_ASK_SEC = 5.0
_PIECE = 4 * 1024 * 1024
_POLL_SEC = 0.05
_LOG = logging.getLogger("ramify.sandbox.local")
_T = TypeVar("_T")


class LocalImages:
    """The pristine images of one engine, in `store`. Nothing is asked of a daemon before it must.

    What was prepared is remembered: it stays the same, and stays there, while the engine lives.
    """

    def __init__(self, store: LayerStore) -> None:
        self._store = store
        self._client = EngineClient()
        self._daemon = Images(self._client, {})
        self._ready: dict[str, SandboxImage] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The image of a spec with `image` or `build`.

        Raises: ConfigError (it is nowhere), SandboxStartError (a build or an import failed).
        """
        if spec.build is not None:
            return await self._built(spec.build)
        name = spec.image or ""
        if name.startswith(("/", "./", "../")):
            return await self._file(Path(name))
        return await self._named(name)

    async def aclose(self) -> None:
        """Close the connections to the daemon. Idempotent."""
        await self._client.aclose()

    async def _named(self, name: str) -> SandboxImage:
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self._ready:
                self._ready[name] = await self._find(name)
            return self._ready[name]

    async def _find(self, name: str) -> SandboxImage:
        found = await _settled(lambda: self._store.resolve(name))
        if found is None:
            problem = f"no image {name!r} in {self._store.root}"
            remedy = f"docker save {name} -o image.tar, then: ramify images import image.tar"
            return await self._make(SandboxSpec(image=name), name, problem, remedy)
        # One that a person imported under this name means what that person chose.
        if "@" in name or not await _settled(lambda: is_marked(self._store.root, found.id)):
            return found
        current = await self._current_id(name)
        return found if current is None else await self._take(current, name)

    async def _current_id(self, name: str) -> str | None:
        """The id of a daemon's image of that name; None if no daemon answers, or has none."""
        try:
            async with asyncio.timeout(_ASK_SEC):
                shown = await self._client.call(
                    "GET", f"/images/{quote(name)}/json", "show an image"
                )
        except ApiError as error:
            if error.status != 404:
                _LOG.warning("the image %s is used as it was imported: %s", name, error)
            return None
        except (SandboxStartError, ConfigError):  # no daemon, or no way to it: not needed here
            return None
        except (SandboxError, TimeoutError) as error:
            _LOG.warning("the image %s is used as it was imported: %s", name, error)
            return None
        return str(shown["Id"])

    async def _built(self, build: BuildSpec) -> SandboxImage:
        context = await asyncio.to_thread(
            make_context, Path(build.context), build.dockerfile, build.sources
        )
        context.archive.close()
        name = build_name(context)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self._ready:
                found = await _settled(lambda: self._store.resolve(name))
                self._ready[name] = found or await self._build(build, name)
            return self._ready[name]

    async def _build(self, build: BuildSpec, name: str) -> SandboxImage:
        where = f"{build.context}/{build.dockerfile}"
        remedy = (
            f"docker build -t {name} -f {where} {build.context} && docker save {name} -o image.tar,"
            " then: ramify images import image.tar"
        )
        return await self._make(
            SandboxSpec(build=build), name, f"{where} was not built yet", remedy
        )

    async def _make(self, spec: SandboxSpec, name: str, problem: str, remedy: str) -> SandboxImage:
        """Let the daemon pull or build an image, and import it as `name`."""
        async with _turn(self._store.root, name):
            found = await _settled(lambda: self._store.resolve(name))
            if found is not None:  # another engine was faster
                return found
            try:
                await self._client.connect()
            except (SandboxStartError, ConfigError) as error:
                what = str(error)
                if isinstance(error, SandboxStartError):
                    what = what.partition(": ")[0]  # the rest is advice on another sandbox
                raise ConfigError(
                    f"{problem}, and a Docker daemon is needed once to make it ({what}); or where"
                    f" there is one: {remedy}",
                    field="image",
                ) from error
            return await self._take((await self._daemon.prepare(spec)).id, name)

    async def _take(self, docker_id: str, name: str) -> SandboxImage:
        """The image of that id at the daemon, under `name`; imported if it is not here yet."""
        mark = MARK + docker_id.removeprefix("sha256:")
        async with _turn(self._store.root, mark):
            found = await _settled(lambda: self._store.resolve(mark))
            if found is None:
                return await self._import(docker_id, (name, mark))
            await _settled(lambda: self._store.tag(name, found.id))
            return found

    async def _import(self, docker_id: str, names: tuple[str, str]) -> SandboxImage:
        what = f"hand out the image {names[0]}"
        shown: Json = await self._client.call("GET", f"/images/{quote(docker_id)}/json", what)
        root: Json = shown.get("RootFS") or {}
        diff_ids = tuple(str(one) for one in root.get("Layers") or ())
        incoming = await _settled(lambda: self._store.receive(names[0], names, diff_ids))
        try:
            path = f"/images/{quote(docker_id)}/get"
            async with aclosing(self._client.fetch(path, what, timeout_sec=_IMPORT_SEC)) as chunks:
                await _pour(chunks, incoming)
            image = await _settled(incoming.finish)
        except OSError as error:
            raise SandboxStartError(f"cannot import the image {names[0]}: {error}") from error
        finally:
            await _settled(incoming.close)
        if incoming.owners_lost:
            _LOG.warning(
                "%d files of the image %s belong to users that sandboxes of this engine cannot"
                " have (run as root to keep them); they belong to root or nobody instead",
                incoming.owners_lost,
                names[0],
            )
        return image

    async def _file(self, path: Path) -> SandboxImage:
        try:
            real, info = await asyncio.to_thread(lambda: (path.resolve(strict=True), path.stat()))
        except OSError as error:
            raise ConfigError(f"no image at {path}: {error.strerror}", field="image") from error
        key = f"{real}\0{info.st_mtime_ns}"
        # A name by its place, so that what was there before is collected.
        name = f"ramify/file:{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}"
        async with self._locks.setdefault(name, asyncio.Lock()):
            if key not in self._ready:
                take = self._store.import_tree if real.is_dir() else self._store.import_tar
                self._ready[key] = await _settled(lambda: take(real, name=name))
            return self._ready[key]


async def _pour(chunks: AsyncGenerator[bytes], incoming: Incoming) -> None:
    """Hand on what comes, in pieces worth a thread."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= _PIECE:
            await _feed(incoming, held)
            held, size = [], 0
    await _feed(incoming, held)


async def _feed(incoming: Incoming, pieces: list[bytes]) -> None:
    await _settled(lambda: incoming.feed(b"".join(pieces)))


async def _settled(work: Callable[[], _T]) -> _T:
    """Do blocking work in a thread; a cancelled caller still waits for it, so that what comes
    after can rely on it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@asynccontextmanager
async def _turn(root: Path, what: str) -> AsyncGenerator[None]:
    """One at a time for a thing, among the tasks of all engines of a store.

    Each thing is a byte of one file (two that share one by chance wait for each other). The lock
    is the open file's, so it ends with its engine. Whoever holds it has deadlines of its own.
    """
    fd = os.open(root / "turns", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    place = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7])
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)  # struct flock
    try:
        while True:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
                break
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: it is held
                await asyncio.sleep(_POLL_SEC)
        yield
    finally:
        os.close(fd)
