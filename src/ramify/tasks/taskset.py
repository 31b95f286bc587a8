"""Tasksets: a directory of task directories, read lazily, or Tasks held in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.contracts.task import ExecutionHints, Task, Taskset
from ramify.tasks.package import is_task_dir, read_task


class MemoryTaskset:
    """A materialised taskset: every Task is at hand, in the order given.

    Raises:
        ConfigError: two tasks with one id, a task of another taskset, or a taskset id that is
            not canonical.
    """

    def __init__(
        self,
        taskset_id: str,
        tasks: Iterable[Task],
        default_grading_spec: Mapping[str, Any] | None = None,
        hints: ExecutionHints | None = None,
    ) -> None:
        _check_taskset_id(taskset_id)
        self._taskset_id = taskset_id
        self._default_grading_spec = default_grading_spec
        self._hints = hints or ExecutionHints()
        self._tasks: dict[str, Task] = {}
        for task in tasks:
            if task.id.taskset_id != taskset_id:
                raise ConfigError(
                    f"{task.task_id!r} belongs to another taskset than {taskset_id!r}",
                    field="task_id",
                )
            if task.id.item_id in self._tasks:
                raise ConfigError(f"{task.task_id!r} is there twice", field="task_id")
            self._tasks[task.id.item_id] = task

    @property
    def taskset_id(self) -> str:
        """The first part of every task id in it."""
        return self._taskset_id

    @property
    def default_grading_spec(self) -> Mapping[str, Any] | None:
        """Applies to each task without a grading spec of its own."""
        return self._default_grading_spec

    @property
    def hints(self) -> ExecutionHints:
        """Execution hints."""
        return self._hints

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def get_task(self, task_id: str) -> Task:
        """The task with this canonical id, or item id. Raises UnknownNameError."""
        return self._tasks[_item_id(task_id, self._taskset_id, self._tasks)]


class DirectoryTaskset:
    """Task directories below one place, each read when it is first asked for.

    Making one only lists directories; a task that cannot be read raises its ConfigError or
    UnsupportedError when it is reached. A Task is read once, so that all rollouts of one run see
    one content. Order is that of the item ids.

    Args:
        taskset_id: canonical.
        places: item id → task directory.
        default_grading_spec: applies to each of them.
        hints: execution hints.
    """

    def __init__(
        self,
        taskset_id: str,
        places: Mapping[str, Path],
        default_grading_spec: Mapping[str, Any] | None = None,
        hints: ExecutionHints | None = None,
    ) -> None:
        _check_taskset_id(taskset_id)
        self._taskset_id = taskset_id
        self._places = dict(sorted(places.items()))
        self._default_grading_spec = default_grading_spec
        self._hints = hints or ExecutionHints()
        self._read: dict[str, Task] = {}

    @property
    def taskset_id(self) -> str:
        """The first part of every task id in it."""
        return self._taskset_id

    @property
    def default_grading_spec(self) -> Mapping[str, Any] | None:
        """Applies to each task without a grading spec of its own."""
        return self._default_grading_spec

    @property
    def hints(self) -> ExecutionHints:
        """Execution hints."""
        return self._hints

    def __iter__(self) -> Iterator[Task]:
        # `map` and not a generator: after a task that cannot be read, `next` gives the one after.
        return map(self._task, self._places)

    def __len__(self) -> int:
        return len(self._places)

    def get_task(self, task_id: str) -> Task:
        """The task with this canonical id, or item id.

        Raises:
            UnknownNameError: no such task; offers the nearest.
            ConfigError, UnsupportedError: as `read_task`.
        """
        return self._task(_item_id(task_id, self._taskset_id, self._places))

    def _task(self, item: str) -> Task:
        if item not in self._read:
            task_id = f"{self._taskset_id}:{item}"
            self._read[item] = read_task(self._places[item], task_id)
        return self._read[item]


def load_taskset(path: Path | str, taskset_id: str | None = None) -> Taskset:
    """The taskset at a path: one task directory, or a directory of them (also one level down).

    Item ids are directory names, `group/name` for tasks one level down. The taskset's id is the
    directory's name made canonical; for one task directory, that of the directory it stands in.

    Raises:
        ConfigError: no such directory, or no task in it.
    """
    root = Path(path).resolve()
    if not root.is_dir():
        what = "is a file" if root.is_file() else "no such directory"
        raise ConfigError(f"{what}; give a task or a directory of tasks", file=str(path))
    if is_task_dir(root):
        places, collection = {root.name: root}, root.parent
    else:
        places, collection = _places(root), root
    if not places:
        raise ConfigError(
            "holds no task; a task is a directory with task.toml, instruction.md and tests/test.sh",
            file=str(path),
        )
    return DirectoryTaskset(taskset_id or _canonical(collection.name), places)


def _places(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for child in _directories(root):
        if is_task_dir(child):
            found[child.name] = child
            continue
        inner = (grandchild for grandchild in _directories(child) if is_task_dir(grandchild))
        found.update({f"{child.name}/{grandchild.name}": grandchild for grandchild in inner})
    return found


def _directories(root: Path) -> list[Path]:
    return [place for place in root.iterdir() if place.is_dir() and place.name[0] != "."]


def _canonical(name: str) -> str:
    """A directory's name as the first part of a task id."""
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", name).strip("-._@") or "tasks"


def _check_taskset_id(taskset_id: str) -> None:
    try:
        ok = Task.parse_task_id(f"{taskset_id}:item").taskset_id == taskset_id
    except ConfigError:
        ok = False
    if not ok:
        raise ConfigError(
            f"{taskset_id!r} is not a taskset id; use letters, digits and . _ - / @",
            field="taskset_id",
        )


def _item_id(task_id: str, taskset_id: str, known: Mapping[str, object]) -> str:
    prefix, colon, item = task_id.partition(":")
    if not colon and task_id in known:
        return task_id
    if colon and prefix == taskset_id and item in known:
        return item
    shown = known if not colon else (f"{taskset_id}:{name}" for name in known)
    raise UnknownNameError("task", task_id, shown)
