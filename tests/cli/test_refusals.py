"""What would be run in vain is refused before anything starts; what is left can be run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import CommandLine

BARE = ("--sandbox", "bare")


@pytest.fixture
def graded(tasks: Path) -> Path:
    """Two tasks, of which our own runner grades `beta`."""
    with (tasks / "beta" / "task.toml").open("a") as file:
        file.write('[ramify.tests]\nrunner = "unittest"\n')
    (tasks / "beta" / "tests" / "test_it.py").write_text(
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): pass\n"
    )
    return tasks


@pytest.mark.parametrize("command", [("run",), ("tasks", "check")])
def test_our_own_runner_without_isolation(
    ramify: CommandLine, graded: Path, command: tuple[str, ...]
) -> None:
    said = ramify(*command, graded, *BARE)
    assert said.code == 2
    assert said.complaint.startswith("ramify: tasks:beta: ramify.tests.runner: ")
    assert "--sandbox local or docker" in said.complaint
    assert said.complaint.endswith("--exclude tasks:beta")
    assert said.out == ""
    assert not Path("runs").exists(), "nothing was made"
    assert ramify(*command, graded, *BARE, "--exclude", "tasks:beta").code == 0


def test_what_cannot_be_served_is_left_out_by_name(ramify: CommandLine, graded: Path) -> None:
    said = ramify("run", graded, *BARE, "--skip-unsupported", "--json")
    assert said.code == 0
    assert [record["task_id"] for record in said.records[:-1]] == ["tasks:alpha"]
    assert said.err.count("note: left out: tasks:beta: ramify.tests.runner: ") == 1
    assert said.err.count("ramify.tests.runner") == 1, "said once"
    said = ramify("run", graded, *BARE, "--skip-unsupported", "--task-id", "beta", "-o", "none")
    assert said.code == 2
    assert said.complaint.startswith("ramify: none of the tasks can be served here: tasks:beta: ")
    assert not Path("none").exists()


def test_a_rubric_needs_no_runner(ramify: CommandLine, graded: Path) -> None:
    Path("rubric.py").write_text("def always(completion) -> float:\n    return 0.5\n")
    said = ramify("run", graded, *BARE, "--rubric", "rubric.py:always")
    assert said.code == 0, said.err
    assert "mean 0.500" in said.out


def test_all_but_some_tasks(ramify: CommandLine, tasks: Path) -> None:
    said = ramify("run", tasks, *BARE, "-a", "nop", "--exclude", "alpha", "--limit", "1", "--json")
    assert [r["task_id"] for r in said.records[:-1]] == ["tasks:beta"]
    said = ramify("run", tasks, *BARE, "--exclude", "alpha", "--exclude", "beta")
    assert (said.code, "all are excluded" in said.complaint) == (2, True)
    said = ramify("run", tasks, *BARE, "--exclude", "alhpa")
    assert (said.code, "did you mean 'alpha'" in said.complaint) == (2, True)


def test_an_image_for_tasks_that_say_themselves_what_they_run_on(
    ramify: CommandLine, tasks: Path
) -> None:
    said = ramify("run", tasks, *BARE, "--image", "python:3")
    assert said.code == 2
    assert "--image python:3 is for tasks that come without a directory" in said.complaint
    assert "tasks:alpha" in said.complaint
    assert "the image debian:bookworm" in said.complaint
    assert "the other 1: leave --image out" in said.complaint
    assert not Path("runs").exists(), "nothing was made"


def test_an_image_where_none_can_be_run(
    ramify: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("questions.py").write_text(
        "from ramify import from_dataset\n"
        "def load():\n"
        "    return from_dataset([{'example_id': 1, 'question': '6 times 7?'}], 'sums')\n"
    )
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    Path("rubric.py").write_text("def always(completion) -> float:\n    return 0.5\n")
    command = ("run", "questions:load", *BARE, "-a", "nop", "--rubric", "rubric.py:always")
    said = ramify(*command, "--image", "python:3")
    assert said.code == 2
    assert "`bare` runs no image; leave --image python:3 out" in said.complaint
    assert ramify(*command).code == 0


def test_a_taskset_that_takes_options_is_listed(ramify: CommandLine, tasks: Path) -> None:
    said = ramify(
        "tasks", "list", "harbor", "-T", "taskset_id=mine", "-T", f"path={tasks}", "--json"
    )
    assert said.code == 0, said.err
    assert [record["task_id"] for record in said.records] == ["mine:alpha", "mine:beta"]
    said = ramify("tasks", "list", tasks, "-T", "colour=red")
    assert (said.code, "unknown option of directory 'colour'" in said.complaint) == (2, True)
