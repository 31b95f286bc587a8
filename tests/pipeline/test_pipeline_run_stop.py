"""How steps are stopped: in time, for memory, for what they write; and nothing of them survives."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from pipeline_stand import digest, make_repository, pipeline, provider_of, verify

from ramify.apps.pipeline.records import PipelineSpec, RunEvent, StepSpec
from ramify.contracts.sandbox import Limits

PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


def alive(marker: str) -> list[str]:
    """Processes of this machine whose command line holds `marker`."""
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if marker in line and place.name != str(os.getpid()):
            found.append(line)
    return found


STUCK = {
    "infinite_loop": "echo {m}; while :; do :; done",
    "hang_on_network": "echo {m}; exec 3<&0; cat < /artifacts/tmp/never",
    "deadlock": "echo {m}; mkfifo /tmp/a /tmp/b; (cat /tmp/a > /tmp/b) & cat /tmp/b > /tmp/a",
    "ignores_sigterm": "trap '' TERM INT HUP; echo {m}; while :; do sleep 1; done",
    "daemon_holds_stdout": "echo {m}; (trap '' TERM; setsid sleep 987654 & ) ; sleep 987654",
    "stopped_tree": "echo {m}; sleep 987654 & kill -STOP $!; kill -STOP $$",
}


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("case", STUCK)
async def test_a_timeout_fails_on_time_and_nothing_survives(
    name: str, case: str, tmp_path: Path
) -> None:
    repo = make_repository(tmp_path)
    command = STUCK[case].format(m="begun")
    if case == "hang_on_network":
        command = "mkfifo /artifacts/tmp/never; " + command
    marker = f"marker-{os.getpid()}-{tmp_path.name}-{case}"
    steps = (
        StepSpec("stuck", f": {marker}\n{command}", timeout_sec=1.0),
        StepSpec("after", "true"),
    )
    async with provider_of(name) as provider:
        async with asyncio.timeout(30):
            response = await verify(provider, repo, PipelineSpec(steps, grace_sec=0.3))
    assert (response.status, response.reason) == ("FAIL", "timeout")
    step = response.manifest.steps[0]
    assert (step.exit_code, step.timed_out) == (124, True)
    assert response.manifest.commands_executed[0].exit_code == 124
    assert response.manifest.steps[1].status == "skipped"
    assert response.tail_log.startswith("begun")
    assert alive(marker) == []


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_daemon_that_holds_the_output_delays_nothing(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    marker = f"9{abs(hash(str(tmp_path))) % 10**8}"
    spec = pipeline(f"setsid sleep {marker} & echo done", "sleep 0.1; ls /proc > /tmp/p; echo two")
    async with provider_of(name) as provider:
        async with asyncio.timeout(30):
            response = await verify(provider, repo, spec)
    assert response.passed
    assert response.manifest.steps[0].leftover_processes == 1
    assert response.manifest.steps[1].leftover_processes == 0
    assert "killed what the step left behind" in response.tail_log
    assert alive(marker) == []


@pytest.mark.namespaces
async def test_what_is_left_in_the_background_on_purpose_lives_on(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    steps = (
        StepSpec("serve", "(while :; do echo tick > /tmp/t; sleep 0.05; done) &", background=True),
        StepSpec("use", "sleep 0.3; rm -f /tmp/t; sleep 0.3; cat /tmp/t"),
    )
    async with provider_of("local") as provider:
        response = await verify(provider, repo, PipelineSpec(steps))
    assert response.passed, response.tail_log
    assert [step.leftover_processes for step in response.manifest.steps] == [0, 0]


@pytest.mark.namespaces
async def test_the_background_cannot_write_to_the_repository_either(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    steps = (
        StepSpec("serve", "(sleep 0.4; echo x >> README.md; sleep 9) &", background=True),
        StepSpec("use", "sleep 0.1"),
        StepSpec("wait", "while ! grep -q x README.md; do sleep 0.05; done"),
    )
    async with provider_of("local") as provider:
        response = await verify(provider, repo, PipelineSpec(steps, timeout_sec=20))
    assert response.reason == "write_violation"


@pytest.mark.namespaces
async def test_the_pipelines_own_timeout_bounds_all_steps(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        response = await verify(
            provider, repo, pipeline("true", "sleep 60", "true", timeout_sec=1.0)
        )
    assert response.reason == "timeout"
    assert [s.status for s in response.manifest.steps] == ["passed", "failed", "skipped"]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_killed_for_memory_is_told(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    step = StepSpec("eat", "exec dd if=/dev/zero of=/dev/null bs=400M count=1")
    spec = PipelineSpec((step,), limits=Limits(memory_mb=64))
    async with provider_of(name) as provider:
        await provider.probe()
        if "memory_mb" not in provider.capabilities().limits:
            pytest.skip("memory cannot be limited here")
        response = await verify(provider, repo, spec)
    assert (response.status, response.reason) == ("FAIL", "oom")
    assert response.manifest.steps[0].oom_killed


@pytest.mark.namespaces
async def test_what_a_run_writes_is_bounded(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    spec = pipeline("head -c 3000000 /dev/zero > $TMPDIR/x", max_artifact_bytes=2_000_000)
    endless = pipeline("cat /dev/zero > build/x & sleep 600", max_artifact_bytes=2_000_000)
    async with provider_of("local") as provider:
        response = await verify(provider, repo, spec)
        assert (response.status, response.reason) == ("FAIL", "artifact_quota")
        async with asyncio.timeout(60):
            response = await verify(provider, repo, endless)
        assert (response.status, response.reason) == ("FAIL", "artifact_quota")


@pytest.mark.namespaces
async def test_a_cancelled_run_leaves_nothing(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    before = digest(repo)
    marker = f"8{abs(hash(str(tmp_path))) % 10**8}"
    events: list[RunEvent] = []
    async with provider_of("local") as provider:
        task = asyncio.create_task(
            verify(provider, repo, pipeline(f"echo on; sleep {marker}"), events=events)
        )
        while not any(event.kind == "output" for event in events):  # noqa: ASYNC110  (a list)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alive(marker) == []
    (run,) = (tmp_path / "artifacts/runs").iterdir()
    assert not (run / "manifest.json").exists()
    assert not (run / ".work").exists()
    assert (run / "logs/step-01-step1.log").read_text() == "on\n"
    assert digest(repo) == before


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_fork_bomb_ends_with_its_step(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    bomb = "b() { b | b & }; b 2> /dev/null; sleep 1; exit 3"
    spec = pipeline(bomb, limits=Limits(pids=64))
    async with provider_of(name) as provider:
        async with asyncio.timeout(60):
            response = await verify(provider, repo, spec)
            fine = await verify(provider, repo, pipeline("true"))
    assert (response.status, response.reason) == ("FAIL", "step_failed")
    assert fine.passed
