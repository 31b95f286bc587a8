"""kill -9 of the engine in every phase: nothing is lost, repeated, counted twice or left over."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from doomed import REPEATS, TASKS, options
from remains import wait_until_gone

from ramify.contracts.events import Phase
from ramify.contracts.result import RolloutResult
from ramify.engine.reading import read_results
from ramify.envs.run import JobReport, run

PLANNED = 3 * REPEATS
PHASES = list(Phase)


def fate(result: RolloutResult) -> tuple[object, ...]:
    """What must be the same however often the engine was killed."""
    return (
        result.rollout_id, result.task_id, result.outcome, result.reward, result.seed,
        result.trajectory_hash,
    )  # fmt: skip


def finish(sandbox: str, out: Path) -> JobReport:
    return asyncio.run(run(TASKS, agent="oracle", sandbox=sandbox, options=options(out)))


def kill_in(sandbox: str, out: Path, phase: Phase, rng: random.Random, home: Path) -> None:
    """Run the job until a rollout enters `phase`, and kill the engine there or a little later."""
    nth, delay = rng.randint(1, PLANNED), rng.choice((0, 0, 5, 20, 60))
    command = [sys.executable, str(Path(__file__).with_name("doomed.py")), sandbox, str(out)]
    done = subprocess.run(
        [*command, phase.value, str(nth), str(delay)],
        env={**os.environ, "RAMIFY_HOME": str(home)},
        capture_output=True,
        timeout=100,
    )
    assert done.returncode in (-9, 0), done.stderr.decode()
    assert done.returncode == -9 or delay, "the phase was never entered"


def schedule(sandbox: str, tmp_path: Path, phases: list[Phase], seed: int, home: Path) -> None:
    rng = random.Random(seed)
    expected = Counter(map(fate, finish(sandbox, tmp_path / "calm").results))
    assert len(expected) == PLANNED
    for number, phase in enumerate(phases):
        out = tmp_path / f"job-{number}"
        kill_in(sandbox, out, phase, rng, home)
        assert wait_until_gone(home) == [], f"left over after a kill in {phase}"
        before = read_results(out)
        report = finish(sandbox, out)
        assert Counter(map(fate, report.results)) == expected
        lines = (out / "results.jsonl").read_text().splitlines()
        assert len(lines) == PLANNED, "a result is lost, or there twice"
        kept = read_results(out)
        assert all(kept[key] == value for key, value in before.items()), "a finished one ran again"
    assert wait_until_gone(home) == []


@pytest.mark.namespaces
def test_local_in_every_phase(tmp_path: Path, ramify_home: Path) -> None:
    schedule("local", tmp_path, PHASES, 1, ramify_home)


@pytest.mark.docker
def test_docker_sample(tmp_path: Path, ramify_home: Path) -> None:
    phases = [Phase.START, Phase.EXECUTE, Phase.VERIFY, Phase.TEARDOWN]
    schedule("docker", tmp_path, phases, 2, ramify_home)


@pytest.mark.proof
@pytest.mark.parametrize("sandbox", ["local", "docker"])
def test_fifty_kills(sandbox: str, tmp_path: Path, ramify_home: Path) -> None:
    """At least five in each phase, fifty in all."""
    phases = PHASES * 6 + [Phase.EXECUTE, Phase.VERIFY]
    schedule(sandbox, tmp_path, phases, 3, ramify_home)
    print(f"\n{len(phases)} kills on {sandbox}: nothing lost, repeated, doubled or left over")
