"""Jobs in a process of their own, which is killed at a chosen moment, and then run to their end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from doomed import TASKS
from remains import Witness

from ramify.contracts.result import RolloutResult
from ramify.engine.reading import read_results

_PROGRAM = Path(__file__).with_name("doomed.py")
_LONGEST_SEC = 100


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    """Watches a home of its own."""
    with Witness(tmp_path / "home") as watching:
        yield watching


@dataclass(frozen=True)
class Kill:
    """When the engine dies: `delay_ms` after the `nth` time that a rollout enters a phase."""

    phase: str
    nth: int
    delay_ms: int

    def __str__(self) -> str:
        return f"a kill in {self.phase}, the {self.nth}th, after {self.delay_ms} ms"


@dataclass(frozen=True)
class Job:
    """The tasks beside this file on a provider, each `repeats` times; `branch` is of doomed.py."""

    own: Witness
    sandbox: str
    repeats: int = 3
    branch: str = ""

    @property
    def planned(self) -> int:
        """Rollouts of the whole job."""
        return self.repeats * len(list(TASKS.iterdir()))

    def run(self, out: Path, *doom: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, or until it kills itself.

        What it says goes to files: a pipe would be waited for until the last of its children is
        gone, and the two seconds of `left_after` are to begin with its own end.
        """
        told = {"DOOMED_REPEATS": str(self.repeats), "DOOMED_BRANCH": self.branch}
        with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
            done = subprocess.run(
                [sys.executable, str(_PROGRAM), self.sandbox, str(out), *doom],
                env={**os.environ, **told, "RAMIFY_HOME": str(self.own.home)},
                stdout=output,
                stderr=errors,
                timeout=_LONGEST_SEC,
            )
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(
                done.args, done.returncode, output.read(), errors.read()
            )

    def finish(self, out: Path) -> dict[str, RolloutResult]:
        """Run it to its end: everything is there, once."""
        done = self.run(out)
        assert done.returncode == 0, done.stderr
        lines = (out / "results.jsonl").read_text().splitlines()
        results = read_results(out)
        assert len(results) == self.planned
        assert len(lines) == self.planned, "a result is there twice"
        assert done.stdout.split() == sorted(results), "what was yielded is what was recorded"
        return results


def fate(result: RolloutResult) -> tuple[object, ...]:
    """What must be the same however often the engine was killed."""
    return (
        result.rollout_id, result.task_id, result.outcome, result.reward, result.seed,
        result.trajectory_hash,
    )  # fmt: skip


def outlives(
    job: Job, place: Path, kills: Iterable[Kill], stored: Callable[[], object] = lambda: None
) -> dict[str, RolloutResult]:
    """Kill a job once per kill and finish it each time; the results of one that was left alone.

    After each kill and each end nothing is left of the engine but scratch directories, which the
    next one removes; after each end `stored` answers as before.
    """
    own = job.own
    calm = job.finish(place / "calm")
    expected = Counter(map(fate, calm.values()))
    assert own.left_after() == own.scratch(place / "calm") == []
    at_rest = stored()
    for number, kill in enumerate(kills):
        out, what = place / f"job-{number}", f"{kill} (number {number})"
        killed = job.run(out, kill.phase, str(kill.nth), str(kill.delay_ms))
        if killed.returncode == 0 and kill.delay_ms:  # the job was faster: so without a delay
            out = place / f"job-{number}-again"
            killed = job.run(out, kill.phase, str(kill.nth), "0")
        assert killed.returncode == -9, (what, killed.stderr)
        assert own.left_after() == [], f"left over two seconds after {what}: {killed.stderr}"
        before = read_results(out)
        after = job.finish(out)
        assert Counter(map(fate, after.values())) == expected, what
        assert before.items() <= after.items(), f"{what}: a finished rollout ran again"
        assert own.left_after() == [], f"left over after the run that followed {what}"
        assert own.scratch(out) == [], f"what {what} left is there after the run that followed"
        assert stored() == at_rest, f"something is left in the store by {what}"
    return calm
