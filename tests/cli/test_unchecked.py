"""`ramify run` says, once, which tasks nobody checked with the sandbox they run in."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from ramify import compose
from ramify.contracts.task import Hardening, IsolationLevel

NOTE = "never checked on bare, so their test scripts run without hardening"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "home"))


def remember(tasks: Path, name: str, provider: str) -> None:
    package = compose.taskset(str(tasks)).get_task(name).package
    assert package is not None
    compose.remember_level(package.digest, provider, IsolationLevel.WORKDIR, Hardening.PLAIN)


def test_it_is_told_until_the_tasks_are_checked(ramify: CommandLine, tasks: Path) -> None:
    (tasks / "beta" / "instruction.md").write_text("Another task than alpha.\n")
    first = ramify("run", tasks, "-s", "bare", "--json")
    assert [line for line in first.err.splitlines() if NOTE in line] == [
        f"note: 2 of 2 tasks were {NOTE}, at the default level: ramify tasks check {tasks} -s bare"
    ]
    assert len(first.records) == 3, "standard output is JSON alone"
    remember(tasks, "alpha", "bare")
    remember(tasks, "beta", "local")
    second = ramify("run", tasks, "-s", "bare", "-o", "second")
    assert f"note: 1 of 2 tasks was {NOTE}" in second.err
    assert "note:" not in second.out
    assert "never checked" not in ramify("score", "second").err
    remember(tasks, "beta", "bare")
    assert "never checked" not in ramify("run", tasks, "-s", "bare", "-o", "third").err


def test_where_no_script_decides_nothing_is_told(ramify: CommandLine, tasks: Path) -> None:
    Path("rubric.py").write_text("def one(completion):\n    return 1.0\n")
    said = ramify("run", tasks, "-s", "bare", "--rubric", "rubric.py:one")
    assert "never checked" not in said.err + said.out
