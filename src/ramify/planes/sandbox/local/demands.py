"""What a spec demands: shared by the `local` and `bare` providers."""

from __future__ import annotations

from ramify.contracts.sandbox import Limits


def demanded_limits(limits: Limits) -> frozenset[str]:
    """Names of the limits that are set."""
    values = {
        "memory_mb": limits.memory_mb,
        "cpus": limits.cpus,
        "pids": limits.pids,
        "disk_mb": limits.disk_mb,
    }
    return frozenset(name for name, value in values.items() if value is not None)
