"""The caller's mounts as a daemon on this machine makes them: binds, and overlays as volumes."""

from __future__ import annotations

import asyncio
import os
import re
import socket

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import Mount, SandboxSpec
from ramify.planes.sandbox.docker.client import ApiError, Daemon, EngineClient, Json
from ramify.planes.sandbox.docker.owners import WORLD_LABEL
from ramify.planes.sandbox.mounting import UPPER, WORK, check_mounts, empty_scratch, make_scratch

_SEPARATORS = re.compile(r"([\\,:])")
_REMOVE_TRIES = 40


def offered(daemon: Daemon, address: str) -> frozenset[str]:
    """The modes of mounts that a daemon can make: it must see the directories of this machine.

    Overlays need one that mounts as this machine's root.
    """
    if not address.startswith("unix://"):
        return frozenset()
    security = " ".join(daemon.info.get("SecurityOptions") or ())
    same = daemon.info.get("Name") == socket.gethostname()
    plain = "name=rootless" not in security and "name=userns" not in security
    return frozenset({"ro", "rw", "cow"} if same and plain else {"ro", "rw"})


def check(spec: SandboxSpec, modes: frozenset[str]) -> None:
    """Refuse mounts that cannot be had. Raises: UnsupportedError, ConfigError."""
    if spec.mounts and spec.compose is not None:
        raise UnsupportedError("a Compose project takes no mounts but those of its file")
    if spec.mounts and not modes:
        raise UnsupportedError(
            "the Docker daemon runs on another machine, so it cannot mount directories of this one:"
            " use a daemon here (DOCKER_HOST=unix:///...) or --sandbox local"
        )
    check_mounts(spec, modes, "docker")


def described(spec: SandboxSpec, name: str) -> list[Json]:
    """The mounts of a container, as the daemon takes them; `open_overlays` comes first."""
    made: list[Json] = []
    for number, mount in enumerate(spec.mounts):
        one: Json = {"Target": mount.target, "ReadOnly": mount.mode == "ro"}
        if mount.mode == "cow":
            one |= {"Type": "volume", "Source": _volume(name, number)}
            one["VolumeOptions"] = {"NoCopy": True}
        else:
            one |= {"Type": "bind", "Source": mount.source}
            one["BindOptions"] = {"Propagation": "rprivate"}
        made.append(one)
    return made


async def open_overlays(
    client: EngineClient, spec: SandboxSpec, name: str, labels: dict[str, str]
) -> None:
    """Make the volumes of copy-on-write mounts. Raises: ApiError, OSError."""
    make_scratch(spec.mounts, None)
    for number, mount in enumerate(spec.mounts):
        if mount.scratch is None:
            continue
        body: Json = {
            "Name": _volume(name, number),
            "Driver": "local",
            "DriverOpts": {"type": "overlay", "device": "overlay", "o": _options(mount)},
            "Labels": {**labels, WORLD_LABEL: name},
        }
        await client.call("POST", "/volumes/create", "make an overlay", body=body)


async def close_overlays(
    client: EngineClient, spec: SandboxSpec, name: str, *, failed: bool = False
) -> None:
    """Remove the volumes once the container is gone; what was written stays, unless it `failed`.

    Raises: SandboxError.
    """
    for number, mount in enumerate(spec.mounts):
        if mount.scratch is None:
            continue
        await _remove(client, _volume(name, number))
    if spec.mounts:
        await asyncio.to_thread(empty_scratch, spec.mounts, upper=failed)


async def _remove(client: EngineClient, volume: str) -> None:
    """A container that is just going may still hold it."""
    for tried in range(_REMOVE_TRIES):
        try:
            await client.call("DELETE", f"/volumes/{volume}", "remove an overlay")
            return
        except ApiError as error:
            if error.status == 404:
                return
            if error.status != 409 or tried == _REMOVE_TRIES - 1:
                raise
        await asyncio.sleep(0.05)


def _volume(name: str, number: int) -> str:
    return f"{name}-cow-{number}"


def _options(mount: Mount) -> str:
    """As for `local`: the upper directory needs no knowledge of newer features to be read."""
    scratch = mount.scratch or ""
    places = {
        "lowerdir": mount.source,
        "upperdir": os.path.join(scratch, UPPER),
        "workdir": os.path.join(scratch, WORK),
    }
    # Separators in a path are written with a backslash.
    options = [f"{key}=" + _SEPARATORS.sub(r"\\\1", place) for key, place in places.items()]
    options += ["redirect_dir=nofollow", "metacopy=off", "nosuid", "nodev"]
    if os.geteuid() == 0:
        options.append("volatile")  # it leaves directories that only root can remove
    return ",".join(options)
