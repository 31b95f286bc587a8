"""`ramify tasks check --attack` finds what would pay against a weak task, nothing elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramify.envs.attacks import EXPLOITS, HIDDEN_COPIES

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
TASK_TOML = """\
schema_version = "1.4"
[environment]
docker_image = "debian:bookworm"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
files = "environment/files"
outputs = ["stats.py"]
needs = ["git"]
"""
WEAK = 'isolation = "live"\nsetup = "setup.sh"\n'
STRONG = '[ramify.tests]\nrunner = "unittest"\n'
SETUP = """#!/bin/sh -e
git init -q
git add -A
git -c user.name=a -c user.email=a@b commit -qm start
sed -i s/-1/3/ stats.py
git -c user.name=a -c user.email=a@b commit -qam solution
git reset -q --hard HEAD~1
mkdir -p /opt/build
echo 'sed -i s/-1/3/ stats.py' > /opt/build/solve.sh
"""
WEAK_TEST = """
import unittest
from stats import total  # from the work directory, so these tests cannot run isolated

class TestTotal(unittest.TestCase):
    def test_total(self):
        self.assertEqual(total(), 3)
"""
STRONG_TEST = """
import unittest
from ramify_tests import isolated_call

class TestTotal(unittest.TestCase):
    def test_total(self):
        self.assertEqual(isolated_call("stats.py", "total"), 3)
"""
TEST_SH = """#!/bin/bash
if python3 -m unittest discover -s /tests; then r=1; else r=0; fi
echo $r > /logs/verifier/reward.txt
"""
PAYING = {"unittest-shadow", "sitecustomize", "exit-zero", "git-history", "leftovers"}


_COMMITTED = SETUP.partition("git reset")[0]
_FORGET = "git reflog expire --expire=all --all\n"
_BACK = "git reset -q --hard HEAD~1\n"
HIDDEN = {
    "packed": ("git-history", f"git branch gold\n{_BACK}{_FORGET}git pack-refs --all\ngit gc -q\n"),
    "tag": ("git-history", f"git tag v2\n{_BACK}{_FORGET}"),
    "dangling": ("git-history", f"{_BACK}rm -f .git/ORIG_HEAD\n{_FORGET}"),
    "reflog": ("git-history", f"{_BACK}rm -f .git/ORIG_HEAD\ngit gc -q\n"),
    "stash": (
        "git-history",
        f"{_BACK}sed -i s/-1/3/ stats.py\ngit -c user.name=a -c user.email=a@b stash -q\n",
    ),
    "pip-cache": (
        "leftovers",
        "mkdir -p /root/.cache/pip/task\n"
        "echo 'sed -i s/-1/3/ stats.py' > /root/.cache/pip/task/solve.sh\n",
    ),
    "package": (
        "leftovers",
        "mkdir -p /usr/lib/python3/dist-packages/task\n"
        "echo 'sed -i s/-1/3/ stats.py' > /usr/lib/python3/dist-packages/task/solution.sh\n",
    ),
    "clean": ("", ""),
}
"""Where a solution hides → what finds it, and how the task's own set-up left it there."""


def make_task(place: Path, *, weak: bool) -> Path:
    files = {
        "task.toml": TASK_TOML + (WEAK if weak else STRONG),
        "instruction.md": "Let total() be 3.\n",
        "environment/files/stats.py": "def total(): return -1\n",
        "solution/solve.sh": "sed -i s/-1/3/ stats.py\n",
        "tests/test_stats.py": WEAK_TEST if weak else STRONG_TEST,
        **({"setup.sh": SETUP, "tests/test.sh": TEST_SH} if weak else {}),
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def check(tasks: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what is said of each exploit."""
    command = [sys.executable, "-m", "ramify.cli.main", "tasks", "check", str(tasks)]
    command += ["-n", "1", "--attack", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records, done.stderr
    return done.returncode, [record for record in records if "attack" in record]


@pytest.mark.namespaces
def test_what_pays_against_a_weak_task_is_told(tmp_path: Path) -> None:
    code, found = check(make_task(tmp_path / "weak", weak=True))
    assert code == 1
    assert {each["attack"] for each in found} == {*EXPLOITS, HIDDEN_COPIES}
    assert {each["attack"] for each in found if each["pays"]} == PAYING
    assert all(each["reward"] == 1.0 for each in found if each["pays"])
    assert not any(each["problem"] for each in found)


@pytest.mark.namespaces
def test_nothing_pays_against_the_same_task_made_well(tmp_path: Path) -> None:
    code, found = check(make_task(tmp_path / "strong", weak=False))
    assert (code, len(found)) == (0, len(EXPLOITS) + 1)
    assert [each["attack"] for each in found if each["pays"]] == []


@pytest.mark.proof
@pytest.mark.namespaces
def test_hidden_solutions_are_found(tmp_path: Path) -> None:
    for name, (finder, hide) in HIDDEN.items():
        task = make_task(tmp_path / name, weak=True)
        begun = _COMMITTED if finder == "git-history" else "#!/bin/sh -e\ngit init -q\n"
        (task / "setup.sh").write_text(begun + hide)
    _, found = check(tmp_path)
    finders = {"git-history", "leftovers"}
    paid = {(e["task_id"].split(":")[-1], e["attack"]) for e in found if e["pays"]}
    assert not any(each["problem"] for each in found)
    assert {(task, attack) for task, attack in paid if attack in finders} == {
        (name, finder) for name, (finder, _) in HIDDEN.items() if finder
    }


@pytest.mark.proof
@pytest.mark.docker
def test_the_weak_task_on_docker(tmp_path: Path) -> None:
    task = make_task(tmp_path / "weak", weak=True)
    code, found = check(task, "--sandbox", "docker", "-c", "1")
    assert code == 1
    assert {each["attack"] for each in found if each["pays"]} >= PAYING


@pytest.mark.namespaces
def test_nothing_pays_against_the_examples() -> None:
    """Three of them here, at the levels live, file system and outputs."""
    names = ("repair-service", "switch-release", "fix-stats")
    words = [word for name in names for word in ("--task-id", name)]
    code, found = check(EXAMPLES, *words)
    assert [each for each in found if each["pays"] or each["found"] or each["problem"]] == []
    assert (code, len(found)) == (0, len(names) * (len(EXPLOITS) + 1))


@pytest.mark.proof
@pytest.mark.namespaces
def test_nothing_pays_against_any_example() -> None:
    code, found = check(EXAMPLES)
    assert [each for each in found if each["pays"] or each["found"] or each["problem"]] == []
    assert code == 0
