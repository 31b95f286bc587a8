"""Every example task: its solution scores 1, doing nothing scores 0, a wrong answer scores 0."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ramify.contracts.sandbox import NetworkMode
from ramify.contracts.task import IsolationLevel, Task
from ramify.tasks.package import read_task
from ramify.tasks.taskset import load_taskset

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
NAMES = sorted(path.name for path in EXAMPLES.iterdir())
# Those with a script; what our own runner tests needs a sandbox: tests/rewards/test_hard_tasks.py.
SCRIPTED = [name for name in NAMES if (EXAMPLES / name / "tests" / "test.sh").is_file()]
RunByHand = Callable[[Task, bool], Awaitable[float]]


def example(name: str) -> Task:
    return load_taskset(EXAMPLES / name).get_task(name)


def test_there_are_at_least_ten_of_different_kinds() -> None:
    taskset = load_taskset(EXAMPLES)
    tasks = list(taskset)
    assert taskset.taskset_id == "tasks"
    assert [task.id.item_id for task in tasks] == NAMES
    assert len(NAMES) >= 10
    assert len(SCRIPTED) >= 10
    levels = [task.package.verifier.isolation for task in tasks if task.package]
    assert levels.count(None) >= 8
    assert {*levels} == {
        None,
        IsolationLevel.OUTPUTS,
        IsolationLevel.WORKDIR,
        IsolationLevel.FILESYSTEM,
        IsolationLevel.LIVE,
    }


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_an_image_and_without_network(name: str) -> None:
    package = example(name).package
    assert package is not None
    assert package.host_root_ok
    assert package.sandbox.image
    assert package.sandbox.network.mode is NetworkMode.NONE
    assert package.verifier.network is not None
    assert package.verifier.network.mode is NetworkMode.NONE
    assert {"sh"} <= {*package.needs}


@pytest.mark.parametrize("name", SCRIPTED)
async def test_reference_solution_scores_one(name: str, run_by_hand: RunByHand) -> None:
    assert await run_by_hand(example(name), True) == 1


@pytest.mark.parametrize("name", SCRIPTED)
async def test_doing_nothing_scores_zero(name: str, run_by_hand: RunByHand) -> None:
    assert await run_by_hand(example(name), False) == 0


_WRONG = {
    "top-clients": "ln -s ../tests/expected.txt top.txt",
    "lost-request": "echo req-00000000 > answer.txt",
    "fix-stats": "echo 'def median(values): return 4' > stats.py",
    "orders-to-json": "echo '[]' > customers.json",
    "repair-service": "mkdir run; echo 1 > run/port",
    "split-chapters": "mkdir chapters; cp book.txt chapters/01-departure.txt",
    "port-conflict": "echo 'catalog reports 8103' > answer.txt",
    "parse-durations": "echo 'import os; os._exit(0)' > durations.py",
    "build-zipapp": "python3 -c 'print(1)' > wordfreq.pyz",
    "migrate-sqlite": "echo garbage > library.db",
    "tidy-inbox": "find inbox -empty -delete",
    "switch-release": 'ln -sfn releases/2.0 "$RAMIFY_ROOT/opt/notes/current"',
}


@pytest.mark.parametrize("name", SCRIPTED)
async def test_a_wrong_answer_scores_zero(
    name: str, run_by_hand: RunByHand, tmp_path: Path
) -> None:
    copy = tmp_path / "task"
    shutil.copytree(EXAMPLES / name, copy)
    (copy / "solution" / "solve.sh").write_text(_WRONG[name])
    assert await run_by_hand(read_task(copy, f"wrong:{name}"), True) == 0
