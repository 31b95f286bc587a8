"""What cannot be done as asked gets one clear line and exit code 2, before anything is made."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from command_line import CommandLine, make_task, program

BARE = ("--sandbox", "bare")


WRONG: list[tuple[list[str], str]] = [
    (["run", "nowhere"], "nowhere: no such directory"),
    (["run", "empty"], "holds no task"),
    (["run", "tasks", "-a", "oracel"], "did you mean 'oracle'"),
    (["run", "tasks", "-s", "dokcer"], "did you mean 'docker'"),
    (["run", "tasks", "-s", "no_such_module:Thing"], "cannot be loaded"),
    (["run", "tasks", "-s", "os:path"], "neither a class nor a function"),
    (["run", "tasks", "-a", "collections:Counter"], "has no `connect`"),
    (["run", "tasks", "-c", "0"], "concurrency must be at least 1"),
    (["run", "tasks", "-c", "many"], "--concurrency"),
    (["run", "tasks", "-n", "-1"], "repeats must be at least 1"),
    (["run", "tasks", "--limit", "0"], "limit must be at least 1"),
    (["run", "tasks", "--seed", "-1"], "seed must be at least 0"),
    (["run", "tasks", "--max-retries", "-1"], "max_retries must be at least 0"),
    (["run", "tasks", "--timeout", "-3"], "timeout_sec must be above 0"),
    (["run", "tasks", "--timeout", "nan"], "timeout_sec must be above 0"),
    (["run", "tasks", "--timeout-multiplier", "0"], "timeout_multiplier must be above 0"),
    (["run", "tasks", "--fail-under", "nan"], "--fail-under must be a finite number"),
    (["run", "tasks", "--isolation", "none"], "--isolation"),
    (["run", "tasks", "-A", "text"], "'text' is not key=value"),
    (["run", "tasks", "-A", "colour=red"], "unknown option of oracle 'colour'"),
    (["run", "tasks", "-T", "colour=red"], "unknown option of directory 'colour'"),
    (["run", "tasks", "-a", "scripted"], "needs path"),
    (["run", "tasks", "-a", "scripted", "-A", "path=nowhere"], "nowhere: cannot be read"),
    (["run", "tasks", "-s", "bare", "--task-id", "alhpa"], "did you mean 'alpha'"),
    (["run", "tasks", "--colour"], "No such option '--colour'"),
    (["run", "tasks", "extra"], "unexpected extra argument"),
    (["frob"], "No such command 'frob'"),
    (["tree", "nowhere"], "nowhere"),
    (["tree", "tasks"], "is not a run directory"),
    (["export", "tasks"], "is not a run directory"),
    (["tasks", "list", "nowhere"], "no such directory"),
    (["tasks", "check", "tasks", "-n", "0"], "--repeats must be at least 1"),
    (["tasks", "init", "tasks"], "exists already"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_one_clear_line(
    ramify: CommandLine, tasks: Path, arguments: list[str], expected: str
) -> None:
    Path("empty").mkdir()
    said = ramify(*arguments)
    assert said.code == 2
    assert expected in said.complaint
    assert said.out == ""
    assert not Path("runs").exists(), "nothing was made"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = [", "task.toml: is not valid TOML"),
        ('versoin = "1.0"', "task.toml: versoin: unknown key"),
        ("[agent]\ntimeout_sec = -5", "timeout_sec"),
        ("[verifier]\ntimeout_sec = 'soon'", "timeout_sec"),
    ],
)
def test_a_task_that_is_wrong(ramify: CommandLine, tasks: Path, text: str, expected: str) -> None:
    (tasks / "alpha" / "task.toml").write_text(text)
    for command in ("run", ("tasks", "check")):
        said = ramify(*([command] if isinstance(command, str) else command), tasks, *BARE)
        assert said.code == 2
        assert expected in said.complaint


def test_tasks_list_tells_the_good_from_the_bad(ramify: CommandLine, tasks: Path) -> None:
    make_task(tasks, "broken")
    (tasks / "broken" / "task.toml").write_text("x = [")
    (tasks / "alpha" / "instruction.md").unlink()
    make_task(tasks, "zeta")
    said = ramify("tasks", "list", tasks)
    assert said.code == 2
    complaints = said.err.splitlines()
    assert len(complaints) == 2
    assert all(line.startswith("ramify: ") for line in complaints)
    assert "beta" in said.out
    assert "zeta" in said.out
    said = ramify("tasks", "list", tasks, "--json")
    assert [record["task_id"] for record in said.records] == ["tasks:beta", "tasks:zeta"]


def test_no_docker(ramify: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    said = ramify("run", tasks, "--sandbox", "docker")
    assert said.code == 2
    assert "no Docker daemon at unix:///nowhere/docker.sock" in said.complaint
    assert "--sandbox local" in said.complaint
    assert said.complaint.count("dev/docker-engine") == 1


NO_NAMESPACES = """
for kind in user mnt pid net ipc uts; do echo 0 > /proc/sys/user/max_${kind}_namespaces; done
exec "$@"
"""


@pytest.mark.namespaces
def test_no_permission_for_namespaces(tasks: Path, tmp_path: Path) -> None:
    """In a user namespace that may make no further one; `bare` works there, and says what it is."""

    def there(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-U", "-r", "sh", "-c", NO_NAMESPACES, "sh", *program(*arguments)],
            cwd=tmp_path, env={**os.environ, "RAMIFY_HOME": str(tmp_path / "home")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = there("run", tasks, "--sandbox", "local")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "namespaces" in done.stderr
    assert "docker sandbox" in done.stderr, "the remedy"
    done = there("run", tasks, "--sandbox", "bare")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "mean 1.000" in done.stdout
    assert "warning:" in done.stdout, "what is not enforced is said"


def test_a_directory_of_another_configuration(ramify: CommandLine, tasks: Path) -> None:
    assert ramify("run", tasks, *BARE, "--out", "job").code == 0
    before = Path("job/results.jsonl").read_bytes()
    said = ramify("run", tasks, *BARE, "--out", "job", "--seed", "9")
    assert said.code == 2
    assert "belongs to another configuration" in said.complaint
    assert "seed was 0, now 9" in said.complaint
    assert Path("job/results.jsonl").read_bytes() == before
    said = ramify("run", tasks, *BARE, "--out", tasks)
    assert said.code == 2
    assert "not a job directory" in said.complaint


def test_a_directory_in_use(ramify: CommandLine, tasks: Path) -> None:
    assert ramify("run", tasks, *BARE, "--out", "job").code == 0
    holder = os.open("job/lock", os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        said = ramify("run", tasks, *BARE, "--out", "job")
    finally:
        os.close(holder)
    assert said.code == 2
    assert "job is open in process" in said.complaint
    assert ramify("run", tasks, *BARE, "--out", "job").code == 0


FULL = """
set -e
mkdir disk; mount -t tmpfs -o size={size} tmpfs disk
{prepare}
set +e
"$@"; echo "exit $?"
"""


def on_a_disk(
    tmp_path: Path, size: str, prepare: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    script = FULL.format(size=size, prepare=prepare)
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *program(*arguments)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.namespaces
@pytest.mark.parametrize(
    ("size", "prepare"),
    [
        ("64k", "dd if=/dev/zero of=disk/filler bs=1k count=100 2>/dev/null || :"),
        ("1m", "mount -o remount,ro disk"),
    ],
    ids=["full", "read-only"],
)
def test_a_run_directory_that_cannot_be_written(
    tasks: Path, tmp_path: Path, size: str, prepare: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    done = on_a_disk(
        tmp_path, size, prepare, "run", tasks, *BARE, "--out", "disk/job", "-n", "20",
        "--max-retries", "0",
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "exit 3", done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    complaints = [line for line in done.stderr.splitlines() if line.startswith("ramify: ")]
    assert len(complaints) == 1, done.stderr
    assert "disk" in complaints[0]


FILLS_UP = """
set -e
mkdir disk; mount -t tmpfs -o size=128k tmpfs disk
set +e
"$@"; echo "exit $?"
cp disk/job/results.jsonl early.jsonl
mount -o remount,size=16m disk
"$@"; echo "exit $?"
cp disk/job/results.jsonl late.jsonl
"""


@pytest.mark.namespaces
def test_a_disk_that_fills_up_loses_nothing(tasks: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    arguments = ("run", tasks, *BARE, "--out", "disk/job", "-n", "20", "-a", "nop")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FILLS_UP, "sh", *program(*arguments)],
        cwd=tmp_path, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert codes == ["exit 3", "exit 0"], done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("ramify: ")]) == 1
    early = (tmp_path / "early.jsonl").read_text().splitlines()
    late = (tmp_path / "late.jsonl").read_text().splitlines()
    assert 0 < len(early) < 40, "it was to fill up in mid-run"
    assert len(late) == 40
    assert late[: len(early)] == early, "what was recorded stays"


def test_a_mistake_of_a_plug_in_is_one_line_too(
    ramify: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("plugin.py").write_text("class Agent:\n    def __init__(self):\n        1 / 0\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    said = ramify("run", tasks, *BARE, "-a", "plugin:Agent")
    assert said.code == 3
    assert "ZeroDivisionError" in said.complaint
    assert "RAMIFY_TRACEBACK=1" in said.complaint
