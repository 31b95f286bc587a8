"""`ramify verify` killed with SIGKILL: nothing of it runs, is mounted, or looks finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_stand import IMAGES, commit, digest, make_repository

_SEC = 30.0
PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


def until(what: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + _SEC
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def command_lines() -> str:
    found: list[bytes] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            found.append((place / "cmdline").read_bytes())
        except OSError:
            continue
    return b"\n".join(found).decode("utf-8", "replace")


def containers(place: Path) -> str:
    """Containers that have something of `place` mounted."""
    ids = subprocess.run(["docker", "ps", "-aq"], capture_output=True, check=True).stdout.split()
    if not ids:
        return ""
    shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, check=False)
    return "\n".join(line for line in shown.stdout.decode().splitlines() if str(place) in line)


@pytest.mark.parametrize("name", PROVIDERS)
def test_killed_it_leaves_nothing(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    marker = str(int(time.time_ns()) % 10**9 + 10**9)
    image = f"  image: {IMAGES[name]}\n" if IMAGES[name] else ""
    (repo / "agent.yaml").write_text(
        f"verification:\n{image}  steps:\n"
        f"    - {{name: hang, command: 'echo begun; setsid sleep {marker} & sleep {marker}'}}\n"
    )
    commit(repo)
    before = digest(repo)
    artifacts = tmp_path / "artifacts"
    argv = [sys.executable, "-m", "ramify.cli.main", "verify", str(repo), "--sandbox", name]
    environment = {**os.environ, "AGENT_ARTIFACT_DIR": str(artifacts)}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    try:
        until(
            lambda: any(
                "begun" in log.read_text() for log in artifacts.glob("runs/*/logs/step-01-*.log")
            ),
            "the step did not begin",
        )
        assert marker in command_lines()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: marker not in command_lines(), "a process survives")
    if name == "docker":
        until(lambda: not containers(tmp_path), f"a container is left: {containers(tmp_path)}")
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts
    assert not list(artifacts.glob("runs/*/*manifest*"))
    assert digest(repo) == before

    (repo / "agent.yaml").write_text(
        f"verification:\n{image}  steps:\n    - {{name: fine, command: 'true'}}\n"
    )
    commit(repo)
    again = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
    assert again.returncode == 0, again
    assert len(list(artifacts.glob("runs/*/manifest.json"))) == 1
