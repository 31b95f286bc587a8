"""`tasks init` writes a task that works as it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError
from ramify.contracts.task import Task
from ramify.tasks.scaffold import init_task
from ramify.tasks.taskset import load_taskset

RunByHand = Callable[[Task, bool], Awaitable[float]]


@pytest.mark.parametrize("solve", [True, False])
async def test_a_new_task_works(tmp_path: Path, run_by_hand: RunByHand, solve: bool) -> None:
    place = init_task(tmp_path / "mine" / "first", "first")
    (task,) = load_taskset(place)
    assert task.task_id == "mine:first"
    assert task.metadata["package_info"] == {"name": "example/first"}
    assert await run_by_hand(task, solve) == float(solve)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    place = init_task(tmp_path / "first", "first")
    (place / "instruction.md").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        init_task(tmp_path / "first", "first")
    assert (place / "instruction.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "a:b", "a/b"])
def test_names_that_cannot_be_item_ids_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a task"):
        init_task(tmp_path / "x", name)
