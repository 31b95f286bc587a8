"""What a person sees: short tables in narrow terminals, what is waited for, the next step."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import CommandLine, make_task, program, started
from rich.console import Console

from ramify.cli.present import error_lines
from ramify.cli.waiting import waiting
from ramify.contracts.result import ErrorInfo, RolloutResult
from ramify.contracts.tree import Outcome

NARROW = {"COLUMNS": "50", "LINES": "40", "TERM": "xterm", "NO_COLOR": "1"}


def on_a_terminal(*arguments: str | Path, cwd: Path) -> str:
    """What `ramify` shows on a terminal of 50 columns."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        child = subprocess.Popen(
            program(*arguments), stdout=theirs, cwd=cwd, env={**os.environ, **NARROW}
        )
        os.close(theirs)
        shown = b""
        try:
            while data := screen.read(65536):
                shown += data
        except OSError:  # so ends a terminal whose other side is closed
            pass
        assert child.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown.decode())


def test_names_of_tasks_are_whole_in_a_narrow_terminal(tmp_path: Path) -> None:
    make_task(tmp_path / "tasks", "a-rather-long-name")
    shown = on_a_terminal("tasks", "list", "tasks", cwd=tmp_path)
    assert "tasks:a-rather-long-name" in shown
    assert max(len(line) for line in shown.splitlines()) <= 50


def test_waiting_is_shown_on_a_terminal_and_leaves_nothing() -> None:
    screen, pipe = io.StringIO(), io.StringIO()
    with waiting(Console(file=screen, force_terminal=True, width=60), "importing") as shown:
        shown.now("half done")
        shown.count(3, 40)
    with waiting(Console(file=pipe), "importing") as shown:
        shown.now("half done")
        shown.count(3, 40)
    assert "importing" in screen.getvalue()
    assert "importing: 3/40" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K"), "the line is cleared"
    assert pipe.getvalue() == ""


def test_agents_are_listed_with_their_options(ramify: CommandLine) -> None:
    agents = {record["name"]: record for record in ramify("agents", "list", "--json").records}
    assert agents["scripted"]["options"] == {"path": True}
    assert agents["shell"]["options"] == {"script": False}, "a terminal is no text"
    assert agents["oracle"]["options"] == {}
    shown = ramify("agents", "list").out
    assert "[script]" in shown
    assert "-A name=value" in shown


def test_a_directory_in_place_of_a_manifest(ramify: CommandLine, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    said = ramify("env", "check", world)
    assert (said.code, "no manifest (*.toml) is in it" in said.complaint) == (2, True)
    (world / "office.toml").touch()
    said = ramify("env", "up", world)
    assert said.code == 2
    assert said.complaint.endswith(f"name a manifest: {world / 'office.toml'}")


def failed(message: str) -> RolloutResult:
    return RolloutResult(
        rollout_id="alpha-0", job_id="job", task_id="tasks:alpha", repeat=0, attempt=1,
        fence=1, outcome=Outcome.ENV_ERROR, config_hash="c", seed=0,
        error=ErrorInfo("env", message, phase="readiness"),
    )  # fmt: skip


def test_an_error_that_announces_a_log_shows_how_that_ends() -> None:
    said = "the service 'mail' ended; the end of its log:"
    (line,) = error_lines([failed(f"{said}\nTraceback\n  KeyError: 'x'\n")])
    assert line == f"tasks:alpha #0: readiness: {said} KeyError: 'x'"
    (line,) = error_lines([failed("x" * 1000)])
    assert line.endswith("x … (--json has it whole)")
    (line,) = error_lines([failed("no room\nfor what follows")])
    assert line == "tasks:alpha #0: readiness: no room"


def test_a_file_in_place_of_tasks(ramify: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    said = ramify("run", "notes.md")
    assert (said.code, said.complaint) == (
        2, "ramify: notes.md: is a file; give a task or a directory of tasks",
    )  # fmt: skip


@pytest.mark.namespaces
def test_what_a_run_says_of_repeats_and_of_a_low_mean(ramify: CommandLine, tasks: Path) -> None:
    low = ("--agent", "nop", "--task-id", "alpha", "--out", "job")
    said = ramify("run", tasks, *low, "-n", "2", "--fail-under", "0.5")
    assert said.code == 1
    assert said.complaint == "ramify: the mean reward 0.000 is below --fail-under 0.5"
    assert "] tasks:alpha #0 scored" in said.out
    assert "] tasks:alpha #1 scored" in said.out
    none = ramify("export", "job", "--format", "pairs")
    assert (none.code, none.out) == (0, "")
    assert none.complaint == "ramify: the format 'pairs' has no record of job"


@pytest.mark.namespaces
def test_digests_are_short_for_people_and_whole_for_programs(
    ramify: CommandLine, tasks: Path, tmp_path: Path
) -> None:
    Path("walk.txt").write_text("echo 42 > answer.txt\n")
    scripted = ("--agent", "scripted", "-A", "path=walk.txt", "--task-id", "alpha")
    ramify("run", tasks, *scripted, "-n", "1", "--branch", "group:2@step:0", "--out", "job")
    (rollout,) = [path.name for path in Path("job/rollouts").iterdir()]
    (change,) = ramify("tree", "job", rollout, "--diff", "0", "3", "--json").records
    digest = change["after"].partition("sha256:")[2]
    assert len(digest) == 64
    shown = ramify("tree", "job", rollout, "--diff", "0", "3").out
    assert f"sha256:{digest[:12]}…" in shown
    assert digest not in shown


def test_an_interrupt_is_told_by_commands_that_have_nothing_to_keep(tmp_path: Path) -> None:
    place, began = make_task(tmp_path / "tasks", "alpha"), tmp_path / "began"
    (place / "solution" / "solve.sh").write_text(f"touch {began}\nsleep 60\n")
    checking = started("tasks", "check", "tasks", "-s", "bare", cwd=tmp_path)
    while not began.exists():
        assert checking.poll() is None
        time.sleep(0.02)
    checking.send_signal(signal.SIGINT)
    _, told = checking.communicate(timeout=60)
    assert (checking.returncode, told.splitlines()[-1]) == (130, "ramify: interrupted")
