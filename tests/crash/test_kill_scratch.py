"""kill -9 of the engine while it has scratch directories: they go when the next one starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import doomed
import jobs
import pytest
from jobs import Job
from remains import Witness

witness = jobs.witness


def killed_with_scratch(job: Job, out: Path) -> bool:
    """Run a job until it has a scratch directory, and kill it then; False if it was done before.

    It is stopped first: what is there then is there when it dies.
    """
    told = {"DOOMED_REPEATS": str(job.repeats), "DOOMED_BRANCH": job.branch}
    place = job.own.home / "tmp"
    with subprocess.Popen(
        [sys.executable, doomed.__file__, job.sandbox, str(out)],
        env={**os.environ, **told, "RAMIFY_HOME": str(job.own.home)},
        stdout=subprocess.DEVNULL,
    ) as engine:
        try:
            while engine.poll() is None:
                if not place.exists() or not list(place.iterdir()):
                    time.sleep(0.0001)
                    continue
                engine.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, engine.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                if any(path.is_dir() for path in place.iterdir()):
                    return True
                engine.send_signal(signal.SIGCONT)
        finally:
            engine.kill()
    return False


@pytest.mark.namespaces
def test_what_it_had_at_that_moment_goes_with_the_next(tmp_path: Path, witness: Witness) -> None:
    job = Job(witness, "local", repeats=2)
    out = next(
        (out for out in (tmp_path / f"job-{n}" for n in range(5)) if killed_with_scratch(job, out)),
        None,
    )
    assert out is not None, "five jobs without a moment at which there was a scratch directory"
    assert len(witness.scratch(out)) > 0
    job.finish(out)
    assert witness.scratch(out) == []
    assert witness.left_after() == []
