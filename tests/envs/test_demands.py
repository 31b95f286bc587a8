"""What tasks demand of the users of a sandbox, where it has only one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ramify import compose
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.task import Task
from ramify.envs.demands import check_runner, check_users
from ramify.testing.fakes import FAKE_CAPABILITIES

ONE_USER = msgspec.structs.replace(FAKE_CAPABILITIES, users=False)
BARE = msgspec.structs.replace(ONE_USER, isolation="none")


def a_task(place: Path, tables: str) -> Task:
    (place / "t" / "tests").mkdir(parents=True)
    (place / "t" / "instruction.md").write_text("Do it.\n")
    (place / "t" / "tests" / "test.sh").write_text("exit 0\n")
    (place / "t" / "tests" / "test_it.py").write_text(
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): pass\n"
    )
    environment = '[environment]\ndocker_image = "debian:bookworm"\nworkdir = "/app"\n'
    (place / "t" / "task.toml").write_text(f'schema_version = "1.4"\n{environment}{tables}')
    [task] = compose.taskset(str(place))
    return task


@pytest.mark.parametrize(
    ("tables", "who"),
    [
        ('[agent]\nuser = "nobody"\n', "the agent is to run as user nobody"),
        ("[verifier]\nuser = 1000\n", "the verifier is to run as user 1000"),
    ],
)
def test_a_user_whom_the_sandbox_does_not_have(tmp_path: Path, tables: str, who: str) -> None:
    task = a_task(tmp_path, tables)
    check_users(task, "local", FAKE_CAPABILITIES)
    with pytest.raises(
        UnsupportedError, match=f"{who}, and `local` has one user only here.*doctor"
    ):
        check_users(task, "local", ONE_USER)


@pytest.mark.parametrize("user", ["", '[agent]\nuser = "root"\n[verifier]\nuser = 0\n'])
def test_root_is_there_always(tmp_path: Path, user: str) -> None:
    check_users(a_task(tmp_path, user), "local", ONE_USER)


def test_our_own_runner_needs_a_user_of_its_own(tmp_path: Path) -> None:
    task = a_task(tmp_path, '[ramify.tests]\nrunner = "unittest"\n')
    check_runner(task, "local", FAKE_CAPABILITIES)
    with pytest.raises(UnsupportedError, match="`local` cannot give here; see `ramify doctor`"):
        check_runner(task, "local", ONE_USER)
    with pytest.raises(UnsupportedError, match="cannot give; use --sandbox local or docker"):
        check_runner(task, "bare", BARE)
