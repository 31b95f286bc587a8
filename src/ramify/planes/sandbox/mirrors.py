"""Private hosts that the operator of this machine lets open sandboxes reach: package mirrors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy
from ramify.planes.sandbox.egress import parse_authority

_VARIABLE = "RAMIFY_MIRRORS"
_LOOKUP_SEC = 5.0


def with_mirrors(policy: NetworkPolicy, environ: Mapping[str, str] | None = None) -> NetworkPolicy:
    """The policy of a sandbox, as it holds on this machine.

    `open` means public addresses. Where packages come from a mirror with a private address,
    `RAMIFY_MIRRORS=host:port,...` names it, and an open sandbox reaches that port of that host
    too; a task cannot ask for this. Other modes are left as they are.
    """
    if policy.mode is not NetworkMode.OPEN:
        return policy
    mirrors = _named(os.environ if environ is None else environ)
    return msgspec.structs.replace(policy, allowed_hosts=(*policy.allowed_hosts, *mirrors))


async def mirror_addresses(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The IPv4 addresses of those hosts, each as `address:port`; none of what is not found.

    Raises: ConfigError (an entry is not `host:port`).
    """
    found: list[str] = []
    for entry in _named(os.environ if environ is None else environ):
        parsed = parse_authority(entry, None)
        if parsed is None or parsed[1] is None:
            raise ConfigError(
                f"{entry!r} is not a host and port; write `host:port`", field=_VARIABLE
            )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOOKUP_SEC):
                rows = await loop.getaddrinfo(
                    *parsed, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
        except OSError:  # TimeoutError is one: it is not to be reached now
            continue
        found += [f"{row[4][0]}:{parsed[1]}" for row in rows]
    return tuple(dict.fromkeys(found))


def _named(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part.strip() for part in environ.get(_VARIABLE, "").split(",") if part.strip())
