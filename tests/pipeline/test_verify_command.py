"""`ramify verify` as people and programs meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

sys.path.append(str(Path(__file__).parents[1] / "cli"))
from command_line import CommandLine, program, started

from ramify.apps.pipeline.schemas import schemas

LOCAL = pytest.mark.namespaces
PROVIDERS = [
    pytest.param("local", marks=LOCAL),
    pytest.param("docker", marks=pytest.mark.docker),
]
PASSING = """\
verification:
  steps:
    - name: install
      command: echo fetched > node_modules
    - name: lint
      command: test -f node_modules && echo fine
"""
FAILING = """\
verification:
  steps:
    - {name: build, command: "echo building"}
    - {name: test, command: "echo to stdout; echo to stderr >&2; exit 7"}
    - {name: deploy, command: "touch deployed"}
"""


@pytest.fixture
def ramify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "artifacts"
    monkeypatch.setenv("AGENT_ARTIFACT_DIR", str(place))
    return place


Repo = Callable[..., Path]


def git(repo: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    done = subprocess.run(
        ["git", "-C", str(repo), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def make_repo(tmp_path: Path) -> Repo:
    def make(text: str | None = PASSING, *, committed: bool = True, name: str = "repo") -> Path:
        repo = tmp_path / name
        repo.mkdir()
        (repo / ".gitignore").write_text("node_modules\n")
        if text is not None:
            (repo / "agent.yaml").write_text(text)
        if committed:
            git(repo, "init", "-q")
            git(repo, "add", "-A")
            git(repo, "commit", "-qm", "all")
        return repo

    return make


def only_run(artifacts: Path) -> Path:
    (run,) = (artifacts / "runs").iterdir()
    return run


def check_response(text: str, artifacts: Path) -> dict[str, Any]:
    """The response, which is what the schema says, and what the manifest on disk says."""
    response = json.loads(text)
    jsonschema.Draft202012Validator(schemas()["response"]).validate(response)
    manifest = json.loads((artifacts / "runs" / response["run_id"] / "manifest.json").read_text())
    assert manifest == response["manifest"]
    assert all(Path(path).exists() for path in response["artifact_paths"])
    return response


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_pass(sandbox: str, ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo()
    said = ramify("verify", repo, "-s", sandbox, "--json")
    assert said.code == 0, said.err
    assert said.err == ""
    response = check_response(said.out, artifacts)
    assert (response["status"], response["reason"]) == ("PASS", "ok")
    assert response["tail_log"] == "fine"
    manifest = response["manifest"]
    assert manifest["commit_sha"] == git(repo, "rev-parse", "HEAD")
    assert [(c["name"], c["exit_code"]) for c in manifest["commands_executed"]] == [
        ("install", 0),
        ("lint", 0),
    ]
    assert manifest["platform"]["sandbox"] == sandbox
    assert sorted(entry.name for entry in repo.iterdir()) == [".git", ".gitignore", "agent.yaml"]


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_fail(sandbox: str, ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(FAILING), "-s", sandbox)
    assert said.code == 1, said.err
    assert said.err == ""
    run = only_run(artifacts)
    rows = [line.split()[:3] for line in said.out.splitlines()]
    assert ["build", "passed", "0"] in rows
    assert ["test", "failed", "7"] in rows
    assert ["deploy", "skipped", "-"] in rows
    for line in ("FAIL      step 'test' exited with 7", "│ to stdout", "│ to stderr",
                 f"run       {run.name}", f"artifacts {run}"):  # fmt: skip
        assert line in said.out.splitlines()
    assert str(run / "logs" / "step-02-test.log") in said.out
    assert "\x1b" not in said.out


@LOCAL
def test_json_of_a_failure(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(FAILING), "-s", "local", "--json")
    assert said.code == 1
    response = check_response(said.out, artifacts)
    assert response["reason"] == "step_failed"
    assert [step["status"] for step in response["manifest"]["steps"]] == [
        "passed",
        "failed",
        "skipped",
    ]


@LOCAL
def test_follow(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(FAILING)
    said = ramify("verify", repo, "-s", "local", "--follow", "--json")
    *events, response = said.records
    assert response["status"] == "FAIL"
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_ended"
    assert kinds.count("step_started") == kinds.count("step_ended") == 2
    text = "\n".join(event["text"] for event in events if event["kind"] == "output")
    assert "building" in text
    assert "to stderr" in text
    plain = ramify("verify", repo, "-s", "local", "--follow").out.splitlines()
    assert plain[0] == "── 1/3 build"
    assert plain[1] == "building"
    assert "│ to stdout" not in plain  # it was printed when it came


@LOCAL
def test_secrets_are_seen_nowhere(
    ramify: CommandLine, make_repo: Repo, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "hunter2-hunter2")
    text = """\
verification:
  secrets: [DEPLOY_KEY]
  steps:
    - {name: a, command: 'test $DEPLOY_KEY = "hunter2""-hunter2" && echo "key $DEPLOY_KEY"; exit 1'}
"""
    repo = make_repo(text)
    for arguments in (["--json"], ["--json", "--follow"], []):
        said = ramify("verify", repo, "-s", "local", *arguments)
        assert "key ***" in said.out
        assert "hunter2-hunter2" not in said.out + said.err
    for path in artifacts.rglob("*"):
        if path.is_file():
            assert b"hunter2-hunter2" not in path.read_bytes(), path
    monkeypatch.delenv("DEPLOY_KEY")
    said = ramify("verify", repo, "-s", "local")
    assert said.code == 2
    assert said.complaint == "ramify: secrets: DEPLOY_KEY is not set"


# Bad input: one clear line each, and the right exit code -----------------------------------------


def test_a_malformed_file(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(PASSING.replace("command: test", "comand: test")))
    assert said.code == 2
    assert said.complaint.startswith(
        "ramify: agent.yaml:6: verification.steps[1].comand: no such key; did you mean `command`?"
    )
    assert not artifacts.exists()


def test_no_file(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(None)
    said = ramify("verify", repo)
    assert said.code == 2
    assert said.complaint == (
        f"ramify: {repo}: there is no agent.yaml; `ramify verify init` writes a first one"
    )
    assert not artifacts.exists()


def test_no_repository(ramify: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = ramify("verify", tmp_path / "gone")
    assert (said.code, said.complaint) == (2, f"ramify: {tmp_path}/gone: does not exist")
    said = ramify("verify", tmp_path / "file")
    assert (said.code, said.complaint) == (2, f"ramify: {tmp_path}/file: is not a directory")


@LOCAL
def test_no_git_repository(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(committed=False)
    said = ramify("verify", repo, "-s", "local", "--json")
    assert said.code == 0, said.err
    response = check_response(said.out, artifacts)
    assert response["unpinned"] is True
    assert response["manifest"]["commit_sha"] == ""
    assert response["manifest"]["tree_sha"].startswith("sha256:")
    assert "unpinned  no commit holds agent.yaml" in ramify("verify", repo, "-s", "local").out


@LOCAL
def test_no_git_program(
    ramify: CommandLine, make_repo: Repo, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    monkeypatch.setenv("PATH", "/nowhere")
    said = ramify("verify", repo, "-s", "local")
    assert said.code in (2, 3)
    assert "git" in said.complaint
    assert "install" in said.complaint


def test_no_such_base(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(), "--base", "no-such-branch")
    assert said.code == 2
    assert "'no-such-branch' is no commit" in said.complaint


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_no_such_image(
    sandbox: str,
    ramify: CommandLine,
    make_repo: Repo,
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sandbox == "local":  # it would ask a Docker daemon for the image
        monkeypatch.setenv("DOCKER_HOST", f"unix://{artifacts}/nobody.sock")
    said = ramify("verify", make_repo(), "-s", sandbox, "--image", "no-such-image-here:1")
    assert said.code == 2
    assert "no-such-image-here:1" in said.complaint
    assert ("give --image host" in said.complaint) is (sandbox == "local")
    assert not list(artifacts.glob("runs/*/manifest.json"))


def test_no_such_sandbox(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(), "-s", "dokcer")
    assert said.code == 2
    assert "did you mean 'docker'?" in said.complaint


@pytest.mark.docker
def test_the_hosts_root_is_not_in_docker(
    ramify: CommandLine, make_repo: Repo, artifacts: Path
) -> None:
    said = ramify("verify", make_repo(), "-s", "docker", "--image", "host")
    assert said.code == 2
    assert "use --sandbox local" in said.complaint


@pytest.mark.parametrize("where", ["file/below", "/proc/nowhere", "link"])
@LOCAL
def test_an_artifact_directory_that_cannot_be_written(
    where: str,
    ramify: CommandLine,
    make_repo: Repo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/nowhere")
    monkeypatch.setenv("AGENT_ARTIFACT_DIR", str(tmp_path / where))
    said = ramify("verify", make_repo(), "-s", "local")
    assert said.code == 2
    assert "the artifact directory cannot be written" in said.complaint
    assert "give another with AGENT_ARTIFACT_DIR" in said.complaint


@LOCAL
def test_an_artifact_directory_in_the_repository(
    ramify: CommandLine, make_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    monkeypatch.setenv("AGENT_ARTIFACT_DIR", str(repo / "out"))
    said = ramify("verify", repo, "-s", "local")
    assert said.code == 2
    assert "lies in the repository" in said.complaint
    assert not (repo / "out").exists()


@LOCAL
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
@pytest.mark.parametrize("room", ["0", "8"])
def test_a_full_disk(room: str, make_repo: Repo, tmp_path: Path) -> None:
    repo = make_repo(
        PASSING + "    - {name: fill, command: 'head -c 3000000 /dev/zero > $TMPDIR/x'}\n"
    )
    place = tmp_path / "small"
    place.mkdir()
    kept = tmp_path / "kept"
    command = " ".join(program("verify", str(repo), "-s", "local", "--json"))
    script = f"""
mount -t tmpfs -o size=8m,nr_inodes=2000 tmpfs {place}
{command} > {kept}.1 || exit 50
head -c 2G /dev/zero > {place}/fill 2>/dev/null
truncate -s -{room}k {place}/fill
{command} > {kept}.2; code=$?
cat {place}/runs/*/manifest.json > {kept}
exit $code
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "AGENT_ARTIFACT_DIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 3, done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("ramify: ")
    assert "full" in lines[0] or "No space left" in lines[0]
    assert Path(f"{kept}.2").read_text() == ""
    first = json.loads(Path(f"{kept}.1").read_text())
    assert json.loads(kept.read_text()) == first["manifest"]


# One at a time, and interrupts -------------------------------------------------------------------

SLOW = """\
verification:
  steps:
    - {name: slow, command: "echo begun; sleep 300"}
    - {name: after, command: "true"}
"""


def begun(*arguments: str, repo: Path) -> subprocess.Popen[str]:
    """A verification whose step is at work."""
    running = started("verify", str(repo), *arguments, "--follow", "--json")
    assert running.stdout is not None
    for line in running.stdout:
        event = json.loads(line)
        if event["kind"] == "output" and "begun" in event["text"]:
            return running
    raise AssertionError(running.communicate())


def alive(word: str) -> bool:
    """Whether a process with a word in its command line is there."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line:
                return True
    return False


def gone_soon(word: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not alive(word):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sandbox", PROVIDERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    sandbox: str, number: signal.Signals, make_repo: Repo, artifacts: Path
) -> None:
    word = f"29{os.getpid() % 10000:04d}{int(number):02d}"
    repo = make_repo(SLOW.replace("300", word))
    running = begun("-s", sandbox, repo=repo)
    assert alive(f"sleep {word}")
    running.send_signal(number)
    _out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines() == [
        "",
        "interrupted: cleaning up (again to stop now)",
        "ramify: interrupted: neither PASS nor FAIL",
    ]
    assert gone_soon(f"sleep {word}")
    assert not (only_run(artifacts) / "manifest.json").exists()
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(repo) in line]


@pytest.mark.parametrize("sandbox", PROVIDERS)
def test_interrupted_twice(sandbox: str, make_repo: Repo, artifacts: Path) -> None:
    word = f"27{os.getpid() % 10000:04d}00"
    running = begun("-s", sandbox, repo=make_repo(SLOW.replace("300", word)))
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGTERM)  # two of one kind may become one
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert gone_soon(f"sleep {word}")
    assert not (only_run(artifacts) / "manifest.json").exists()


@LOCAL
def test_killed_and_then_again(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    word = f"28{os.getpid() % 10000:04d}00"
    repo = make_repo(SLOW.replace("300", word))
    running = begun("-s", "local", repo=repo)
    running.kill()
    running.communicate()
    assert gone_soon(f"sleep {word}")
    assert not list(artifacts.glob("runs/*/manifest.json"))
    (repo / "agent.yaml").write_text(PASSING)
    git(repo, "commit", "-qam", "quick")
    assert ramify("verify", repo, "-s", "local").code == 0


@LOCAL
def test_one_at_a_time(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(SLOW.replace("sleep 300", "while [ ! -e $TMPDIR/go ]; do sleep 0.1; done"))
    running = begun("-s", "local", repo=repo)
    run = only_run(artifacts)
    said = ramify("verify", repo, "-s", "local")
    assert said.code == 3
    assert said.complaint.startswith(
        f"ramify: {repo} is being verified already (run {run.name} of "
    )
    assert f"process {running.pid} " in said.complaint
    waiting = started("verify", str(repo), "-s", "local", "--wait", "--json")
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith(f"ramify: waiting for run {run.name} of process ")
    (run / "tmp" / "go").touch()
    out, _err = running.communicate(timeout=60)
    assert running.returncode == 0, out
    waiting.kill()  # its step waits for a file of its own
    waiting.communicate()


@LOCAL
def test_nobody_reads(make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(SLOW.replace("sleep 300", "yes x27182818 | head -c 3000000; sleep 1"))
    running = started("verify", str(repo), "-s", "local", "--follow")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr is not None
    err = running.stderr.read()
    running.stderr.close()
    assert running.wait(60) == 1
    assert "Traceback" not in err
    assert gone_soon("x27182818")


# The rest ----------------------------------------------------------------------------------------


@LOCAL
def test_a_dry_run_runs_nothing(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo()
    said = ramify("verify", repo, "-s", "local", "--dry-run")
    assert said.code == 0
    assert ["install", "full", "-", "echo", "fetched"] in [
        line.split()[:5] for line in said.out.splitlines()
    ]
    commit = git(repo, "rev-parse", "HEAD")[:12]
    assert f"pipeline  agent.yaml of commit {commit}" in said.out
    facts = json.loads(ramify("verify", repo, "-s", "local", "--dry-run", "--json").out)
    assert (facts["sandbox"], facts["image"]) == ("local", "host")
    assert [step["name"] for step in facts["verification"]["steps"]] == ["install", "lint"]
    (repo / "agent.yaml").write_text(FAILING)
    said = ramify("verify", repo, "-s", "local", "--dry-run")
    assert "the working copy has another one, so the run would fail" in said.out
    assert not artifacts.exists()


@LOCAL
def test_the_repository_here(
    ramify: CommandLine, make_repo: Repo, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    (repo / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(repo / "a" / "b")
    monkeypatch.setenv("RAMIFY_VERIFY_SANDBOX", "local")
    said = ramify("verify", "--json")
    assert said.code == 0
    assert said.records[0]["manifest"]["platform"]["sandbox"] == "local"


@LOCAL
def test_without_docker_it_is_local_and_says_so(
    ramify: CommandLine, make_repo: Repo, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{artifacts}/nobody.sock")
    said = ramify("verify", make_repo())
    assert said.code == 0, said.err
    (line,) = [line for line in said.out.splitlines() if line.startswith("sandbox ")]
    assert line.startswith("sandbox   local, image host  (sandbox `docker`: ")


@pytest.mark.docker
def test_with_docker_it_is_docker(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    said = ramify("verify", make_repo(), "--json")
    assert said.code == 0, said.err
    assert said.records[0]["manifest"]["platform"]["sandbox"] == "docker"


@pytest.mark.parametrize("name", ["agent", "response"])
def test_schemas_are_printed(name: str, ramify: CommandLine) -> None:
    said = ramify("verify", "--schema", name)
    assert said.code == 0
    assert json.loads(said.out) == json.loads(json.dumps(schemas()[name]))


def test_nothing_skips_a_step(ramify: CommandLine, make_repo: Repo) -> None:
    repo = make_repo()
    for flag in ("--skip=lint", "--only=lint", "--step=lint", "--force", "--no-guard"):
        said = ramify("verify", repo, flag)
        assert said.code == 2
        assert "No such option" in said.complaint


def test_init(ramify: CommandLine, tmp_path: Path) -> None:
    said = ramify("verify", "init", tmp_path)
    assert said.code == 2
    assert "holds no Python" in said.complaint
    (tmp_path / "Cargo.toml").write_text("[package]\nname='x'\n")
    printed = ramify("verify", "init", tmp_path, "--print").out
    assert not (tmp_path / "agent.yaml").exists()
    said = ramify("verify", "init", tmp_path)
    assert said.code == 0
    assert said.out.startswith(f"wrote {tmp_path}/agent.yaml; read it, commit it, then")
    assert (tmp_path / "agent.yaml").read_text() == printed
    said = ramify("verify", "init", tmp_path)
    assert said.code == 2
    assert "is there already" in said.complaint
    assert "  --print" in ramify("verify", "init", "--help").out


@LOCAL
def test_old_runs_go(ramify: CommandLine, make_repo: Repo, artifacts: Path) -> None:
    repo = make_repo(PASSING.replace("  steps", "  retention: {runs: 2}\n  steps"))
    ids: list[str] = []
    for _ in range(3):
        said = ramify("verify", repo, "-s", "local", "--json")
        assert said.code == 0, said.err
        ids.append(said.records[0]["run_id"])
    assert {run.name for run in (artifacts / "runs").iterdir()} == set(ids[1:])
