"""A spawner, a supervisor or a container dies in mid-run: ours to mend, never the agent's 0."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest
from jobs import Job
from remains import Witness

from ramify.contracts.events import Phase
from ramify.contracts.tree import Outcome
from ramify.engine.reading import read_results

witness = jobs.witness
LOCAL, DOCKER = pytest.mark.namespaces, pytest.mark.docker
CASES = [
    pytest.param("local", "spawner", Phase.EXECUTE, marks=LOCAL),
    pytest.param("local", "spawner", Phase.VERIFY, marks=LOCAL),
    pytest.param("local", "supervisor", Phase.EXECUTE, marks=LOCAL),
    pytest.param("local", "supervisor", Phase.VERIFY, marks=LOCAL),
    pytest.param("docker", "container", Phase.EXECUTE, marks=DOCKER),
    pytest.param("docker", "container", Phase.VERIFY, marks=[DOCKER, pytest.mark.proof]),
]


@pytest.mark.parametrize(("sandbox", "part", "phase"), CASES)
def test_what_it_took_along_is_tried_again(
    sandbox: str, part: str, phase: Phase, tmp_path: Path, witness: Witness
) -> None:
    out = tmp_path / "job"
    job = Job(witness, sandbox)
    done = job.run(out, "part", phase.value, "4", part)
    assert done.returncode == 0, done.stderr
    results = read_results(out)
    assert len(results) == job.planned
    assert [r.error for r in results.values() if r.outcome is not Outcome.SCORED] == []
    assert {r.reward for r in results.values()} == {1.0}, "its death is not the agent's 0"
    assert any(r.attempt > 1 for r in results.values()), "nothing was tried again: no kill?"
    assert witness.left_after() == []
