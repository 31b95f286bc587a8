"""Private hosts that the operator of this machine lets open sandboxes reach: package mirrors."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from ramify.contracts.sandbox import NetworkMode, NetworkPolicy

_VARIABLE = "RAMIFY_MIRRORS"


def with_mirrors(policy: NetworkPolicy, environ: Mapping[str, str] | None = None) -> NetworkPolicy:
    """The policy of a sandbox, as it holds on this machine.

    `open` means public addresses. Where packages come from a mirror with a private address,
    `RAMIFY_MIRRORS=host:port,...` names it, and an open sandbox reaches that port of that host
    too; a task cannot ask for this. Other modes are left as they are.
    """
    if policy.mode is not NetworkMode.OPEN:
        return policy
    text = (os.environ if environ is None else environ).get(_VARIABLE, "")
    mirrors = tuple(part.strip() for part in text.split(",") if part.strip())
    return msgspec.structs.replace(policy, allowed_hosts=(*policy.allowed_hosts, *mirrors))
