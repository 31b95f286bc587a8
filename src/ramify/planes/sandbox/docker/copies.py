"""Directories of a task that its services may write: copied into volumes of their own."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO

from ramify.contracts.errors import ConfigError
from ramify.planes.sandbox.docker.client import EngineClient, Json

_IN_MEMORY = 8 * 1024 * 1024
_CHUNK = 1024 * 1024
_TARGET = "/volume"


async def fill_volume(
    client: EngineClient, volume: str, folder: Path, image: str, labels: Mapping[str, str]
) -> None:
    """Copy the content of a host directory into a volume; links are copied as links.

    Through a container on `image` that is never started. Raises: ConfigError (it cannot be
    read), ApiError.
    """
    archive = await asyncio.to_thread(_packed, folder)
    mount = {"Type": "volume", "Source": volume, "Target": _TARGET,
             "VolumeOptions": {"NoCopy": True}}  # fmt: skip
    body: Json = {
        "Image": image,
        "Entrypoint": ["/nothing"],
        "Cmd": [],
        "NetworkDisabled": True,
        "Labels": dict(labels),
        "HostConfig": {"NetworkMode": "none", "Mounts": [mount]},
    }
    with archive:
        made: Json = await client.call(
            "POST", "/containers/create", "make a helper container for a volume", body=body
        )
        helper = f"/containers/{made['Id']}"
        try:
            async for _ in client.send(
                "PUT", f"{helper}/archive", "fill a volume", _pieces(archive),
                query={"path": _TARGET},
            ):  # fmt: skip
                pass
        finally:
            query = {"force": "1", "v": "1"}
            await asyncio.shield(client.call("DELETE", helper, "remove a helper", query=query))


def _packed(folder: Path) -> IO[bytes]:
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (the caller's)
    try:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(folder, arcname=".")
    except OSError as error:
        spool.close()
        raise ConfigError(f"cannot be copied: {error.strerror}", file=str(folder)) from error
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return spool


async def _pieces(archive: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(archive.read, _CHUNK):
        yield chunk
