"""The profile of a foreign test script: what the agent's directory can do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from verifier_stand import Room, rollout, shell

import ramify
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import Hardening, IsolationLevel, ScriptProfile
from ramify.envs.check import TaskCheck, check_tasks
from ramify.envs.options import RunOptions
from ramify.planes.agent.program import ProgramAgent
from ramify.planes.environment.package import provision_package
from ramify.planes.reward.profile import python_gap
from ramify.planes.reward.script import ScriptVerifier
from ramify.planes.sandbox.local import LocalProvider
from ramify.tasks.package import read_task

pytestmark = pytest.mark.namespaces

WORKDIR = IsolationLevel.WORKDIR
ISOLATED, PLAIN = ScriptProfile(Hardening.ISOLATED, ""), ScriptProfile()
TASK_TOML = """
version = "1.0"
[environment]
docker_image = "python:3.12-slim"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
isolation = "workdir"
"""
# Like many a test.sh: the tests run from the work directory, and their exit code decides.
BY_UNITTEST = """\
cd /app
if python3 -m unittest discover -q -s /tests; then r=1; else r=0; fi
echo $r > /logs/verifier/reward.txt
"""
TEST_PY = """\
import unittest
from pathlib import Path
class Answer(unittest.TestCase):
    def test_it(self):
        self.assertEqual(Path("/app/answer.py").read_text(), "VALUE = 42\\n")
"""
BY_IMPORT = """\
cd /app
if [ "$(python3 -c 'import answer; print(answer.VALUE)')" = 42 ]; then r=1; else r=0; fi
echo $r > /logs/verifier/reward.txt
"""
BY_WRITING = """\
cd /tests && echo 'VALUE = 42' > wanted.py || exit 1
if cmp -s wanted.py /app/answer.py; then r=1; else r=0; fi
echo $r > /logs/verifier/reward.txt
"""
SEES = """\
{ echo "$HOME"; ls -A "$HOME"; touch "$HOME/mine" && echo writable; } > /logs/verifier/seen
echo 1 > /logs/verifier/reward.txt
"""
SOLVE = "echo 'VALUE = 42' > answer.py"
SHADOW = "mkdir unittest && echo 'import os; os._exit(0)' > unittest/__init__.py"


def task(root: Path, test_sh: str, env: str = "") -> Path:
    files = {
        "task.toml": TASK_TOML + env,
        "instruction.md": "Answer.\n",
        "tests/test.sh": test_sh,
        "tests/test_answer.py": TEST_PY,
        "solution/solve.sh": SOLVE,
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


async def graded(tmp_path: Path, path: Path, does: str, profile: ScriptProfile) -> VerifyResult:
    package = read_task(path, "set:one").package
    assert package is not None
    provider = LocalProvider()
    try:
        room = Room(provider, SandboxSpec(host_root=True, workdir="/app"))
        verifier = ScriptVerifier(WORKDIR, provision_package, profile)
        return await rollout(room, tmp_path, WORKDIR, shell(does), package, verifier)
    finally:
        await provider.aclose()


@pytest.mark.parametrize(("profile", "pays"), [(PLAIN, 1.0), (ISOLATED, 0.0)])
async def test_a_module_in_the_work_directory_shadows_only_plain_tests(
    tmp_path: Path, profile: ScriptProfile, pays: float
) -> None:
    path = task(tmp_path / "task", BY_UNITTEST)
    assert (await graded(tmp_path / "bad", path, SHADOW, profile)).reward == pays
    honest = await graded(tmp_path / "good", path, SOLVE, profile)
    assert honest.reward == 1
    said = honest.details["hardening"]
    assert said["profile"] == profile.hardening.value
    assert said.get("why", "") == profile.why


async def test_isolated_tests_have_an_empty_home_and_what_the_task_declares(
    tmp_path: Path,
) -> None:
    path = task(tmp_path / "one", SEES)
    await graded(tmp_path / "a", path, "true", ISOLATED)
    seen = (tmp_path / "a/artifacts/verifier/logs/seen").read_text()
    assert seen == "/logs/home\nwritable\n"
    declared = '[verifier.env]\nHOME = "/tests"\n'
    await graded(tmp_path / "b", task(tmp_path / "two", SEES, declared), "true", ISOLATED)
    assert (tmp_path / "b/artifacts/verifier/logs/seen").read_text().startswith("/tests\n")


async def checked(path: Path) -> TaskCheck:
    (found,) = [check async for check in check_tasks(path, repeats=1)]
    return found


async def test_what_the_check_finds_is_what_runs(tmp_path: Path, ramify_home: Path) -> None:
    path = task(tmp_path / "task", BY_UNITTEST)

    async def attacked(name: str) -> tuple[float | None, str]:
        agent = ProgramAgent(["sh", "-c", SHADOW])
        report = await ramify.run(
            path, agent=agent, sandbox="local", options=RunOptions(out=tmp_path / name)
        )
        return report.results[0].reward, report.results[0].config_hash

    before = await attacked("unchecked")
    found = await checked(path)
    assert (found.ok, found.level, found.profile) == (True, WORKDIR, Hardening.ISOLATED)
    after = await attacked("checked")
    assert (before[0], after[0]) == (1.0, 0.0)
    assert before[1] != after[1]


@pytest.mark.parametrize("script", [BY_IMPORT, BY_WRITING])
async def test_a_task_that_imports_from_its_directory_or_writes_to_its_tests_stays_plain(
    tmp_path: Path, ramify_home: Path, script: str
) -> None:
    found = await checked(task(tmp_path / "task", script))
    assert (found.ok, found.level, found.profile) == (True, WORKDIR, Hardening.PLAIN)
    assert (found.oracle, found.nop) == ((1.0,), (0.0,))


@pytest.mark.parametrize(
    ("says", "gap"),
    [
        ("echo 3 9", "Python 3.9 imports from the work directory"),
        ("echo 3 10", "Python 3.10 imports"),
        ("echo 3 11", ""),
        ('exec /usr/bin/python3.11 "$@"', ""),
        ("echo 3 9; exit 1", ""),
        ("echo 3 9 of mine", ""),
        ("yes 3 9", ""),
    ],
)
async def test_an_old_python_is_said(tmp_path: Path, says: str, gap: str) -> None:
    """What does not know PYTHONSAFEPATH is not called isolated without a word."""
    (tmp_path / "python3").write_text(f"#!/bin/sh\n{says}\n")
    provider = LocalProvider(tmp_path / "home")
    try:
        sandbox = await provider.create(SandboxSpec(host_root=True, env={"PATH": "/first:/bin"}))
        await sandbox.upload(tmp_path / "python3", "/first/python3", mode=0o755)
        found = await python_gap(sandbox)
        assert found.startswith(gap) if gap else not found
    finally:
        await provider.aclose()
