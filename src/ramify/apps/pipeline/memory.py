"""How much memory steps get where the pipeline does not say."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from ramify.contracts.sandbox import MIB, Capabilities, Limits

_SHARE = 0.8
_MEMINFO = Path("/proc/meminfo")
_OWN = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_FIELD = re.compile(r"^(MemTotal|SwapTotal):\s+(\d+) kB$", re.MULTILINE)


def with_memory(limits: Limits, can: Capabilities) -> Limits:
    """The limits, with one on memory where there is none and the sandbox can enforce it.

    Four fifths of what this machine has: a step that takes more ends as `oom`, and not as the
    machine, with everything else that runs on it.
    """
    if limits.memory_mb is not None or "memory_mb" not in can.limits:
        return limits
    share = int(machine_memory() * _SHARE) // MIB
    return replace(limits, memory_mb=share) if share > 0 else limits


def machine_memory(meminfo: Path = _MEMINFO, own: tuple[Path, ...] = _OWN) -> int:
    """Bytes of memory and swap that this machine (or the container it is) has; 0 where unknown."""
    found = dict(_FIELD.findall(_text(meminfo)))
    if "MemTotal" not in found:
        return 0
    total = sum(int(kib) for kib in found.values()) * 1024
    bounds = [int(text) for text in map(_text, own) if text.isdigit()]
    return min([total, *bounds])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # another kernel, or another version of cgroups
        return ""
