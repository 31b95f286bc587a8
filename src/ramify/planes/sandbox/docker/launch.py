"""Starting a container with our supervisor in it, and making sure that it goes away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ramify.contracts.errors import SandboxLostError, SandboxStartError, UnsupportedError
from ramify.contracts.sandbox import MIB, NetworkMode, SandboxImage, SandboxSpec
from ramify.planes.sandbox.docker.bundle import MOUNT
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json
from ramify.planes.sandbox.docker.containers import NO_NAME_SERVER, Seat, attachment
from ramify.planes.sandbox.docker.link import Link
from ramify.planes.sandbox.docker.mounted import described
from ramify.planes.sandbox.docker.networks import connect_networks
from ramify.planes.sandbox.docker.outlet import CAPABILITIES, own_addresses
from ramify.planes.sandbox.docker.wire import PUBLIC
from ramify.planes.sandbox.mirrors import mirror_addresses

DEFAULT_PIDS = 1024

_SHM_BYTES = 256 * MIB
_START_SEC = 120.0
_HELLO_SEC = 30.0
_GONE_SEC = 60.0
_LOADER_VARIABLES = ("LD_", "GLIBC_", "MALLOC_", "GCONV_", "LOCPATH", "PYTHON")
_LOCKDOWN = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7,
}  # fmt: skip
_LOCKDOWN_CAPS = tuple(_LOCKDOWN)
LOCKDOWN_NUMBERS = tuple(_LOCKDOWN.values())
"""What root keeps in a locked-down container, by the kernel's numbers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a container is made from."""

    name: str
    spec: SandboxSpec
    image: SandboxImage
    volume: str
    command: tuple[str, ...]
    labels: dict[str, str]
    seat: Seat | None = None
    """Its place in a Compose project, for a container of one."""


async def launch(client: EngineClient, plan: Plan, lost: Callable[[str], None]) -> Link:
    """Create, attach, start; returns the link once the supervisor is there.

    `lost` is called when the link ends. After an error or cancellation the container may be left:
    call `remove_container`. Raises: SandboxStartError, UnsupportedError.
    """
    link: Link | None = None
    try:
        await client.call(
            "POST",
            "/containers/create",
            "create a container",
            query={"name": plan.name},
            body=_body(plan, await mirror_addresses() if _is_open(plan.spec) else ()),
            timeout_sec=_START_SEC,
        )
        if plan.spec.read_only and plan.seat is None:
            await _check_volumes(client, plan)
        if plan.seat is not None:
            # With a way out, the bridge was the first.
            more = plan.seat.networks if _is_open(plan.spec) else plan.seat.networks[1:]
            await connect_networks(client, plan.name, more)
        reader, writer = await client.attach(plan.name)
        link = Link(reader, writer, lost)
        await client.call(
            "POST",
            f"/containers/{plan.name}/start",
            "start the container",
            timeout_sec=_START_SEC,
        )
        async with asyncio.timeout(_HELLO_SEC):
            await link.greeted()
        return link
    except BaseException as error:
        if link is not None:
            await asyncio.shield(link.aclose())
        if isinstance(error, ApiError):
            raise _refused(error, plan) from error
        if isinstance(error, SandboxLostError):
            raise SandboxStartError(f"the container did not start: {error}") from error
        if isinstance(error, TimeoutError):
            raise SandboxStartError(
                f"the supervisor in the container was silent for {_HELLO_SEC:.0f} s"
            ) from error
        raise


async def _check_volumes(client: EngineClient, plan: Plan) -> None:
    """Refuse an image that brings directories which a read-only root leaves open."""
    made: Json = await client.call("GET", f"/containers/{plan.name}/json", "show a container")
    ours = {mount.target for mount in plan.spec.mounts}
    found = sorted(m["Destination"] for m in made["Mounts"] if m["RW"])
    if opened := [target for target in found if target not in ours]:
        raise UnsupportedError(
            f"the image {plan.image.id} declares volumes ({', '.join(opened)}), which Docker makes"
            " writable also where the root is read-only: mount something there, or use an image"
            " without"
        )


async def remove_container(client: EngineClient, name: str) -> bool:
    """Remove a container and its anonymous volumes, and wait until it is gone.

    Returns whether there was one. Raises: ApiError, SandboxError.
    """
    try:
        await client.call(
            "DELETE",
            f"/containers/{name}",
            "remove a container",
            query={"force": "1", "v": "1"},
            timeout_sec=_GONE_SEC,
        )
        return True
    except ApiError as error:
        if error.status == 404:
            return False
        if error.status != 409:  # 409: its removal is under way
            raise
    async with asyncio.timeout(_GONE_SEC):
        while True:
            try:
                await client.call("GET", f"/containers/{name}/json", "show a container")
            except ApiError as error:
                if error.status == 404:
                    return True
                raise
            await asyncio.sleep(0.05)


def _body(plan: Plan, mirrors: tuple[str, ...]) -> Json:
    seat = plan.seat
    # A bare name takes the image's value away: its LD_PRELOAD is not for our supervisor.
    unset = [name for name in plan.image.env if name.startswith(_LOADER_VARIABLES)]
    host = _host_config(plan, plan.spec)
    return {
        "Image": plan.image.id,
        "Hostname": (seat.service.hostname if seat else None) or plan.name[-12:],
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": list(plan.command),
        "Cmd": _arguments(plan, mirrors),
        "Env": unset,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": plan.labels,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "StopSignal": "SIGTERM",
        **(_sit(plan, seat, host) if seat is not None else {}),
        "HostConfig": host,
    }


def _arguments(plan: Plan, mirrors: tuple[str, ...]) -> list[str]:
    if not _is_open(plan.spec):
        return []
    # A public address of this machine is no less its own than a private one.
    own = sorted({socket.inet_ntoa(address) for address in own_addresses()})
    exceptions = [*(f"SHUT={address}" for address in own), *(f"TCP={at}" for at in mirrors)]
    if plan.seat is not None:
        exceptions += [f"NET={subnet}" for subnet in plan.seat.subnets]
        exceptions += [f"DNS={address}" for address in plan.seat.name_servers]
    return [PUBLIC, *exceptions]


def _sit(plan: Plan, seat: Seat, host: Json) -> Json:
    """Give the agent's container what the Compose file gives it; the spec's limits go first."""
    service, resources, limits = seat.service, seat.service.resources, plan.spec.limits
    host["Mounts"] += seat.mounts(plan.labels)
    host["Tmpfs"] = dict(service.tmpfs)
    host["ReadonlyRootfs"] = service.read_only or plan.spec.read_only
    host["ShmSize"] = resources.shm or _SHM_BYTES
    host["PidsLimit"] = limits.pids or resources.pids or DEFAULT_PIDS
    if limits.memory_mb is None and resources.memory:
        host["Memory"] = host["MemorySwap"] = resources.memory
    if limits.cpus is None and resources.cpus:
        host["NanoCpus"] = round(resources.cpus * 1_000_000_000)
    if not plan.spec.lockdown:
        host["CapAdd"] += service.cap_add
        host["CapDrop"] = sorted({*host.get("CapDrop", []), *service.cap_drop, "NET_RAW", "MKNOD"})
    if _is_open(plan.spec):
        return {}
    host.update(NO_NAME_SERVER)
    return attachment(seat, host)


def _host_config(plan: Plan, spec: SandboxSpec) -> Json:
    limits = spec.limits
    mounts: list[Json] = [
        {
            "Type": "volume",
            "Source": plan.volume,
            "Target": MOUNT,
            "ReadOnly": True,
            # Docker makes a volume that is missing; then it is marked as ours and swept.
            "VolumeOptions": {"Labels": plan.labels, "NoCopy": True},
        }
    ]
    if not plan.image.pristine:
        # A preload list that the agent left behind must not reach our supervisor.
        mounts.append(
            {
                "Type": "bind",
                "Source": "/dev/null",
                "Target": "/etc/ld.so.preload",
                "ReadOnly": True,
            }
        )
    mounts += described(spec, plan.name)
    config: Json = {
        "AutoRemove": True,
        "ReadonlyRootfs": spec.read_only,
        "LogConfig": {"Type": "none"},
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": limits.pids or DEFAULT_PIDS,
        "ShmSize": _SHM_BYTES,
        "NetworkMode": "bridge" if _is_open(spec) else "none",
        "Mounts": mounts,
    }
    if limits.memory_mb is not None:
        config["Memory"] = config["MemorySwap"] = limits.memory_mb * MIB
    if limits.cpus is not None:
        config["NanoCpus"] = round(limits.cpus * 1_000_000_000)
    if limits.disk_mb is not None:
        config["StorageOpt"] = {"size": f"{limits.disk_mb}M"}
    add: list[str] = []
    if spec.lockdown:
        config["CapDrop"] = ["ALL"]
        add += _LOCKDOWN_CAPS
    if _is_open(spec):
        add += CAPABILITIES
        # Raw frames would go past the policies; without IPv6 there is one way out to watch.
        config["CapDrop"] = config.get("CapDrop") or ["NET_RAW"]
        config["Sysctls"] = {"net.ipv6.conf.all.disable_ipv6": "1"}
    config["CapAdd"] = add
    return config


def _is_open(spec: SandboxSpec) -> bool:
    return spec.network.mode is NetworkMode.OPEN


def _refused(error: ApiError, plan: Plan) -> Exception:
    if "executable file not found" in error.reason and plan.command[0] == "python3":
        return UnsupportedError(
            "this machine's Python cannot run on the Docker daemon's system, and the image "
            f"{plan.image.id} has no python3 of its own: use an image with Python 3.11 or newer"
        )
    return SandboxStartError(str(error))
