"""What an office holds, seen from outside Ramify: a program of its own, run inside by any means.

`look(run)` gives the whole state as plain values, the same for equal worlds. Nothing in here knows
how the sandbox was made: `run` starts a command inside and returns what it printed, and limits are
read in the host's own /proc and /sys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

Run = Callable[[Sequence[str]], Awaitable[bytes]]
State = dict[str, Any]

_INSIDE = r"""
import errno, hashlib, http.client, json, os, socket, sqlite3, subprocess, sys

targets, password = json.loads(sys.argv[1])


def dumps():
    found = {}
    for name in sorted(os.listdir("/data")):
        if name.endswith(".db"):
            database = sqlite3.connect(f"file:/data/{name}?mode=ro", uri=True, timeout=30)
            found[name] = list(database.iterdump())
            database.close()
    if os.path.exists("/data/postgres"):
        env = {**os.environ, "PGPASSWORD": password}
        line = ["pg_dump", "-h", "127.0.0.1", "-U", "office", "office"]
        text = subprocess.check_output(line, env=env, text=True)
        # The order of rows in a table means nothing; newer versions put a random word around.
        rows = [row for row in text.splitlines() if "restrict " not in row]
        found["postgres"] = sorted(rows)
    if os.path.exists("/data/redis"):
        cli = ["redis-cli", "--no-auth-warning", "-a", password, "--raw"]
        for key in sorted(subprocess.check_output([*cli, "KEYS", "*"], text=True).split()):
            found[key] = subprocess.check_output([*cli, "HGETALL", key], text=True).splitlines()
            found[key] = sorted(zip(found[key][::2], found[key][1::2]))
    return found


def files(*places):
    found = {}
    for place in places:
        for folder, folders, names in os.walk(place):
            # What servers keep in their own way is dumped instead.
            folders[:] = sorted(n for n in folders if n not in ("postgres", "redis"))
            for name in folders + sorted(names):
                path = os.path.join(folder, name)
                about = os.lstat(path)
                facts = [oct(about.st_mode), about.st_uid, about.st_gid]
                if os.path.islink(path):
                    facts.append(os.readlink(path))
                elif name in names:
                    if ".db" in name:
                        continue
                    with open(path, "rb") as file:
                        facts.append(hashlib.sha256(file.read()).hexdigest())
                found[path] = facts
    return found


def logs():
    found = {}
    for port in range(8101, 8105):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/_log")
        answer = json.load(connection.getresponse())
        connection.close()
        found[answer["service"]] = answer["entries"]
    return found


def processes():
    own, pid = set(), os.getpid()
    while pid:
        own.add(pid)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    found = {}
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        if int(name) in own:
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                argv = file.read().decode(errors="replace").split("\0")[:-1]
            with open(f"/proc/{name}/status") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            links = [os.readlink(f"/proc/{name}/{link}") for link in ("exe", "cwd", "root")]
            with open(f"/proc/{name}/limits") as file:
                limits = file.read()
        except OSError:
            continue  # it has ended
        kept = ("PPid", "Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs")
        found[name] = [argv, *links, limits, {key: status[key].split() for key in kept}]
    return found


def mounts():
    # Where a layer lies on the host may differ; where it is seen and how may not.
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            where, options = before.split()[4:6]
            kind, _, super_options = after.split()
            shown = [o for o in super_options.split(",") if not o.startswith(
                ("lowerdir", "upperdir", "workdir", "gid=", "uid="))]
            found.setdefault(where, []).append([sorted(options.split(",")), kind, sorted(shown)])
    return found


def network():
    with open("/proc/net/dev") as file:
        devices = sorted(line.split(":")[0].strip() for line in file if ":" in line)
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            with open(table) as file:
                rows = [line.split() for line in file][1:]
            listening |= {row[1] for row in rows if row[3] == "0A"}
    reached = {}
    for host, port in targets:
        with socket.socket() as attempt:
            attempt.settimeout(5)
            try:
                attempt.connect((host, port))
                reached[f"{host}:{port}"] = "reached"
            except OSError as error:
                reached[f"{host}:{port}"] = errno.errorcode.get(error.errno, "timeout")
    return {"devices": devices, "listening": sorted(listening), "reached": reached}


json.dump({
    "rows": dumps(), "files": files("/data", "/srv/office"), "logs": logs(),
    "processes": processes(), "mounts": mounts(), "network": network(),
    "pid namespace": os.readlink("/proc/self/ns/pid"),
}, sys.stdout)
"""

_CONTROLS = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max",),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"),
}


async def look(run: Run, targets: Sequence[tuple[str, int]] = (), password: str = "") -> State:
    """Rows, files, logs, processes, mounts, network and limits of one world.

    `targets` are addresses outside that the inside tries to reach; `password` is that of database
    servers.
    """
    text = await run(["python3", "-I", "-B", "-c", _INSIDE, json.dumps([list(targets), password])])
    state: State = json.loads(text)
    state["limits"] = _limits(state.pop("pid namespace"))
    return state


def differences(one: State, two: State, *, but: Sequence[str] = ()) -> list[str]:
    """Each place where two states differ, as a path and both values, at most 20."""
    found: list[str] = []
    _compare("", {k: v for k, v in one.items() if k not in but},
             {k: v for k, v in two.items() if k not in but}, found)  # fmt: skip
    return found[:20]


def _compare(at: str, one: Any, two: Any, found: list[str]) -> None:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            _compare(f"{at}/{key}", one.get(key), two.get(key), found)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, pair in enumerate(zip(one, two, strict=True)):
            _compare(f"{at}/{number}", *pair, found)
    elif isinstance(one, list) and isinstance(two, list):
        found.append(f"{at}: {len(one)} and {len(two)} entries: {one[-1:]} {two[-1:]}")
    elif one != two:
        found.append(f"{at}: {str(one)[:200]} {str(two)[:200]}")


def _limits(namespace: str) -> dict[str, Any]:
    """What the host's control groups allow the processes of a pid namespace."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and _namespace(place) == namespace:
            groups = (place / "cgroup").read_text().splitlines()
            return dict(sorted(pair for line in groups for pair in _controls(line)))
    return {}


def _namespace(place: Path) -> str:
    try:
        return os.readlink(place / "ns" / "pid")
    except OSError:
        return ""


def _controls(line: str) -> list[tuple[str, str]]:
    _, controllers, path = line.split(":", 2)
    found: list[tuple[str, str]] = []
    for kind, names in _CONTROLS.items():
        if controllers and kind not in controllers.split(","):
            continue
        roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        if controllers:
            roots = [Path("/sys/fs/cgroup") / controllers, Path("/sys/fs/cgroup") / kind]
        for root in roots:
            for name in names:
                file = root / path.lstrip("/") / name
                if file.is_file():
                    found.append((f"{kind} {name}", file.read_text().strip()))
    return found
