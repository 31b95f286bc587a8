"""Old runs go, the newest and the running stay, and nothing outside is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ramify.apps.pipeline.records import Retention
from ramify.apps.pipeline.retention import Swept, belongs_to, sweep
from ramify.contracts.removal import in_use

NOW = 1_700_000_000.0
GIB = 1024**3


def make_run(
    artifacts: Path, name: str, age_sec: float, *, size: int = 0, finished: bool = True
) -> Path:
    run = artifacts / "runs" / name
    (run / "logs").mkdir(parents=True)
    if size:
        (run / "logs" / "combined.log").write_bytes(os.urandom(size))
    belongs_to(run, artifacts / "repository")
    if finished:
        (run / "manifest.json").write_text("{}")
        os.utime(run / "manifest.json", (NOW - age_sec, NOW - age_sec))
    os.utime(run, (NOW - age_sec, NOW - age_sec))
    return run


def swept(artifacts: Path, *, runs: int = 20, size: int = 10 * GIB) -> Swept:
    return sweep(artifacts, artifacts / "repository", Retention(runs, size), NOW, alone=True)


def left(artifacts: Path) -> set[str]:
    return set(os.listdir(artifacts / "runs"))


def test_nothing_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    assert swept(tmp_path) == Swept()


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    for n in range(6):
        make_run(tmp_path, f"r{n}", age_sec=n * 10)
    assert swept(tmp_path, runs=4) == Swept(("r4", "r5"))
    assert left(tmp_path) == {"r0", "r1", "r2", "r3"}
    assert swept(tmp_path, runs=4) == Swept()


def test_runs_of_other_repositories_are_left_alone(tmp_path: Path) -> None:
    for n in range(3):
        make_run(tmp_path, f"r{n}", age_sec=n * 10)
    belongs_to(tmp_path / "runs" / "r2", tmp_path / "other")
    (tmp_path / "runs" / "r1" / ".repository").unlink()
    assert swept(tmp_path, runs=1) == Swept()
    assert left(tmp_path) == {"r0", "r1", "r2"}


def test_where_others_may_verify_too_a_run_of_the_last_minutes_stays(tmp_path: Path) -> None:
    for n in range(6):
        make_run(tmp_path, f"r{n}", age_sec=n * 100)
    belongs_to(tmp_path / "runs" / "r5", tmp_path / "other")
    repository = tmp_path / "repository"
    assert sweep(tmp_path, repository, Retention(1), NOW) == Swept(("r4",))
    assert sweep(tmp_path, None, Retention(1), NOW) == Swept(("r5",))
    assert left(tmp_path) == {"r0", "r1", "r2", "r3"}


def test_many_sweep_at_once(tmp_path: Path) -> None:
    """Each run goes once, and nobody is told of a problem that is none."""
    for n in range(40):
        make_run(tmp_path, f"r{n:02}", age_sec=n * 10, size=1000)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: swept(tmp_path, runs=2), range(8)))
    assert left(tmp_path) == {"r00", "r01"}
    assert sorted(name for each in done for name in each.runs) == [f"r{n:02}" for n in range(2, 40)]
    assert not [problem for each in done for problem in each.problems]


def test_bytes_bound_what_is_kept_but_the_newest_stays(tmp_path: Path) -> None:
    for n in range(4):
        make_run(tmp_path, f"r{n}", age_sec=n * 10, size=100_000)
    assert set(swept(tmp_path, size=250_000).runs) == {"r2", "r3"}
    assert set(swept(tmp_path, size=10).runs) == {"r1"}
    assert left(tmp_path) == {"r0"}


def test_a_run_that_never_finished_goes_after_an_hour(tmp_path: Path) -> None:
    make_run(tmp_path, "old", 3700, finished=False)
    make_run(tmp_path, "young", 3500, finished=False)
    assert swept(tmp_path).runs == ("old",)
    assert left(tmp_path) == {"young"}


def test_a_running_run_is_never_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, "going", 9000, finished=False)
    code = (
        "import sys; from pathlib import Path\n"
        "from ramify.contracts.removal import in_use\n"
        "with in_use(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdin is not None
    with other:
        assert other.stdout.readline() == b"held\n"
        assert swept(tmp_path) == Swept()
        assert run.is_dir()
        other.kill()  # however it dies, it lets go
    assert swept(tmp_path).runs == ("going",)


def test_a_run_can_be_held_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 9000, finished=False)
    with in_use(run):
        assert swept(tmp_path) == Swept()
    assert swept(tmp_path).runs == ("a",)


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "kept").write_text("kept")
    artifacts = tmp_path / "artifacts"
    run = make_run(artifacts, "bad", 9000, finished=False)
    (run / "tmp").symlink_to(outside)
    (run / "logs" / "file").symlink_to(outside / "deep" / "kept")
    (run / "logs" / "sub").mkdir()
    (run / "logs" / "sub" / "dir").symlink_to(outside / "deep")
    (artifacts / "runs" / "link").symlink_to(outside)  # a run that is a link is none
    os.utime(run, (NOW - 9000, NOW - 9000))
    assert swept(artifacts).runs == ("bad",)
    assert (outside / "deep" / "kept").read_text() == "kept"
    assert outside.stat().st_mode == (tmp_path / "artifacts").stat().st_mode
    assert left(artifacts) == {"link"}


def test_a_manifest_that_is_a_link_finishes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "bad", 9000, finished=False)
    (run / "manifest.json").symlink_to("/etc/hostname")
    os.utime(run, (NOW - 9000, NOW - 9000))
    assert swept(tmp_path).runs == ("bad",)


def test_a_tree_deeper_than_any_path_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, "deep", 9000, finished=False)
    at = os.open(run / "logs", os.O_RDONLY)
    for n in range(3000):
        os.mkdir("d" * 20, dir_fd=at)
        if n % 500 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    os.utime(run, (NOW - 9000, NOW - 9000))
    assert swept(tmp_path).runs == ("deep",)
    assert left(tmp_path) == set()


def test_what_has_no_permissions_goes_for_an_ordinary_user_too(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    run = make_run(artifacts, "closed", 9000, finished=False)
    (run / "a" / "b").mkdir(parents=True)
    (run / "a" / "b" / "file").write_text("x")
    os.mkfifo(run / "a" / "pipe")
    for path in (run / "a" / "b" / "file", run / "a" / "b", run / "a", run):
        path.chmod(0)
    os.utime(run, (NOW - 9000, NOW - 9000))
    if os.geteuid() != 0:
        assert swept(artifacts).runs == ("closed",)
        return
    for path in (run / "a" / "b" / "file", run / "a" / "b", run / "a", run, artifacts / "runs"):
        os.chown(path, 65534, 65534)
    os.chown(run / "logs", 65534, 65534)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:  # an ordinary user
        try:
            os.chdir(artifacts)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, repr(swept(Path())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        assert said.read() == repr(Swept(("closed",)))


def test_a_removal_that_was_cut_short_is_finished_next_time(tmp_path: Path) -> None:
    make_run(tmp_path, ".removed-r1", 5, finished=False)
    assert swept(tmp_path).runs == ("r1",)
    assert left(tmp_path) == set()


def test_a_size_is_measured_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r0", 10, size=50_000)
    make_run(tmp_path, "r1", 20)
    assert swept(tmp_path, size=200_000).runs == ()
    (run / "logs" / "more").write_bytes(os.urandom(500_000))
    assert swept(tmp_path, size=200_000).runs == ()
