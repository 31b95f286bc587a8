"""The script verifier on the fake sandbox: what it shares, what it refuses, what it cleans up."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from ramify.contracts.config import RolloutConfig
from ramify.contracts.errors import (
    ConfigError,
    EnvironmentFailed,
    InfraError,
    InvalidRewardError,
    SandboxLostError,
    SandboxStartError,
    UnsupportedError,
)
from ramify.contracts.sandbox import (
    ExecResult,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.contracts.task import IsolationLevel, Task, TaskPackage, VerifierSettings
from ramify.planes.reward.script import ScriptVerifier
from ramify.testing.fakecontext import fake_context
from ramify.testing.fakes import FAKE_CAPABILITIES, FakeProvider

TEST_SH = re.compile(r"/tests/test\.sh")
FRESH = (IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR)
OFFLINE = (*FRESH, IsolationLevel.FILESYSTEM)
ALL = tuple(IsolationLevel)


async def prepare(sandbox, ctx):
    """The task's start: one file, and the work directory."""
    sandbox.files.write("/app/given.txt", "given")


def grade(sandbox, call):
    """The tests: the answer must be 42."""
    try:
        right = sandbox.files.read("/app/answer.txt") == b"42"
    except FileNotFoundError:
        right = False
    sandbox.files.write("/logs/verifier/reward.txt", "1\n" if right else "0\n")
    return b"graded\n"


class Stand:
    """One task, one agent's sandbox, one verifier."""

    def __init__(self, tmp_path: Path, **settings):
        self.root = tmp_path / "task"
        (self.root / "tests").mkdir(parents=True)
        (self.root / "tests/test.sh").write_text("echo graded\n")
        (self.root / "tests/test_it.py").write_text("assert 1\n")
        self.artifacts = tmp_path / "artifacts"
        self.provider = FakeProvider(settings.pop("capabilities", FAKE_CAPABILITIES))
        self.provider.on(TEST_SH, settings.pop("tests", grade))
        self.provider.on(re.compile("rm -rf -- "), _rm)
        outputs = settings.pop("outputs", ("answer.txt",))
        self.env = settings.pop("agent_env", {})
        self.config = settings.pop("config", RolloutConfig())
        self.package = TaskPackage(
            str(self.root),
            "digest",
            SandboxSpec(host_root=True, env={"TASK": "1"}),
            VerifierSettings(**settings),
            outputs=outputs,
        )

    async def open(self):
        spec = SandboxSpec(
            host_root=True,
            env={"TASK": "1", "KEY": "secret", **self.env},
            user="agent",
            network=NetworkPolicy(NetworkMode.OPEN),
        )
        image = await self.provider.prepare(spec)
        self.agent = await self.provider.create(spec, image)
        await prepare(self.agent, None)
        self.ctx = fake_context(
            Task("set:one", package=self.package),
            artifacts=self.artifacts,
            config=self.config,
            sandbox=self.agent,
            provider=self.provider,
            image=image,
        )
        return self.agent.files

    async def score(self, level, prepare=prepare):
        return await ScriptVerifier(level, prepare).score(None, self.ctx)

    def nothing_left(self):
        return list(self.provider.alive.values()) in ([self.agent], []) and not self.provider.images


def _rm(sandbox, call):
    sandbox.files.remove(call.command.removeprefix('rm -rf -- "$RAMIFY_ROOT"'))


async def invalid(stand, level, reason):
    with pytest.raises(InvalidRewardError) as caught:
        await stand.score(level)
    assert caught.value.reason == reason
    assert stand.nothing_left()
    return caught.value


@pytest.mark.parametrize("level", ALL)
async def test_right_and_wrong_answers(tmp_path, level):
    stand = Stand(tmp_path)
    files = await stand.open()
    files.write("/app/answer.txt", "42")
    result = await stand.score(level)
    assert (result.reward, result.grader_isolation) == (1.0, level.value)
    assert [(e.name, e.value, e.space, e.granularity) for e in result.events] == [
        ("reward", 1.0, "output", "terminal")
    ]
    assert (stand.artifacts / "verifier/test-stdout.txt").read_bytes() == b"graded\n"
    assert (stand.artifacts / "verifier/reward.txt").read_bytes() == b"1\n"
    assert (stand.artifacts / "verifier/logs/reward.txt").read_bytes() == b"1\n"
    assert stand.nothing_left()


@pytest.mark.parametrize("level", ALL)
async def test_nothing_done_scores_the_tests_own_zero(tmp_path, level):
    stand = Stand(tmp_path)
    await stand.open()
    assert (await stand.score(level)).reward == 0.0


@pytest.mark.parametrize("level", ALL)
async def test_how_the_tests_are_run(tmp_path, level):
    stand = Stand(
        tmp_path,
        env={"EXTRA": "x"},
        user="grader",
        timeout_sec=10,
        config=RolloutConfig(timeout_multiplier=2),
    )
    files = await stand.open()
    files.write("/app/answer.txt", "42")
    await stand.score(level)
    sandbox = stand.provider.made[-1]
    call = next(call for call in sandbox.calls if "test.sh" in call.command)
    assert (call.user, call.cwd, call.timeout_sec, call.kill_leftovers) == (
        "grader",
        "/app",
        20,
        True,
    )
    assert set(call.env) == {"PATH", "EXTRA"}
    assert '"$RAMIFY_ROOT"/tests/test.sh' in call.command
    assert sandbox.files.entries["/tests/test.sh"].owner == "root"
    assert sandbox.files.entries["/logs/verifier"].owner == "grader"
    if level is IsolationLevel.LIVE:
        assert sandbox is stand.agent
        return
    assert sandbox.spec.env == {"TASK": "1"}
    assert (sandbox.spec.lockdown, sandbox.spec.user) == (True, None)
    assert sandbox.spec.network == NetworkPolicy(NetworkMode.NONE)


@pytest.mark.parametrize("level", ALL)
async def test_r01_planted_reward_files_and_tests_are_gone(tmp_path, level):
    seen = {}

    def look(sandbox, call):
        seen.update(sandbox.files.entries)
        return grade(sandbox, call)

    stand = Stand(tmp_path, tests=look)
    files = await stand.open()
    files.write("/logs/verifier/reward.json", '{"reward": 1}')
    files.write("/logs/verifier/reward.txt", "1")
    files.write("/tests/conftest.py", "cheat")
    files.write("/tests/test.sh", "echo 1 > /logs/verifier/reward.txt")
    assert (await stand.score(level)).reward == 0.0
    assert "/tests/conftest.py" not in seen
    assert "/logs/verifier/reward.json" not in seen
    assert seen["/tests/test.sh"].data == b"echo graded\n"


@pytest.mark.parametrize("level", ALL)
async def test_planted_links_are_replaced_not_followed(tmp_path, level):
    stand = Stand(tmp_path)
    files = await stand.open()
    files.write("/app/cheat/reward.txt", "1")
    files.remove("/logs/verifier")
    files.link("/logs/verifier", "/app/cheat")
    files.link("/tests", "/app/cheat")
    assert (await stand.score(level)).reward == 0.0
    assert files.read("/app/cheat/reward.txt") == b"1"


@pytest.mark.parametrize("level", FRESH)
async def test_only_bytes_of_what_is_declared_cross(tmp_path, level):
    stand = Stand(tmp_path, outputs=("answer.txt", "out", "/data/result", "gone.txt"))
    files = await stand.open()
    files.write("/app/answer.txt", "42")
    files.write("/app/out/a", "a")
    files.link("/app/out/passwd", "/etc/passwd")
    files.special("/app/out/fifo")
    files.write("/data/result", "r")
    files.write("/app/other.txt", "x")
    files.write("/etc/evil", "x")
    files.write("/app/given.txt", "changed")
    result = await stand.score(level)
    target = stand.provider.made[-1].files
    assert target.read("/app/out/a") == b"a"
    assert target.read("/data/result") == b"r"
    assert "/app/out/passwd" not in target.entries
    assert "/app/out/fifo" not in target.entries
    assert "/etc/evil" not in target.entries
    whole = level is IsolationLevel.WORKDIR
    assert ("/app/other.txt" in target.entries) is whole
    assert target.read("/app/given.txt") == (b"changed" if whole else b"given")
    assert result.reward == 1.0
    dropped = result.details["outputs_dropped"]
    assert any("passwd: symbolic link" in entry for entry in dropped)
    assert result.details.get("outputs_absent") == (None if whole else ["/app/gone.txt"])


async def test_a_declared_directory_crosses_without_links_and_replaces_the_given_one(tmp_path):
    async def with_old(sandbox, ctx):
        sandbox.files.write("/app/out/old", "x")

    stand = Stand(tmp_path, outputs=("out",))
    files = await stand.open()
    files.write("/app/out/new", "x")
    files.link("/app/out/link", "new")
    await stand.score(IsolationLevel.OUTPUTS, with_old)
    assert stand.provider.made[-1].files.below("/app/out") == ["new"]


async def test_nothing_is_left_on_the_host_but_artifacts(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "home"))
    stand = Stand(tmp_path)
    files = await stand.open()
    files.write("/app/answer.txt", "42")
    await stand.score(IsolationLevel.OUTPUTS)
    for place in ("tmp", "home/tmp"):
        assert list((tmp_path / place).iterdir()) == []
    call = next(c for c in stand.provider.made[-1].calls if "test.sh" in c.command)
    assert call.user == "root"


async def test_a_declared_output_that_the_agent_removed_is_removed(tmp_path):
    stand = Stand(tmp_path, outputs=("given.txt",))
    files = await stand.open()
    files.remove("/app/given.txt")
    await stand.score(IsolationLevel.OUTPUTS)
    assert "/app/given.txt" not in stand.provider.made[-1].files.entries


async def test_a_tree_too_large_to_cross_is_no_evidence(tmp_path):
    stand = Stand(tmp_path)
    files = await stand.open()
    files.write("/app/answer.txt" + "/d" * 70, "x")
    await invalid(stand, IsolationLevel.OUTPUTS, "no_evidence")
    assert len(stand.provider.made) == 2  # the agent's and the verifier's: no baseline


def given_an_answer(work):
    """Tests that do `work` if there is an answer, and grade properly otherwise."""

    def run(sandbox, call):
        if "/app/answer.txt" in sandbox.files.entries:
            return work(sandbox.files)
        return grade(sandbox, call)

    return run


@pytest.mark.parametrize("level", ALL)
@pytest.mark.parametrize(
    ("reason", "work"),
    [
        ("missing", lambda files: None),
        ("malformed", lambda files: files.write("/logs/verifier/reward.txt", "nan")),
        ("malformed", lambda files: files.write("/logs/verifier/reward.json", "{}")),
        ("malformed", lambda f: f.write("/logs/verifier/reward.txt", b"0" * (1024 * 1024 + 1))),
        ("range", lambda files: files.write("/logs/verifier/reward.txt", "1000000")),
        ("tampered", lambda files: files.link("/logs/verifier/reward.txt", "/app/answer.txt")),
        ("tampered", lambda files: files.special("/logs/verifier/reward.json")),
        ("tampered", lambda files: files.write("/logs/verifier/reward.txt/x", "1")),
        ("tampered", lambda files: files.link("/logs/verifier", "/app")),
        ("tampered", lambda files: files.write("/tests/test_it.py", "assert True")),
        ("tampered", lambda files: files.remove("/tests/test.sh")),
    ],
)
async def test_evidence_that_does_not_count(tmp_path, level, reason, work):
    stand = Stand(tmp_path, tests=given_an_answer(work))
    files = await stand.open()
    files.write("/app/answer.txt", "41")
    await invalid(stand, level, reason)


async def test_tests_that_do_not_end_are_missing(tmp_path):
    async def hang(sandbox, call):
        if "/app/answer.txt" not in sandbox.files.entries:
            return grade(sandbox, call)
        sandbox.files.write("/logs/verifier/reward.txt", "1")
        return await asyncio.Event().wait()

    stand = Stand(tmp_path, tests=hang, timeout_sec=0.05)
    files = await stand.open()
    files.write("/app/answer.txt", "loop")
    error = await invalid(stand, IsolationLevel.OUTPUTS, "missing")
    assert "0.05 s" in str(error)


async def test_a_verifier_broken_on_its_own_is_our_fault_and_is_asked_once(tmp_path):
    stand = Stand(tmp_path, tests=lambda sandbox, call: None)
    verifier = ScriptVerifier(IsolationLevel.OUTPUTS, prepare)
    await stand.open()
    with pytest.raises(InfraError, match="broken: on an untouched workspace"):
        await verifier.score(None, stand.ctx)
    assert len(stand.provider.made) == 3
    with pytest.raises(InfraError, match="broken"):
        await verifier.score(None, stand.ctx)
    assert len(stand.provider.made) == 4  # the baseline was not repeated
    assert stand.nothing_left()


async def test_another_reason_on_the_untouched_workspace_stays_invalid(tmp_path):
    def run(sandbox, call):
        text = "2" if "/app/answer.txt" in sandbox.files.entries else "x"
        sandbox.files.write("/logs/verifier/reward.txt", text)

    stand = Stand(tmp_path, tests=run)
    files = await stand.open()
    files.write("/app/answer.txt", "x")
    await invalid(stand, IsolationLevel.OUTPUTS, "range")


async def test_the_baseline_never_sees_the_agents_work(tmp_path):
    stand = Stand(tmp_path, tests=given_an_answer(lambda files: None))
    files = await stand.open()
    files.write("/app/answer.txt", "42")
    await invalid(stand, IsolationLevel.LIVE, "missing")
    baseline = stand.provider.made[-1]
    assert baseline is not stand.agent
    assert "/app/answer.txt" not in baseline.files.entries
    assert (stand.artifacts / "verifier/baseline/reward.txt").read_bytes() == b"0\n"


async def test_items_and_details_of_reward_json(tmp_path):
    text = '{"reward": 0.5, "speed": 3, "details": {"failed": ["a"]}}'
    stand = Stand(tmp_path, tests=lambda s, c: s.files.write("/logs/verifier/reward.json", text))
    await stand.open()
    result = await stand.score(IsolationLevel.OUTPUTS)
    assert (result.reward, result.items) == (0.5, {"speed": 3.0})
    assert result.details["reported"] == {"details.failed": ["a"]}
    assert result.details["exit_code"] == 0


async def test_an_own_command_and_a_nonzero_exit_still_count(tmp_path):
    def run(sandbox, call):
        sandbox.files.write("/logs/verifier/reward.txt", "0.25")
        return ExecResult(1, stderr=b"1 failed")

    stand = Stand(tmp_path, command=("python3", "/tests/run.py", "--all"))
    stand.provider.on('exec python3 "$RAMIFY_ROOT"/tests/run.py --all', run)
    await stand.open()
    result = await stand.score(IsolationLevel.OUTPUTS)
    assert (result.reward, result.details["exit_code"]) == (0.25, 1)
    assert (stand.artifacts / "verifier/test-stderr.txt").read_bytes() == b"1 failed"


async def test_s03_on_an_agents_file_system_the_system_directories_come_first(tmp_path):
    paths = {}
    for level in ALL:
        stand = Stand(tmp_path / level.value)
        await stand.open()
        await stand.score(level)
        calls = stand.provider.made[-1].calls
        paths[level] = next(c.env["PATH"] for c in calls if "test.sh" in c.command)
    assert paths[IsolationLevel.OUTPUTS].startswith("/usr/local/sbin:")
    for level in (IsolationLevel.FILESYSTEM, IsolationLevel.LIVE):
        assert paths[level].index("/usr/bin") < paths[level].index("/usr/local/bin")


@pytest.mark.parametrize("level", OFFLINE)
@pytest.mark.parametrize("method", ["create", "upload", "exec", "download"])
async def test_failures_of_ours_are_raised_and_leave_nothing(tmp_path, level, method):
    stand = Stand(tmp_path)
    await stand.open()
    error = SandboxStartError("no room") if method == "create" else SandboxLostError("gone")
    stand.provider.fail(method, error)
    with pytest.raises(InfraError) as caught:
        await stand.score(level)
    assert caught.value is error
    assert stand.nothing_left()


async def test_a_failing_set_up_is_raised_and_leaves_nothing(tmp_path):
    async def broken(sandbox, ctx):
        raise EnvironmentFailed("setup.sh exited 1")

    stand = Stand(tmp_path)
    await stand.open()
    with pytest.raises(EnvironmentFailed):
        await stand.score(IsolationLevel.OUTPUTS, broken)
    assert stand.nothing_left()


@pytest.mark.parametrize("level", ALL)
async def test_cancellation_leaves_nothing(tmp_path, level):
    running = asyncio.Event()

    async def hang(sandbox, call):
        running.set()
        await asyncio.Event().wait()

    stand = Stand(tmp_path, tests=hang)
    await stand.open()
    task = asyncio.create_task(stand.score(level))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stand.nothing_left()


async def test_what_cannot_be_verified_is_refused(tmp_path):
    stand = Stand(tmp_path, outputs=())
    await stand.open()
    with pytest.raises(ConfigError, match="declares no outputs"):
        await stand.score(IsolationLevel.OUTPUTS)
    (stand.root / "tests/test.sh").unlink()
    with pytest.raises(ConfigError, match=r"no test\.sh"):
        await stand.score(IsolationLevel.WORKDIR)
    assert stand.nothing_left()
    stand.ctx = fake_context(Task("set:one"), artifacts=tmp_path)
    with pytest.raises(UnsupportedError, match="without a directory"):
        await stand.score(IsolationLevel.LIVE)


async def test_a_provider_that_cannot_freeze_is_refused_at_filesystem(tmp_path):
    weak = msgspec.structs.replace(FAKE_CAPABILITIES, snapshot="none", lockdown=False)
    stand = Stand(tmp_path, capabilities=weak)
    await stand.open()
    with pytest.raises(UnsupportedError, match="cannot freeze"):
        await stand.score(IsolationLevel.FILESYSTEM)
    result = await stand.score(IsolationLevel.OUTPUTS)
    assert result.details["lockdown"] is False
