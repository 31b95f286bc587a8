"""`ramify run` and its neighbours: resumed, read by programs, read by people."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import msgspec
import pytest
from command_line import CommandLine, make_task, program
from rich.console import Console

from ramify.cli.present import error_lines, results_table, summary_lines
from ramify.contracts.messages import Usage
from ramify.contracts.result import ErrorInfo, RolloutResult
from ramify.contracts.tree import Outcome
from ramify.engine.reading import read_events, read_results
from ramify.engine.summary import summarise

BARE = ("--sandbox", "bare")
HEAVY = ("aiohttp", "rich", "asyncio", "uvloop", "msgspec", "click")


def rows(table: str) -> list[str]:
    """The results table of a report, times left out: they differ from run to run."""
    return [" ".join(line.split()[:5]) for line in table.splitlines() if line.startswith("tasks:")]


def test_again_and_nothing_runs_again(ramify: CommandLine, tasks: Path) -> None:
    first = ramify("run", tasks, *BARE, "-n", "2", "--out", "job")
    assert first.code == 0, first.err
    kept = Path("job/results.jsonl").read_bytes()
    leases = sum("lease" in str(e) for e in read_events(Path("job")))
    again = ramify("run", tasks, *BARE, "-n", "2", "--out", "job")
    assert again.code == 0
    assert rows(again.out) == rows(first.out)
    assert len(rows(again.out)) == 4
    assert Path("job/results.jsonl").read_bytes() == kept
    assert sum("lease" in str(e) for e in read_events(Path("job"))) == leases, "one ran again"
    assert "mean 1.000" in again.out
    told = "all 4 rollouts were there already; nothing was run"
    assert (told in first.out, told in again.out) == (False, True)
    more = ramify("run", tasks, *BARE, "-n", "2", "--out", "job", "--fail-under", "0.5", "--json")
    assert len(more.records) == 5, "what programs read stays as it is"


def test_the_same_command_finds_its_own_directory(ramify: CommandLine, tasks: Path) -> None:
    ramify("run", tasks, *BARE)
    ramify("run", tasks, *BARE)
    ramify("run", tasks, *BARE, "-a", "nop")
    assert len(list(Path("runs").iterdir())) == 2


def test_what_failed_on_our_side_is_tried_again_on_the_next_run(
    ramify: CommandLine, tasks: Path
) -> None:
    """A set-up script that fails until a file is there: env_error, shown, and mended later."""
    flag = Path.cwd() / "mended"
    (tasks / "beta" / "environment").mkdir()
    (tasks / "beta" / "environment" / "setup.sh").write_text(f"#!/bin/sh\ntest -e {flag}\n")
    (tasks / "beta" / "task.toml").write_text(
        (tasks / "beta" / "task.toml").read_text() + 'setup = "environment/setup.sh"\n'
    )
    command = ("run", tasks, *BARE, "--out", "job", "--max-retries", "0")
    said = ramify(*command)
    assert said.code == 1, "not complete"
    row, error = [line for line in said.out.splitlines() if line.startswith("tasks:beta")]
    assert row.split()[1:3] == ["env_error", "-"], "None is a dash, not 0"
    assert "environment/setup.sh exited 1" in error
    assert "mean 1.000 over 1 counted" in said.out.replace("± 0.000 (SE) ", "")
    assert "1 never scored; run the same command again" in said.out
    flag.touch()
    said = ramify(*command)
    assert said.code == 0
    assert {r.outcome for r in read_results(Path("job")).values()} == {Outcome.SCORED}


def test_fail_under(ramify: CommandLine, tasks: Path) -> None:
    command = ("run", tasks, *BARE, "--out", "job", "-a", "nop")
    assert ramify(*command).code == 0
    assert ramify(*command, "--fail-under", "0").code == 0
    assert ramify(*command, "--fail-under", "0.001").code == 1


def test_json_lines_and_nothing_else(ramify: CommandLine, tasks: Path) -> None:
    said = ramify("run", tasks, *BARE, "--out", "job", "--json")
    assert said.code == 0
    *results, end = said.records
    assert {record["task_id"] for record in results} == {"tasks:alpha", "tasks:beta"}
    assert end["summary"]["mean"] == 1.0
    assert end["path"] == "job"
    assert "[2/2]" in said.err, "people still see what happens"


def test_json_everywhere(ramify: CommandLine, tasks: Path) -> None:
    ramify("run", tasks, *BARE, "--out", "job")
    rollout = next(iter(read_results(Path("job"))))
    for command in (
        ("tree", "job"),
        ("tree", "job", rollout),
        ("export", "job"),
        ("export", "job", "-o", "out.jsonl", "--json"),
        ("tasks", "list", tasks),
        ("tasks", "check", tasks, *BARE, "-n", "1"),
        ("agents", "list"),
    ):
        said = ramify(*command, *(() if command[0] == "export" else ("--json",)))
        assert said.code == 0, said.err
        assert said.records, command
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_a_tree_that_is_not_there(ramify: CommandLine, tasks: Path) -> None:
    ramify("run", tasks, *BARE, "--out", "job")
    said = ramify("tree", "job", "alhpa")
    assert said.code == 2
    assert "unknown rollout 'alhpa'" in said.complaint


def test_plain_lines_off_a_terminal(ramify: CommandLine, tasks: Path) -> None:
    said = ramify("run", tasks, *BARE)
    assert "\x1b" not in said.out + said.err
    assert any(line.startswith("[1/2] tasks:") for line in said.out.splitlines())


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal(tasks: Path, tmp_path: Path, columns: int) -> None:
    """A live view while it runs, a table that fits afterwards."""
    (tasks / "beta" / "solution" / "solve.sh").write_text("sleep 1\necho 42 > answer.txt\n")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, columns))
    command = program("run", tasks, *BARE, "--out", "job")
    env = {**os.environ, "TERM": "xterm-256color"}
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, env=env)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # this is how a terminal says that nobody is there any more
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    text = shown.decode()
    assert running.wait(30) == 0, text
    assert "Traceback" not in text
    assert "execute" in text, "what runs is shown while it runs"
    assert "\x1b[" in text
    table = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    assert [line.split()[:3] for line in table if line.startswith("tasks:")] == [
        ["tasks:alpha", "scored", "1.0"],
        ["tasks:beta", "scored", "1.0"],
    ]
    assert max(len(line) for line in table if line.startswith("tasks:")) <= columns


def test_flags_have_variables(
    ramify: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMIFY_RUN_SANDBOX", "bare")
    Path(".env").write_text("RAMIFY_RUN_AGENT=nop\n# a comment\nRAMIFY_RUN_OUT='job'\n")
    monkeypatch.setenv("RAMIFY_RUN_REPEATS", "2")
    for name in ("RAMIFY_RUN_AGENT", "RAMIFY_RUN_OUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # so that what .env sets in this process is taken back
    said = ramify("run", tasks)
    assert said.code == 0
    assert "mean 0.000" in said.out
    assert len(read_results(Path("job"))) == 4


def test_check_finds_the_level_and_run_uses_it(ramify: CommandLine, tmp_path: Path) -> None:
    place = make_task(tmp_path / "tasks", "gamma")
    text = (place / "task.toml").read_text().replace('isolation = "outputs"\n', "")
    (place / "task.toml").write_text(text)
    said = ramify("tasks", "check", place, *BARE, "-n", "2")
    assert said.code == 0, said.err
    assert "tasks:gamma: outputs" in said.out
    assert "outputs" in ramify("tasks", "list", place).out
    said = ramify("run", place, *BARE, "--json")
    assert said.records[0]["grader_isolation"] == "outputs"
    (place / "tests" / "test.sh").write_text(
        "#!/bin/sh\necho 1 > $RAMIFY_ROOT/logs/verifier/reward.txt\n"
    )
    said = ramify("tasks", "check", place, *BARE, "-n", "1")
    assert said.code == 1
    assert "doing nothing scored 1" in said.out


def test_a_task_that_init_makes_is_fit(ramify: CommandLine) -> None:
    assert ramify("tasks", "init", "mine/first").code == 0
    said = ramify("tasks", "check", "mine", *BARE, "-n", "1")
    assert said.code == 0, said.out + said.err


def test_version_and_import_load_nothing_heavy() -> None:
    report = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    imported = subprocess.run(
        [sys.executable, "-c", f"import ramify; {report}"], capture_output=True, text=True
    ).stdout.split()
    assert not set(HEAVY) & set(imported)
    code = (
        "import sys; sys.argv = ['ramify', '--version']\n"
        "from ramify.cli.main import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\n{report}"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    version, loaded = said.splitlines()
    assert version.startswith("ramify ")
    assert not {"aiohttp", "rich", "asyncio", "uvloop", "msgspec"} & set(loaded.split())


def sample(task: str, outcome: Outcome, **fields: object) -> RolloutResult:
    base = RolloutResult(f"r-{task}", "job", f"tasks:{task}", 0, 1, 1, outcome, "hash", 0)
    timings = {"start": 1.25, "execute": 599.0, "verify": 12.0}
    return msgspec.structs.replace(base, timings=timings, **fields)


SAMPLES = [
    sample("a-task-with-quite-a-long-name-1", Outcome.SCORED, reward=0.5),
    sample("b", Outcome.INVALID, reward=-1.0, invalid_reason="no_evidence"),
    sample("c", Outcome.INFRA_ERROR, error=ErrorInfo("x", "the disk broke\nmore", True, "start")),
    sample("d", Outcome.CANCELLED, error=ErrorInfo("cancelled", "CancelledError")),
    sample("e", Outcome.AGENT_TIMEOUT, reward=0.0, usage=Usage(12_345_678, 9, cost_usd=0.25)),
]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_is_readable(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(results_table(SAMPLES, width))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert len(lines) == len(SAMPLES) + 1, "a row is a line"
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "nothing is cut"
    head, *body = lines
    reward = head.split().index("reward")
    found = {line.split()[0]: line for line in body}
    assert found["tasks:c"].split()[reward] == "-"
    assert "invalid (no_evidence)" in found["tasks:b"]
    assert ("graded on" in head) == (width == 120)
    assert "total" in head
    assert ("tokens" in head) == (width == 120)


def test_the_summary_says_what_was_never_scored() -> None:
    lines = "\n".join(summary_lines(summarise(SAMPLES, planned=6)))
    assert "5/6" in lines
    assert "mean -0.167" in lines
    assert "2 never scored" in lines
    assert list(error_lines(SAMPLES)) == ["tasks:c #0: start: the disk broke"]
    nothing = "\n".join(summary_lines(summarise([], planned=6)))
    assert "not known" in nothing
    assert json.loads(msgspec.json.encode(summarise([], planned=6)))["mean"] is None
