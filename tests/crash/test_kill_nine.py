"""kill -9 of the engine in every phase: nothing is lost, repeated, counted twice or left over."""

from __future__ import annotations

import random
from pathlib import Path

import jobs
import pytest
from jobs import Job, Kill, outlives
from remains import Witness

from ramify.contracts.events import Phase

pytestmark = pytest.mark.timeout(600)
witness = jobs.witness
PHASES = [phase for phase in Phase if phase is not Phase.BRANCH]  # see test_kill_branch


def schedule(job: Job, tmp_path: Path, phases: list[Phase], seed: int) -> None:
    rng = random.Random(seed)
    kills = [
        Kill(phase, rng.randint(1, job.planned), rng.choice((0, 0, 5, 20, 60))) for phase in phases
    ]
    outlives(job, tmp_path, kills)
    assert (job.sandbox == "local") == bool(job.own.engines), "cgroups are counted by these names"


@pytest.mark.namespaces
def test_local_in_every_phase(tmp_path: Path, witness: Witness) -> None:
    schedule(Job(witness, "local", repeats=2), tmp_path, PHASES, 1)


@pytest.mark.docker
def test_docker_sample(tmp_path: Path, witness: Witness) -> None:
    phases = [Phase.START, Phase.EXECUTE, Phase.VERIFY, Phase.TEARDOWN]
    phases = random.Random(2).sample(phases, 3)
    schedule(Job(witness, "docker", repeats=2), tmp_path, phases, 2)


def full_count(sandbox: str, tmp_path: Path, witness: Witness) -> None:
    """At least five in each phase, fifty in all."""
    phases = PHASES * 6 + [Phase.EXECUTE, Phase.VERIFY]
    random.Random(3).shuffle(phases)
    schedule(Job(witness, sandbox), tmp_path, phases, 3)
    print(f"\n{len(phases)} kills on {sandbox}: nothing lost, repeated, doubled or left over")


@pytest.mark.proof
@pytest.mark.namespaces
@pytest.mark.timeout(3600)
def test_fifty_kills_on_local(tmp_path: Path, witness: Witness) -> None:
    full_count("local", tmp_path, witness)


@pytest.mark.proof
@pytest.mark.docker
@pytest.mark.timeout(3600)
def test_fifty_kills_on_docker(tmp_path: Path, witness: Witness) -> None:
    full_count("docker", tmp_path, witness)
