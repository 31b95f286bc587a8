"""What an engine may leave behind, counted from outside: by ps, docker, /proc/mounts, cgroups."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path


def remains(home: Path) -> list[str]:
    """Everything of engines whose RAMIFY_HOME is `home` that is still there."""
    return [*processes(home), *mounts(home), *cgroups(), *containers(home), *networks(home)]


def wait_until_gone(home: Path, seconds: float = 2.0) -> list[str]:
    """What is left after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while left := remains(home):
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []


def processes(home: Path) -> list[str]:
    """Processes started with this RAMIFY_HOME, or inside a sandbox below it."""
    found = []
    marks = (f"RAMIFY_HOME={home}".encode(), str(home).encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
            mountinfo = (entry / "mountinfo").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if marks[0] in environ or marks[1] in command or marks[1] in mountinfo:
            found.append(f"process {entry.name}: {command.replace(bytes(1), b' ').decode()}")
    return found


def mounts(home: Path) -> list[str]:
    return [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines()
            if str(home) in line]  # fmt: skip


def cgroups() -> list[str]:
    return [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("**/ramify*")
            if path.is_dir()]  # fmt: skip


def containers(home: Path) -> list[str]:
    """Containers of engines with this home: their label names the engine's lock file."""
    return [
        f"container {line}" for line in _docker("ps", "-a", "--format", _FORMAT)
        if str(home) in line
    ]  # fmt: skip


def networks(home: Path) -> list[str]:
    form = "{{.ID}} {{.Labels}}"
    listed = _docker("network", "ls", "--filter", "label=ramify=1", "--format", form)
    return [f"network {line}" for line in listed if str(home) in line]


_FORMAT = '{{.ID}} {{.Status}} {{.Label "ramify.lock"}}'


def _docker(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.CalledProcessError):
        return []  # no engine, so nothing of ours in it
    return done.stdout.splitlines()
