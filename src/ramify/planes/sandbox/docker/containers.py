"""How a service of a Compose project becomes a container: the bodies of the daemon's calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ramify.planes.sandbox.docker.client import Json
from ramify.planes.sandbox.docker.composemounts import Mount
from ramify.planes.sandbox.docker.composeservice import Service

_PIDS = 1024
_SHM_BYTES = 256 * 1024 * 1024
_LOG = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}

# The name server of a network asks the host's when it does not know a name, which is a way out
# even where there is no other: it is given one that nobody answers at.
NO_NAME_SERVER: Json = {"Dns": ["127.0.0.1"], "DnsOptions": ["timeout:1", "attempts:1"]}


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of a container in a project's world.

    Attributes:
        service: what the Compose file says of it.
        networks: each network on the daemon, with the names that the container has there.
        subnets: the addresses of these networks.
        volumes: names in the file, and directories that are copied → volumes on the daemon.
        peers: names of the other services and their aliases.
        name_servers: the engine's, for a container with a way out.
    """

    service: Service
    networks: tuple[tuple[str, tuple[str, ...]], ...]
    subnets: tuple[str, ...]
    volumes: Mapping[str, str]
    peers: tuple[str, ...]
    name_servers: tuple[str, ...] = ()

    def mounts(self, labels: Mapping[str, str]) -> list[Json]:
        """What the service mounts. `labels` are for volumes that Docker makes on the way."""
        return [_mount(mount, self.volumes, labels) for mount in self.service.mounts]


def sidecar_body(
    seat: Seat, image: str, labels: Mapping[str, str], gate: str | None = None
) -> Json:
    """The container of a service beside the agent's: on the project's networks alone.

    With a `gate`, in the network namespace of that container.
    """
    service, resources = seat.service, seat.service.resources
    policy, _, retries = service.restart.partition(":")
    host: Json = {
        "LogConfig": _LOG,
        "SecurityOpt": ["no-new-privileges"],
        "CapAdd": list(service.cap_add),
        # Raw frames could claim another's address, also the host's.
        "CapDrop": sorted({*service.cap_drop, "NET_RAW", "MKNOD"}),
        "PidsLimit": resources.pids or _PIDS,
        "ShmSize": resources.shm or _SHM_BYTES,
        "Mounts": seat.mounts(labels),
        "Tmpfs": dict(service.tmpfs),
        "ReadonlyRootfs": service.read_only,
        "Init": service.init,
        "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(retries or 0)},
    }
    if resources.memory:
        host["Memory"] = host["MemorySwap"] = resources.memory
    if resources.cpus:
        host["NanoCpus"] = round(resources.cpus * 1_000_000_000)
    body: Json = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in service.env.items()],
        "Labels": dict(labels),
        "Tty": service.tty,
        "OpenStdin": service.stdin_open,
        # Ours are run instead (health.py): Docker waits a whole interval before the first.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }
    if gate is not None:
        host["NetworkMode"] = f"container:{gate}"
    else:
        body["Hostname"] = service.hostname or service.name
        host.update(NO_NAME_SERVER)
        body.update(attachment(seat, host))
    if service.entrypoint is not None:
        body["Entrypoint"] = list(service.entrypoint) or [""]
    if service.command is not None:
        body["Cmd"] = list(service.command)
    optional = {"User": service.user, "WorkingDir": service.workdir,
                "StopSignal": service.stop_signal}  # fmt: skip
    body.update({key: value for key, value in optional.items() if value is not None})
    return body


def attachment(seat: Seat, host: Json) -> Json:
    """Attach a container to its first network, where it has one (more: `endpoint`)."""
    if not seat.networks:
        host["NetworkMode"] = "none"
        return {}
    network, aliases = seat.networks[0]
    host["NetworkMode"] = network
    return {"NetworkingConfig": {"EndpointsConfig": {network: endpoint(aliases)}}}


def endpoint(aliases: Sequence[str]) -> Json:
    """How a container is known on a network."""
    return {"Aliases": list(aliases)}


def _mount(mount: Mount, volumes: Mapping[str, str], labels: Mapping[str, str]) -> Json:
    made: Json = {"Target": mount.target, "ReadOnly": mount.read_only}
    if mount.kind == "volume":
        made |= {"Type": "volume", "Source": volumes.get(mount.source, "")}
        made["VolumeOptions"] = {"Labels": dict(labels)}
    elif mount.source in volumes:
        made |= {"Type": "volume", "Source": volumes[mount.source]}
        made["VolumeOptions"] = {"NoCopy": True}
    else:
        made |= {"Type": "bind", "Source": mount.source, "ReadOnly": True}
    return made
