"""Private networks on a daemon: bridges that lead nowhere, and who is on them."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Mapping
from pathlib import Path

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json
from ramify.planes.sandbox.docker.containers import endpoint

_REMOVE_TRIES = 40
_SUBNET_TRIES = 20
_POOL = ipaddress.IPv4Network("10.128.0.0/9")
_BITS = 26


def check_policy(policy: NetworkPolicy) -> None:
    """Raises: ConfigError (hosts are listed where the mode takes no list)."""
    if policy.allowed_hosts and policy.mode is not NetworkMode.ALLOWLIST:
        raise ConfigError(
            f'allowed_hosts is set, but the mode is {policy.mode.value!r}; set mode = "allowlist"',
            field="network",
        )


async def make_network(client: EngineClient, name: str, labels: Mapping[str, str]) -> str:
    """Make a network without a way out, on which the host has no address; its subnet.

    Raises: ApiError.
    """
    tries = _SUBNET_TRIES
    while True:
        subnet = _some_subnet()
        body: Json = {
            "Name": name,
            "CheckDuplicate": True,
            "Internal": True,
            "Labels": dict(labels),
            "Options": {"com.docker.network.bridge.inhibit_ipv4": "true"},
            "IPAM": {"Config": [{"Subnet": subnet}]},
        }
        try:
            await client.call("POST", "/networks/create", "make a network", body=body)
            return subnet
        except ApiError as error:
            tries -= 1
            if "overlaps" not in error.reason or not tries:
                raise


def _some_subnet() -> str:
    """A small subnet by chance: the daemon's own pools hold some thirty networks in all.

    The host has no address on it and no route to it, so it is in nobody's way there.
    """
    offset = secrets.randbelow(_POOL.num_addresses >> (32 - _BITS)) << (32 - _BITS)
    return f"{_POOL.network_address + offset}/{_BITS}"


async def connect_networks(
    client: EngineClient, container: str, networks: tuple[tuple[str, tuple[str, ...]], ...]
) -> None:
    """Attach a container to more networks. Raises: ApiError."""
    for network, aliases in networks:
        body = {"Container": container, "EndpointConfig": endpoint(aliases)}
        await client.call("POST", f"/networks/{network}/connect", "join a network", body=body)


async def leave_bridge(client: EngineClient, container: str) -> None:
    """Take a container off the bridge: its loopback is what it keeps. Raises: ApiError."""
    body: Json = {"Container": container, "Force": True}
    await client.call("POST", "/networks/bridge/disconnect", "leave the network", body=body)


async def remove_network(client: EngineClient, name: str) -> bool:
    """Remove a network, once the last container has left; whether there was one.

    Raises: ApiError, where it is still in use after seconds.
    """
    for attempt in range(_REMOVE_TRIES):
        try:
            await client.call("DELETE", f"/networks/{name}", "remove a network")
            return True
        except ApiError as error:
            if error.status == 404:
                return False
            if error.status != 403 or attempt == _REMOVE_TRIES - 1:
                raise
        await asyncio.sleep(0.1)
    return False


def host_name_servers() -> tuple[str, ...]:
    """Name servers of this machine (IPv4, not its own loopback), which a daemon here asks too."""
    found: list[str] = []
    try:
        text = Path("/etc/resolv.conf").read_text("utf-8", "replace")
    except OSError:  # a machine without one asks nobody
        return ()
    for words in (line.split() for line in text.splitlines()):
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:  # of another family
            continue
        if not address.is_loopback:
            found.append(str(address))
    return tuple(found)
