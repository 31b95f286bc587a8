"""An agent that wrecks the evidence for its reward gets the least there is, and is counted.

The tests of these tasks run what the agent wrote after they have written the reward, so it can do
to the reward file whatever it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import CommandLine

from ramify.contracts.task import IsolationLevel

LEVELS = list(IsolationLevel)
REWARD = "$RAMIFY_ROOT/logs/verifier/reward.txt"
ATTACKS = {
    "missing": (f'rm -f "{REWARD}"', "missing"),
    "malformed": (f'echo plenty > "{REWARD}"', "malformed"),
    "nan": (f'echo nan > "{REWARD}"', "malformed"),
    "range": (f'echo 7 > "{REWARD}"', "range"),
    "link": (f'rm -f "{REWARD}"; echo 1 > mine; ln -s "$PWD/mine" "{REWARD}"', "tampered"),
    "directory": (f'rm -f "{REWARD}"; mkdir "{REWARD}"', "tampered"),
    "honest": ("exit 0", None),
}
DAEMON = (
    f"(setsid sh -c 'while :; do rm -rf \"{REWARD}\"; sleep 0.005; done' </dev/null "
    ">/dev/null 2>&1 &) ; "
)
TASK = """
version = "1.0"
[environment]
docker_image = "debian:bookworm"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
files = "environment/files"
outputs = ["answer.sh"]
reward_range = [-1.0, 1.0]
"""
TEST_SH = """#!/bin/sh
if [ -e answer.sh ]; then reward=1; else reward=0; fi
echo $reward > "$RAMIFY_ROOT/logs/verifier/reward.txt"
[ -e answer.sh ] && sh ./answer.sh
sleep 0.05
exit 0
"""


def make(root: Path, name: str, attack: str) -> None:
    files = {
        "task.toml": TASK,
        "instruction.md": "Write answer.sh.\n",
        "tests/test.sh": TEST_SH,
        "solution/solve.sh": "echo exit 0 > answer.sh\n",
        "environment/files/attack.sh": attack + "\n",
    }
    for file, text in files.items():
        place = root / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def wreck(ramify: CommandLine, sandbox: str, levels: Sequence[IsolationLevel]) -> None:
    tasks = Path("tasks")
    for name, (attack, _) in ATTACKS.items():
        make(tasks, name, attack)
    Path("script").write_text("cp attack.sh answer.sh\n")
    for level in levels:
        said = ramify(
            "run", tasks, "-s", sandbox, "--isolation", level, "-a", "scripted",
            "-A", "path=script", "--json",
        )  # fmt: skip
        assert said.code == 0, said.err
        *results, end = said.records
        found = {r["task_id"].partition(":")[2]: r for r in results}
        for name, (_, reason) in ATTACKS.items():
            result = found[name]
            expected = ("scored", 1.0, None) if reason is None else ("invalid", -1.0, reason)
            got = (result["outcome"], result["reward"], result.get("invalid_reason"))
            assert got == expected, f"{name} at {level}: {result}"
            assert result["grader_isolation"] == level if reason is None else True
        summary = end["summary"]
        assert summary["counted"] == len(ATTACKS), "none is left out of the mean"
        assert summary["mean"] == pytest.approx((1 - (len(ATTACKS) - 1)) / len(ATTACKS))


@pytest.mark.namespaces
def test_on_local(ramify: CommandLine) -> None:
    wreck(ramify, "local", LEVELS)


@pytest.mark.docker
def test_on_docker(ramify: CommandLine) -> None:
    wreck(ramify, "docker", [IsolationLevel.FILESYSTEM])


@pytest.mark.proof
@pytest.mark.docker
def test_on_docker_at_every_level(ramify: CommandLine) -> None:
    wreck(ramify, "docker", LEVELS)


@pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param("local", marks=pytest.mark.namespaces),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
def test_a_daemon_that_keeps_deleting(ramify: CommandLine, sandbox: str) -> None:
    """Alive where the level lets it live, and worth the minimum there; dead everywhere else."""
    make(Path("tasks"), "daemon", "exit 0")
    Path("script").write_text(f"{DAEMON} cp attack.sh answer.sh\n")
    for level, expected in (("live", -1.0), ("filesystem", 1.0)):
        said = ramify(
            "run", "tasks", "-s", sandbox, "--isolation", level, "-a", "scripted",
            "-A", "path=script", "--json",
        )  # fmt: skip
        assert said.code == 0, said.err
        result, end = said.records
        assert result["reward"] == expected, result
        assert result["outcome"] == ("invalid" if level == "live" else "scored")
        assert end["summary"]["counted"] == 1
