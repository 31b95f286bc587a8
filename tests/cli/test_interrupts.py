"""Ctrl-C once: cancel, record, clean up, 130. Twice: now. And the same command goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import make_task, program, started

sys.path.append(str(Path(__file__).parents[1] / "crash"))
from remains import Witness

PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
    "bare",
]

WORLD = """
[environment]
name = "still"
services = [{ name = "idle", command = "sleep 600", port = 4000, health = "tcp" }]
"""


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    with Witness(tmp_path / "home") as watching:
        yield watching


def arguments(sandbox: str) -> list[str]:
    return ["run", "tasks", "-s", sandbox, "-c", "2", "--out", "job", "--json"]


def working(tmp_path: Path, sandbox: str, witness: Witness) -> subprocess.Popen[str]:
    """A run of which one task is done and two others are at work; a fourth has yet to start."""
    tasks = tmp_path / "tasks"
    make_task(tasks, "alpha")
    for name in ("beta", "delta", "gamma"):
        place = make_task(tasks, name)
        (place / "solution" / "solve.sh").write_text("sleep 3\necho 42 > answer.txt\n")
    running = started(*arguments(sandbox), env={"RAMIFY_HOME": str(witness.home)}, cwd=tmp_path)
    assert running.stdout is not None
    assert json.loads(running.stdout.readline())["task_id"] == "tasks:alpha"
    time.sleep(0.7)
    return running


def recorded(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "job" / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def end(running: subprocess.Popen[str], signals: int) -> tuple[float, str]:
    """Interrupt it; seconds until it had ended, and what it said on standard error."""
    began = time.monotonic()
    for _ in range(signals):
        running.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = running.communicate(timeout=60)
    assert "Traceback" not in said
    return time.monotonic() - began, said


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_once(sandbox: str, tmp_path: Path, witness: Witness) -> None:
    running = working(tmp_path, sandbox, witness)
    seconds, said = end(running, 1)
    assert running.returncode == 130, said
    assert seconds < 10
    assert "interrupted" in said
    assert witness.left_after() == []
    kept = recorded(tmp_path)
    outcomes = Counter(result["outcome"] for result in kept)
    assert outcomes["scored"] == 1
    assert outcomes["cancelled"] == len(kept) - 1 <= 2, "nothing new was started"
    if sandbox == "local":
        again = started(*arguments(sandbox), env={"RAMIFY_HOME": str(witness.home)}, cwd=tmp_path)
        out, said = again.communicate(timeout=60)
        assert again.returncode == 0, said
        *results, end_of_job = [json.loads(line) for line in out.splitlines()]
        assert Counter(r["outcome"] for r in results) == {"scored": 4}
        assert end_of_job["summary"]["mean"] == 1.0


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_twice(sandbox: str, tmp_path: Path, witness: Witness) -> None:
    running = working(tmp_path, sandbox, witness)
    seconds, said = end(running, 2)
    assert running.returncode == 130, said
    assert seconds <= 2.5, "two seconds, and a little for a busy machine"
    assert witness.left_after() == []
    kept = recorded(tmp_path)
    assert [r["task_id"] for r in kept if r["outcome"] == "scored"] == ["tasks:alpha"]


def test_while_tasks_are_checked(tmp_path: Path, witness: Witness) -> None:
    place = make_task(tmp_path / "tasks")
    (place / "solution" / "solve.sh").write_text("sleep 60\n")
    env = {"RAMIFY_HOME": str(witness.home)}
    running = started("tasks", "check", "tasks", "-s", "bare", env=env, cwd=tmp_path)
    time.sleep(2.0)
    seconds, said = end(running, 1)
    assert running.returncode == 130, said
    assert seconds < 10
    assert witness.left_after() == []


@pytest.mark.namespaces
@pytest.mark.parametrize("pause", [0.0, 0.3, 1.5])
def test_twice_while_a_world_is_checked(tmp_path: Path, witness: Witness, pause: float) -> None:
    """As a terminal does it: all processes of the foreground get the signals."""
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(WORLD)
    env = {"RAMIFY_HOME": str(witness.home)}
    running = started(
        "env", "check", manifest, "--image-free", env=env, cwd=tmp_path, start_new_session=True
    )
    while not any(
        path.read_text() for path in Path(f"/proc/{running.pid}/task").glob("*/children")
    ):
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(pause)  # from the probe of the machine on, to the wait for a service
    for _ in range(2):
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.02)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    told = [line for line in said.splitlines() if line]
    assert told[0] == "interrupted: cleaning up (again to stop now)"
    assert told[1:] in ([], ["ramify: interrupted"]), "nothing complains"
    assert witness.left_after() == []


def test_a_reader_that_leaves_is_no_mistake(tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        make_task(tmp_path / "tasks", name, word=name * 20_000)
    command = shlex.join(program("tasks", "list", "tasks", "--json"))
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -c 5"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""


WHILE_IT_CLOSES = """
import asyncio, os, signal
from asyncio.selector_events import BaseSelectorEventLoop
from ramify.cli.interrupts import own_loop

closed = BaseSelectorEventLoop._close_self_pipe

def close_and_be_interrupted(loop):
    closed(loop)
    os.kill(os.getpid(), signal.SIGINT)

BaseSelectorEventLoop._close_self_pipe = close_and_be_interrupted

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, print, "told")

with own_loop() as runner:
    runner.run(main())
print("closed")
"""


def test_while_the_loop_is_being_closed() -> None:
    done = subprocess.run([sys.executable, "-c", WHILE_IT_CLOSES], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
