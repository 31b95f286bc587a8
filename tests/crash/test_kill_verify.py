"""`ramify verify` killed at random times: nothing runs or is mounted, no manifest is half there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

_STEPS = 4
_LONGEST_SEC = 4.5
_GONE_SEC = 20.0
_IMAGES = {"local": "host", "docker": "debian:bookworm-slim"}


def until(what: Callable[[], object], why: str) -> float:
    """Seconds until it is so."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() < begin + _GONE_SEC, why
        time.sleep(0.02)
    return time.monotonic() - begin


def processes_with(marker: str) -> list[str]:
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (place / "cmdline").read_bytes():
                found.append(place.name)
        except OSError:  # ended meanwhile
            continue
    return found


def containers_of(place: Path) -> list[str]:
    """Containers that have something of `place` mounted, running or not."""
    ids = subprocess.run(["docker", "ps", "-aq"], capture_output=True, check=True).stdout.split()
    shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, check=False)
    described: list[dict[str, object]] = json.loads(shown.stdout) if ids else []
    return [str(each["Id"]) for each in described if str(place) in json.dumps(each)]


def complete(manifest: Path) -> None:
    """A manifest that is there is whole, and of a run that ended."""
    content = json.loads(manifest.read_text())
    assert content["status"] == "PASS"
    assert len(content["commands_executed"]) == _STEPS
    assert all(step["status"] == "passed" for step in content["steps"])


def kill_at_random(place: Path, provider: str, count: int, seed: int) -> None:
    """Kill `count` runs; after each of them look at what is left."""
    repo = place / "repo"
    repo.mkdir()
    git = ["git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@example.com"]
    marker = str(2_000_000_000 + os.getpid())
    steps = "".join(
        f"    - {{name: s{n}, command: 'setsid sleep {marker} & sleep 0.2'}}\n"
        for n in range(_STEPS)
    )
    (repo / "agent.yaml").write_text(f"verification:\n  steps:\n{steps}")
    subprocess.run(["git", "init", "-q", repo], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    artifacts, chance = place / "artifacts", random.Random(seed)
    argv = [sys.executable, "-m", "ramify.cli.main", "verify", str(repo), "--wait"]
    argv += ["--sandbox", provider, "--image", _IMAGES[provider]]
    environment = {**os.environ, "AGENT_ARTIFACT_DIR": str(artifacts)}
    gone: list[float] = []
    reached: dict[str, int] = {}
    for _ in range(count):
        known = set(artifacts.glob("runs/*"))
        process = subprocess.Popen(
            argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.5, _LONGEST_SEC))
        process.send_signal(signal.SIGKILL)
        process.wait()
        slow = until(lambda: not processes_with(marker), "a process survives")
        if provider == "docker":
            slow += until(lambda: not containers_of(place), "a container is left")
        gone.append(slow)
        assert str(place) not in Path("/proc/self/mountinfo").read_text()
        found = {path.name for path in artifacts.glob("runs/*/*manifest*")}
        assert found <= {"manifest.json"}, "half a manifest is left"
        new = set(artifacts.glob("runs/*")) - known
        logs = max((len(list(run.glob("logs/step-*"))) for run in new), default=0)
        ended = any((run / "manifest.json").exists() for run in new)
        where = "ended" if ended else f"step {logs}" if logs else "before the steps"
        reached[where] = reached.get(where, 0) + 1
        for manifest in artifacts.glob("runs/*/manifest.json"):
            complete(manifest)
    last = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
    assert last.returncode == 0, last
    print(f"{provider}: {count} kills; {dict(sorted(reached.items()))}; gone {max(gone):.2f} s")


PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_some_kills(provider: str, tmp_path: Path) -> None:
    kill_at_random(tmp_path, provider, 3, seed=1)


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_many_kills(provider: str, tmp_path: Path) -> None:
    kill_at_random(tmp_path, provider, 20, seed=2)
