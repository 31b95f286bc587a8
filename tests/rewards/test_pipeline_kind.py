"""`kind = "pipeline"` in a manifest: whole runs, scored by the steps of tests/agent.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from graded_world import graded

import ramify
from ramify.contracts.tree import Outcome

PROVIDERS = [
    pytest.param("local", None, marks=pytest.mark.namespaces),
    pytest.param("docker", "debian:bookworm-slim", marks=pytest.mark.docker),
]
STEPS = """\
verification:
  steps:
    - {name: there, command: test -f answer.txt}
    - {name: right, command: 'grep -x "$(cat /tests/expected)" answer.txt'}
"""


async def reward_of(
    place: Path, sandbox: str, image: str | None, solve: str
) -> ramify.RolloutResult:
    task = graded(place, 'kind = "pipeline"\n', solve, image=image)
    (task / "tests").mkdir()
    (task / "tests/agent.yaml").write_text(STEPS)
    (task / "tests/expected").write_text("42\n")
    options = ramify.RunOptions(out=place / "out")
    report = await ramify.run(task, agent="oracle", sandbox=sandbox, options=options)
    (result,) = report.results
    return result


@pytest.mark.parametrize(("sandbox", "image"), PROVIDERS)
async def test_a_world_may_be_graded_by_a_pipeline(
    sandbox: str, image: str | None, tmp_path: Path
) -> None:
    right = await reward_of(tmp_path / "a", sandbox, image, "echo 42 > answer.txt\n")
    wrong = await reward_of(tmp_path / "b", sandbox, image, "echo 41 > answer.txt\n")
    assert (right.outcome, right.reward) == (Outcome.SCORED, 1.0)
    assert (wrong.outcome, wrong.reward) == (Outcome.SCORED, 0.0)
    assert list((tmp_path / "b/out").rglob("pipeline/runs/*/manifest.json"))


@pytest.mark.namespaces
async def test_a_task_without_a_pipeline_is_told_of(tmp_path: Path) -> None:
    task = graded(tmp_path, 'kind = "pipeline"\n')
    options = ramify.RunOptions(out=tmp_path / "out")
    report = await ramify.run(task, agent="oracle", sandbox="local", options=options)
    (result,) = report.results
    assert result.reward is None
    assert "agent.yaml" in str(result)
