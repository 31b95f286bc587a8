"""Resource limits through cgroup v1 or v2. Standard library only; every call is a file write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000


class Layout(NamedTuple):
    """Where cgroups can be made here: per usable controller the directory to make them in."""

    version: int
    parents: Mapping[str, str]

    @property
    def enforced(self) -> frozenset[str]:
        """The controllers that work."""
        return frozenset(self.parents)


class Wanted(NamedTuple):
    """Limits of one sandbox: bytes, processes, cores. None leaves one out."""

    memory: int | None = None
    pids: int | None = None
    cpus: float | None = None


def discover(proc: str = "/proc") -> Layout:
    """Find out which limits can be enforced by this user. Changes nothing."""
    own = _own_cgroups(proc)
    mounts = _mounts(proc)
    v1: dict[str, str] = {}
    for controller in CONTROLLERS:
        for point, kind, options in mounts:
            if kind == "cgroup" and controller in options:
                place = _inside(point, own.get(controller, "/"))
                if os.access(place, os.W_OK | os.X_OK):
                    v1[controller] = place
    if v1:
        return Layout(1, v1)
    for point, kind, _options in mounts:
        if kind == "cgroup2":
            found = _v2_parent(point, own.get("", "/"))
            if found:
                return Layout(2, found)
    return Layout(0, {})


def _own_cgroups(proc: str) -> dict[str, str]:
    own: dict[str, str] = {}
    with open(f"{proc}/self/cgroup") as file:
        for line in file:
            _number, names, path = line.rstrip("\n").split(":", 2)
            for name in names.split(","):
                own[name] = path
    return own


def _mounts(proc: str) -> list[tuple[str, str, list[str]]]:
    found: list[tuple[str, str, list[str]]] = []
    with open(f"{proc}/self/mounts") as file:
        for line in file:
            _source, point, kind, options = line.split(" ")[:4]
            if kind in ("cgroup", "cgroup2"):
                found.append((point, kind, options.split(",")))
    return found


def _inside(point: str, path: str) -> str:
    """The directory of cgroup `path`; the mount point itself where only a part is mounted."""
    place = os.path.join(point, path.lstrip("/"))
    return place if os.path.isdir(place) else point


def _v2_parent(point: str, path: str) -> dict[str, str]:
    """A v2 cgroup that may have children with limits: it holds no process, or is the root."""
    own = _inside(point, path)
    for place in dict.fromkeys((point, os.path.dirname(own))):
        if not place.startswith(point) or not os.access(place, os.W_OK | os.X_OK):
            continue
        if not os.access(f"{place}/cgroup.subtree_control", os.W_OK):
            continue
        if place != point and _read(f"{place}/cgroup.procs").strip():
            continue
        offered = _read(f"{place}/cgroup.controllers").split()
        usable = {name: place for name in CONTROLLERS if name in offered}
        if usable:
            return usable
    return {}


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # this kernel or this cgroup does not have the file
        return ""


def _write(path: str, value: object) -> None:
    with open(path, "w") as file:
        file.write(str(value))


def make(layout: Layout, name: str, wanted: Wanted) -> list[str]:
    """Make the cgroups of one sandbox; returns their directories. Raises OSError.

    Limits whose controller is missing are left out: the provider has refused them before.
    """
    files = _v1_files(wanted) if layout.version == 1 else _v2_files(wanted)
    made: list[str] = []
    try:
        for controller, values in files.items():
            parent = layout.parents.get(controller)
            if parent is None:
                continue
            place = os.path.join(parent, name)
            if layout.version == 2:
                _enable(parent, controller)
            if place not in made:
                os.mkdir(place)
                made.append(place)
            for file, value in values:
                path = os.path.join(place, file)
                if os.path.exists(path):
                    _write(path, value)
    except OSError:
        remove(made)
        raise
    return made


def _enable(parent: str, controller: str) -> None:
    if controller not in _read(f"{parent}/cgroup.subtree_control").split():
        _write(f"{parent}/cgroup.subtree_control", f"+{controller}")


def _v1_files(wanted: Wanted) -> dict[str, list[tuple[str, object]]]:
    files: dict[str, list[tuple[str, object]]] = {}
    if wanted.memory is not None:
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        files["memory"] = [(name, wanted.memory) for name in names]
    if wanted.pids is not None:
        files["pids"] = [("pids.max", wanted.pids)]
    if wanted.cpus is not None:
        quota = max(1000, int(wanted.cpus * _PERIOD_US))
        files["cpu"] = [("cpu.cfs_period_us", _PERIOD_US), ("cpu.cfs_quota_us", quota)]
    return files


def _v2_files(wanted: Wanted) -> dict[str, list[tuple[str, object]]]:
    files: dict[str, list[tuple[str, object]]] = {}
    if wanted.memory is not None:
        files["memory"] = [("memory.max", wanted.memory), ("memory.swap.max", 0)]
    if wanted.pids is not None:
        files["pids"] = [("pids.max", wanted.pids)]
    if wanted.cpus is not None:
        quota = max(1000, int(wanted.cpus * _PERIOD_US))
        files["cpu"] = [("cpu.max", f"{quota} {_PERIOD_US}")]
    return files


def enter(places: list[str]) -> None:
    """Move this process (single-threaded), and all it starts, into cgroups. Raises OSError.

    With v1 as a thread: that spares the kernel a lock that takes milliseconds to get.
    """
    for place in places:
        threads = f"{place}/tasks"
        _write(threads if os.path.exists(threads) else f"{place}/cgroup.procs", 0)


def remove(places: list[str]) -> list[str]:
    """Remove cgroups; returns those that are still busy (right after a kill: try again)."""
    busy: list[str] = []
    for place in places:
        try:
            os.rmdir(place)
        except FileNotFoundError:
            continue
        except OSError:
            busy.append(place)
    return busy


def oom_kills(places: list[str]) -> int:
    """How often the kernel killed for memory in these cgroups."""
    for place in places:
        for file in ("memory.oom_control", "memory.events"):
            for line in _read(f"{place}/{file}").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def leftovers(layout: Layout, prefix: str) -> list[str]:
    """Directories of cgroups whose name begins with `prefix`."""
    found: list[str] = []
    for parent in sorted(set(layout.parents.values())):
        names = [entry.name for entry in os.scandir(parent) if entry.name.startswith(prefix)]
        found += [os.path.join(parent, name) for name in names]
    return found


def members(place: str) -> list[int]:
    """Pids in a cgroup."""
    return [int(line) for line in _read(f"{place}/cgroup.procs").split()]
