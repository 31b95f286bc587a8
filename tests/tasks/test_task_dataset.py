"""Rows to tasks and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError
from ramify.contracts.task import Task
from ramify.tasks.dataset import from_dataset, to_dataset
from ramify.tasks.taskset import MemoryTaskset


class Rows:
    """Iterates as a `datasets.Dataset` does: dicts, and None where a row has no value."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __iter__(self) -> Any:
        return iter(self._rows)


def test_legacy_rows() -> None:
    rows = [
        {"example_id": 0, "question": "1+1?", "answer": "2", "task": "sums", "info": {"level": 1}},
        {"example_id": 7, "question": "2+2?", "answer": "4", "task": None, "info": '{"level": 2}'},
    ]
    first, second = from_dataset(Rows(rows), "math", default_grading_spec={"kind": "exact"})
    assert first == Task("math:0", "1+1?", "2", {"level": 1, "task": "sums"})
    assert second == Task("math:7", "2+2?", "4", {"level": 2})


def test_both_ids_are_written() -> None:
    rows = to_dataset(from_dataset([{"task_id": "math:3", "prompt": "x"}], "math"))
    assert rows == [
        {"example_id": 3, "task_id": "math:3", "question": "x", "answer": None, "info": {}}
    ]
    rows = to_dataset(from_dataset([{"task_id": "a", "input": {"k": 1}}], "math"))
    assert (rows[0]["example_id"], rows[0]["task_id"]) == ("a", "math:a")


def test_the_first_input_wins_and_the_others_are_kept() -> None:
    messages = [{"role": "user", "content": "hi"}]
    row = {"example_id": "e", "prompt": messages, "question": "hi", "difficulty": 3}
    (task,) = from_dataset([row], "s")
    assert task == Task("s:e", messages, None, {"question": "hi", "difficulty": 3})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "x"}], r"row 0: no id; give task_id"),
        ([{"task_id": "a"}], r"row 0 \(s:a\): no input; give one of prompt"),
        ([{"task_id": True, "input": 1}], "row 0: task_id: True is not an id"),
        ([{"task_id": " a", "input": 1}], "row 0: task_id: .* not a canonical task id"),
        ([{"task_id": "other:a", "input": 1}], "'other:a' belongs to another taskset"),
        ([{"task_id": 1, "input": 1}, {"example_id": "1", "input": 2}], "'s:1' is there twice"),
        ([{"task_id": "a", "input": 1, "model": "m"}], "model belong to the agent's run"),
        ([{"task_id": "a", "input": 1, "info": {"api_key": 1}}], "api_key belong to the agent's"),
        ([{"task_id": "a", "input": 1, "answer": 1, "target": 2}], "target: answer and target"),
        ([{"task_id": "a", "input": 1, "info": {"x": 1}, "x": 2}], "x: is named twice"),
        ([{"task_id": "a", "input": 1, "info": "["}], "info: is text, but not JSON"),
        ([{"task_id": "a", "input": 1, "info": 3}], "info: expected a table, got int"),
    ],
)
def test_wrong_rows_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dataset(rows, "s")


_VALUES = st.recursive(
    st.booleans() | st.integers(-99, 99) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_ITEMS = st.integers(0, 10**30).map(str) | st.from_regex(r"\A[a-z0-9][a-z0-9/ .-]*[a-z]\Z")
_FACTS = st.dictionaries(st.sampled_from(["task", "level", "question", "info", "x"]), _VALUES)
_TASKS = st.builds(
    Task,
    _ITEMS.map(lambda item: f"s:{item}"),
    st.none() | _VALUES,
    st.none() | _VALUES,
    _FACTS,
    st.none() | st.dictionaries(st.text(max_size=3), _VALUES),
)


@given(st.lists(_TASKS, max_size=5, unique_by=lambda task: task.task_id))
def test_a_round_trip_gives_the_same_tasks_and_rows(tasks: list[Task]) -> None:
    rows = to_dataset(MemoryTaskset("s", tasks))
    back = from_dataset(json.loads(json.dumps(rows)), "s")
    assert [*back] == tasks
    assert to_dataset(back) == rows
    assert len({tuple(row) for row in rows}) <= 1
