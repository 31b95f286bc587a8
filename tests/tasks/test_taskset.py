"""Tasksets: where tasks are found, how they are called, and that reading is lazy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError, UnknownNameError, UnsupportedError
from ramify.contracts.task import Task, Taskset
from ramify.tasks.scaffold import init_task
from ramify.tasks.taskset import MemoryTaskset, load_taskset


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    root = tmp_path / "My tasks!"
    for group, name in (("", "zeta"), ("", "alpha"), ("group", "beta"), ("group", "alpha")):
        init_task(root / group / name, name)
    (root / "docs").mkdir()
    (root / ".hidden").mkdir()
    (root / "README.md").write_text("x")
    return root


def test_a_directory_of_tasks(collection: Path) -> None:
    taskset = load_taskset(collection)
    assert isinstance(taskset, Taskset)
    assert taskset.taskset_id == "My-tasks"
    assert len(taskset) == 4
    ids = ["My-tasks:alpha", "My-tasks:group/alpha", "My-tasks:group/beta", "My-tasks:zeta"]
    assert [task.task_id for task in taskset] == ids
    assert taskset.get_task("My-tasks:group/beta") is taskset.get_task("group/beta")


def test_one_task_is_a_taskset_of_one(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taskset = load_taskset(collection / "alpha")
    assert [task.task_id for task in taskset] == ["My-tasks:alpha"]
    monkeypatch.chdir(collection / "alpha")
    assert [task.task_id for task in load_taskset(".")] == ["My-tasks:alpha"]
    assert [t.task_id for t in load_taskset(".", "other/set")] == ["other/set:alpha"]


def test_an_unknown_task_is_named_with_the_nearest(collection: Path) -> None:
    taskset = load_taskset(collection)
    with pytest.raises(UnknownNameError, match="did you mean 'zeta'"):
        taskset.get_task("zetta")
    with pytest.raises(UnknownNameError, match="did you mean 'My-tasks:zeta'"):
        taskset.get_task("My-task:zeta")


def test_tasks_are_read_when_they_are_reached(collection: Path) -> None:
    (collection / "alpha" / "task.toml").write_text("[")
    (collection / "old").mkdir()
    (collection / "old" / "task.yaml").write_text("instruction: x\nrun_tests_in_same_shell: true")
    taskset = load_taskset(collection)
    assert len(taskset) == 5
    assert taskset.get_task("zeta").input.startswith("The work directory")
    with pytest.raises(ConfigError, match=r"alpha/task.toml: is not valid TOML"):
        taskset.get_task("alpha")
    with pytest.raises(UnsupportedError, match=r"old/task.yaml"):
        taskset.get_task("old")


def test_one_run_sees_one_content(collection: Path) -> None:
    taskset = load_taskset(collection)
    before = taskset.get_task("alpha")
    (collection / "alpha" / "instruction.md").write_text("something else")
    assert taskset.get_task("alpha") == before
    assert load_taskset(collection).get_task("alpha") != before


@pytest.mark.parametrize("content", [None, "empty", "docs"])
def test_a_place_without_tasks_is_refused(tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "place"
    if content is not None:
        (place / content).mkdir(parents=True)
    with pytest.raises(ConfigError, match="no such directory" if content is None else "no task"):
        load_taskset(place)


def test_a_taskset_in_memory_refuses_doubles_and_strangers() -> None:
    first, second = Task("set:1", input="a"), Task("set:2", input="b")
    taskset = MemoryTaskset("set", [second, first], {"kind": "x"})
    assert isinstance(taskset, Taskset)
    assert [*taskset] == [second, first]
    assert taskset.default_grading_spec == {"kind": "x"}
    assert taskset.get_task("2") is taskset.get_task("set:2") is second
    with pytest.raises(ConfigError, match="'set:1' is there twice"):
        MemoryTaskset("set", [first, first])
    with pytest.raises(ConfigError, match="belongs to another taskset"):
        MemoryTaskset("other", [first])
    for wrong in ("", "a b", "a:b", " a"):
        with pytest.raises(ConfigError, match="is not a taskset id"):
            MemoryTaskset(wrong, [])


def test_listing_many_tasks_reads_none_of_them(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"t{number}").mkdir()
        (tmp_path / f"t{number}" / "task.toml").write_text("not TOML")
        os.chmod(tmp_path / f"t{number}" / "task.toml", 0)
    assert len(load_taskset(tmp_path)) == 300
