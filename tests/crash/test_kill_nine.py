"""kill -9 of the engine in every phase: nothing is lost, repeated, counted twice or left over."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from doomed import REPEATS
from remains import Witness

from ramify.contracts.events import Phase
from ramify.contracts.result import RolloutResult
from ramify.engine.reading import read_results

PLANNED = 3 * REPEATS
PHASES = list(Phase)
DOOMED = Path(__file__).with_name("doomed.py")


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    with Witness(tmp_path / "home") as watching:
        yield watching


def engine(witness: Witness, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a process of its own: to its end, or until it kills itself.

    What it says goes to files: a pipe would be waited for until the last of its children is gone,
    and the two seconds are to begin with its own end.
    """
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        done = subprocess.run(
            [sys.executable, str(DOOMED), *arguments],
            env={**os.environ, "RAMIFY_HOME": str(witness.home)},
            stdout=out,
            stderr=err,
            timeout=100,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


def fate(result: RolloutResult) -> tuple[object, ...]:
    """What must be the same however often the engine was killed."""
    return (
        result.rollout_id, result.task_id, result.outcome, result.reward, result.seed,
        result.trajectory_hash,
    )  # fmt: skip


def finished(witness: Witness, sandbox: str, out: Path) -> dict[str, RolloutResult]:
    done = engine(witness, sandbox, str(out))
    assert done.returncode == 0, done.stderr
    lines = (out / "results.jsonl").read_text().splitlines()
    results = read_results(out)
    assert len(results) == PLANNED
    assert len(lines) == PLANNED, "a result is there twice"
    assert done.stdout.split() == sorted(results), "what was yielded is what was recorded"
    return results


def schedule(sandbox: str, tmp_path: Path, phases: list[Phase], seed: int, own: Witness) -> None:
    rng = random.Random(seed)
    expected = Counter(map(fate, finished(own, sandbox, tmp_path / "calm").values()))
    assert own.left_after() == []
    for number, phase in enumerate(phases):
        out = tmp_path / f"job-{number}"
        nth, delay = rng.randint(1, PLANNED), rng.choice((0, 0, 5, 20, 60))
        what = f"kill {number} in {phase}, the {nth}th, after {delay} ms"
        killed = engine(own, sandbox, str(out), phase.value, str(nth), str(delay))
        # With a delay the job may end first; without one the phase was never entered.
        assert killed.returncode in ((-9, 0) if delay else (-9,)), f"{what}: {killed.stderr}"
        assert own.left_after() == [], f"left over two seconds after {what}: {killed.stderr}"
        before = read_results(out)
        after = finished(own, sandbox, out)
        assert Counter(map(fate, after.values())) == expected, what
        assert before.items() <= after.items(), f"{what}: a finished rollout ran again"
        assert own.left_after() == [], f"left over after the run that followed {what}"
    assert (sandbox == "local") == bool(own.engines), "cgroups are counted by these names"


@pytest.mark.namespaces
def test_local_in_every_phase(tmp_path: Path, witness: Witness) -> None:
    schedule("local", tmp_path, PHASES, 1, witness)


@pytest.mark.docker
def test_docker_sample(tmp_path: Path, witness: Witness) -> None:
    phases = [Phase.START, Phase.EXECUTE, Phase.VERIFY, Phase.TEARDOWN]
    schedule("docker", tmp_path, random.Random(2).sample(phases, 3), 2, witness)


def full_count(sandbox: str, tmp_path: Path, witness: Witness) -> None:
    """At least five in each phase, fifty in all."""
    phases = PHASES * 6 + [Phase.EXECUTE, Phase.VERIFY]
    random.Random(3).shuffle(phases)
    schedule(sandbox, tmp_path, phases, 3, witness)
    print(f"\n{len(phases)} kills on {sandbox}: nothing lost, repeated, doubled or left over")


@pytest.mark.proof
@pytest.mark.namespaces
def test_fifty_kills_on_local(tmp_path: Path, witness: Witness) -> None:
    full_count("local", tmp_path, witness)


@pytest.mark.proof
@pytest.mark.docker
def test_fifty_kills_on_docker(tmp_path: Path, witness: Witness) -> None:
    full_count("docker", tmp_path, witness)
