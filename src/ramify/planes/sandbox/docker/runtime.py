"""The runtime of containers on one daemon: a volume, filled once per content.

A half-filled volume can never be used: the files go into a volume of a random name, and only then
is a second, empty volume made, named by the content, whose label points to the first. Docker
makes volumes atomically and keeps the labels of the one that was first, so of two engines that
fill at the same time one wins and both use its volume.
"""

from __future__ import annotations

import asyncio
import secrets

from ramify.planes.sandbox.docker.bundle import MOUNT, Recipe, make_recipe, pack
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json

DATA_LABEL = "ramify.runtime.data"
"""Label of a runtime's pointer volume: the name of the volume with the files."""


class Runtime:
    """Ships the runtime to a daemon when it is first needed. `labels` mark what a crash leaves."""

    def __init__(self, client: EngineClient, labels: dict[str, str]) -> None:
        self._client = client
        self._labels = labels
        self._lock = asyncio.Lock()
        self._recipe: Recipe | None = None
        self._volume: str | None = None

    async def ensure(self, image: str) -> tuple[str, tuple[str, ...]]:
        """The volume to mount at `MOUNT`, and the command that starts the supervisor from it.

        `image` is any image that is there; nothing of it is run. Raises: ApiError,
        SandboxStartError.
        """
        async with self._lock:
            if self._recipe is None:
                daemon = await self._client.connect()
                self._recipe = await asyncio.to_thread(make_recipe, daemon.os, daemon.arch)
            if self._volume is None:
                self._volume = await self._find(self._recipe.digest)
            if self._volume is None:
                self._volume = await self._make(self._recipe, image)
            return self._volume, self._recipe.command

    def forget(self) -> None:
        """Look for the volume again next time: it seems to have been removed."""
        self._volume = None

    async def _find(self, digest: str) -> str | None:
        pointer = await self._inspect(_pointer(digest))
        if pointer is None:
            return None
        target = _target(pointer)
        if target and await self._inspect(target) is not None:
            return target
        await remove_volume(
            self._client, _pointer(digest)
        )  # it points to a volume that somebody pruned
        return None

    async def _make(self, recipe: Recipe, image: str) -> str:
        mine = f"{_pointer(recipe.digest)}-{secrets.token_hex(6)}"
        await self._create(mine, {**self._labels, "ramify.runtime": "files"})
        try:
            await self._fill(mine, await pack(recipe), image)
            labels = {"ramify": "1", "ramify.runtime": "pointer", DATA_LABEL: mine}
            winner = await self._create(_pointer(recipe.digest), labels)
        except BaseException:
            await asyncio.shield(remove_volume(self._client, mine))
            raise
        chosen = _target(winner)
        if chosen != mine:
            await remove_volume(self._client, mine)
        return chosen

    async def _fill(self, volume: str, archive: bytes, image: str) -> None:
        """Through a container that is never started: only it can be given an archive."""
        mount = {"Type": "volume", "Source": volume, "Target": MOUNT}
        body: Json = {
            "Image": image,
            "Entrypoint": ["/nothing"],
            "Cmd": [],
            "NetworkDisabled": True,
            "Labels": self._labels,
            "HostConfig": {"NetworkMode": "none", "Mounts": [mount]},
        }
        what = "make a helper container for the runtime"
        helper = (await self._client.call("POST", "/containers/create", what, body=body))["Id"]
        try:
            async for _ in self._client.send(
                "PUT",
                f"/containers/{helper}/archive",
                "take the runtime",
                archive,
                query={"path": MOUNT},
            ):
                pass
        finally:
            await asyncio.shield(
                self._client.call(
                    "DELETE", f"/containers/{helper}", "remove a helper", query={"force": "1"}
                )
            )

    async def _inspect(self, volume: str) -> Json | None:
        try:
            found: Json = await self._client.call("GET", f"/volumes/{volume}", "show a volume")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def _create(self, name: str, labels: dict[str, str]) -> Json:
        body = {"Name": name, "Labels": labels}
        created: Json = await self._client.call(
            "POST", "/volumes/create", "make a volume for the runtime", body=body
        )
        return created


async def remove_volume(client: EngineClient, name: str) -> bool:
    """Remove a volume that nothing uses; whether it was removed. Raises: ApiError."""
    try:
        await client.call("DELETE", f"/volumes/{name}", "remove a volume")
    except ApiError as error:
        if error.status not in (404, 409):  # gone already, or in use by somebody
            raise
        return False
    return True


def _target(pointer: Json) -> str:
    """The volume with the files that a pointer volume names."""
    labels: Json = pointer.get("Labels") or {}
    return str(labels.get(DATA_LABEL, ""))


def _pointer(digest: str) -> str:
    return f"ramify-runtime-{digest}"
