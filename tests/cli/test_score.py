"""`ramify score`: a finished job scored again, from what was kept, by the tests as they are now."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).parent.parent.parent / "examples" / "tasks"
CHOSEN = ("top-clients", "tidy-inbox", "repair-service")


def ramify(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ramify.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


@pytest.mark.namespaces
def test_scores_follow_the_tests_not_the_agents(tmp_path: Path) -> None:
    for name in CHOSEN:
        shutil.copytree(TASKS / name, tmp_path / "tasks" / name)
    assert ramify("run", "tasks", "-o", "job", cwd=tmp_path).returncode == 0

    same = ramify("score", "job", "--json", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    *rollouts, totals = map(json.loads, same.stdout.splitlines())
    assert {r["before"]["task_id"]: r["after"]["reward"] for r in rollouts} == {
        "tasks:top-clients": 1.0,
        "tasks:tidy-inbox": 1.0,
    }
    assert not any(r["changed"] for r in rollouts)
    # Its tests talk to a process of the agent's, which is gone: not scored 0, but left alone.
    assert [r["task_id"] for r in totals["left_alone"]] == ["tasks:repair-service"]

    script = tmp_path / "tasks" / "top-clients" / "tests" / "test.sh"
    script.write_text('#!/bin/sh\necho 0.25 > "$RAMIFY_ROOT/logs/verifier/reward.txt"\n')
    changed = ramify("score", "job", "--json", cwd=tmp_path)
    *rollouts, _ = map(json.loads, changed.stdout.splitlines())
    assert {r["before"]["task_id"] for r in rollouts if r["changed"]} == {"tasks:top-clients"}
    before = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[0])
    assert before["reward"] == 1.0, "what was recorded stays as it was"


@pytest.mark.namespaces
def test_what_was_not_kept_is_not_scored(tmp_path: Path) -> None:
    shutil.copytree(TASKS / "top-clients", tmp_path / "tasks" / "top-clients")
    assert ramify("run", "tasks", "-o", "job", cwd=tmp_path).returncode == 0
    for manifest in (tmp_path / "job").glob("rollouts/*/final/manifest.json"):
        manifest.unlink()
    done = ramify("score", "job", cwd=tmp_path)
    assert done.returncode == 3
    assert "no final state was kept" in done.stdout


def test_a_directory_that_is_no_job_is_refused(tmp_path: Path) -> None:
    done = ramify("score", ".", cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr
