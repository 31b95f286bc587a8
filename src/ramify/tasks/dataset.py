"""Tasksets from and to rows: the datasets that trainers keep.

A row is a mapping. Columns, each optional unless said otherwise, None meaning "not there":

- `task_id` (canonical, or an item id) or the legacy `example_id` (also an integer): required.
- `prompt`, `question` or `input`: the task's input; one of these columns is required.
- `answer` or `target`: its target.
- `info` or `metadata`: a table of facts (or one as JSON text). Any other column joins it.
- `task`: which environment the row is for, kept in the metadata under that name.
- `grading_spec`: overrides the taskset's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.task import RESERVED_KEYS, ExecutionHints, Task, Taskset
from ramify.tasks.taskset import MemoryTaskset

_INPUTS = ("prompt", "question", "input")
_TARGETS = ("answer", "target")
_FACTS = ("info", "metadata")
_OWN = frozenset({"task_id", "example_id", "grading_spec", *_INPUTS, *_TARGETS, *_FACTS})


def from_dataset(
    rows: Iterable[Mapping[str, Any]],
    taskset_id: str,
    default_grading_spec: Mapping[str, Any] | None = None,
    hints: ExecutionHints | None = None,
) -> MemoryTaskset:
    """A materialised taskset from rows (dicts, or anything that iterates as mappings).

    Where a row has `task_id` and `example_id`, the first decides. Of several input columns with a
    value, `prompt` wins over `question` over `input`, and the others join the metadata.

    Raises:
        ConfigError: a row without an id or an input column, an id that is there twice or belongs
            to another taskset, two different targets, a fact named twice, or a key reserved for
            agents.
    """
    tasks = [_task(dict(row), taskset_id, f"row {index}") for index, row in enumerate(rows)]
    return MemoryTaskset(taskset_id, tasks, default_grading_spec, hints)


def to_dataset(taskset: Taskset) -> list[dict[str, Any]]:
    """Rows of a taskset, with both `task_id` and the legacy `example_id`.

    All rows have the same columns, with None where a task has nothing, as column stores want it.
    `example_id` is an integer where every item id is one, else the item id. A text input becomes
    `question`, a list of messages `prompt`, anything else `input`. Packages are not written: the
    task id leads to them. `from_dataset` gives the same tasks back.
    """
    tasks = list(taskset)
    numbered = all(_is_number(task.id.item_id) for task in tasks)
    rows = [_row(task, numbered) for task in tasks]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def _task(row: dict[str, Any], taskset_id: str, where: str) -> Task:
    present = {key: value for key, value in row.items() if value is not None}
    task_id = _task_id(present, taskset_id, where)
    where = f"{where} ({task_id})"
    if reserved := sorted(RESERVED_KEYS.intersection(present)):
        raise ConfigError(
            f"{', '.join(reserved)} belong to the agent's run, not to a task; drop the column",
            file=where,
        )
    inputs = [key for key in _INPUTS if key in present]
    if not any(key in row for key in _INPUTS):
        raise ConfigError(f"no input; give one of {', '.join(_INPUTS)}", file=where)
    spec = present.get("grading_spec")
    return Task(
        task_id=task_id,
        input=present[inputs[0]] if inputs else None,
        target=_target(present, where),
        metadata=_metadata(present, inputs[1:], where),
        grading_spec=None if spec is None else _mapping(spec, "grading_spec", where),
    )


def _task_id(row: Mapping[str, Any], taskset_id: str, where: str) -> str:
    key = "task_id" if "task_id" in row else "example_id"
    value = row.get(key)
    if value is None:
        raise ConfigError(
            "no id; give task_id (or example_id), stable across versions of the dataset", file=where
        )
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"{value!r} is not an id; use text or an integer", where, key)
    text = str(value)
    try:
        return str(Task.parse_task_id(text if ":" in text else f"{taskset_id}:{text}"))
    except ConfigError as error:
        raise ConfigError(error.message, where, key) from None


def _target(row: Mapping[str, Any], where: str) -> Any:
    given = [row[key] for key in _TARGETS if key in row]
    if len(given) == 2 and given[0] != given[1]:
        raise ConfigError("answer and target differ; keep one of them", where, "target")
    return given[0] if given else None


def _metadata(row: Mapping[str, Any], more: Iterable[str], where: str) -> dict[str, Any]:
    parts = [_mapping(row[key], key, where) for key in _FACTS if key in row]
    parts.append({key: row[key] for key in (*more, *(k for k in row if k not in _OWN))})
    facts: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key in facts and facts[key] != value:
                raise ConfigError("is named twice, with different values", where, key)
            facts[key] = value
    return facts


def _mapping(value: Any, column: str, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise ConfigError(f"is text, but not JSON: {error}", where, column) from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a table, got {type(value).__name__}", where, column)
    return dict(cast("Mapping[str, Any]", value))


def _row(task: Task, numbered: bool) -> dict[str, Any]:
    item = task.id.item_id
    given: object = task.input
    column = "question" if isinstance(given, str) else "input"
    if isinstance(given, list | tuple):
        column = "prompt"
    facts = dict(task.metadata)
    row: dict[str, Any] = {
        "example_id": int(item) if numbered else item,
        "task_id": task.task_id,
        column: task.input,
        "answer": task.target,
    }
    if isinstance(facts.get("task"), str):
        row["task"] = facts.pop("task")
    row["info"] = facts
    if task.grading_spec is not None:
        row["grading_spec"] = task.grading_spec
    return row


def _is_number(item: str) -> bool:
    return item.isascii() and item.isdigit() and str(int(item)) == item
