"""The pipeline as a verifier and as a reward, in real sandboxes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from pipeline_stand import digest, make_repository, pipeline, provider_of

from ramify import compose
from ramify.apps.pipeline.records import Response, Retention
from ramify.apps.pipeline.reward import PipelineReward
from ramify.apps.pipeline.verifier import PipelineVerifier
from ramify.contracts.errors import ConfigError, InvalidRewardError, VerificationRejected
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import Task, TaskPackage
from ramify.testing.context import make_context, make_node

SPECS = {
    "local": SandboxSpec(host_root=True, workdir="/app"),
    "docker": SandboxSpec(image="debian:bookworm-slim", workdir="/app"),
}
PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]
TASK_PIPELINE = """\
verification:
  steps:
    - {name: build, command: 'sh build.sh > build.out', }
    - {name: test, command: 'sh /tests/check.sh'}
"""


@pytest.mark.namespaces
async def test_a_verifier_sends_candidates_back(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    (repo / "agent.yaml").write_text("verification: {steps: [{name: x, command: 'true'}]}\n")
    async with provider_of("local") as provider:
        verifier = PipelineVerifier(
            repo, pipeline("grep bye README.md"), provider, tmp_path / "artifacts"
        )
        with pytest.raises(VerificationRejected) as caught:
            await verifier("some candidate")
        assert caught.value.code == "step_failed"
        metadata = caught.value.metadata
        assert metadata is not None
        assert metadata["run_id"] in str(caught.value)
        assert "exited with 1" in metadata["tail_log"]
        (repo / "README.md").write_text("bye\n")
        assert (await verifier("another")).passed
        with pytest.raises(VerificationRejected):
            await verifier(make_repository(tmp_path / "other"))
        with pytest.raises(ConfigError):
            PipelineVerifier(repo, tmp_path / "absent.yaml", provider, tmp_path / "artifacts")


def task_of(place: Path, name: str) -> Task:
    (place / "tests").mkdir(parents=True)
    (place / "tests/agent.yaml").write_text(TASK_PIPELINE)
    (place / "tests/check.sh").write_text('[ "$(sh answer.sh)" = 42 ]\n')
    return Task("set:one", input="Print 42.", package=TaskPackage(str(place), "d", SPECS[name]))


async def graded(
    name: str, tmp_path: Path, deeds: Sequence[str], reward: PipelineReward | None = None
) -> list[VerifyResult]:
    """The rewards of what an agent did, each in a sandbox of its own."""
    task = task_of(tmp_path / "task", name)
    found: list[VerifyResult] = []
    async with provider_of(name) as provider:
        image = await provider.prepare(SPECS[name])
        for number, deed in enumerate(deeds):
            sandbox = await provider.create(SPECS[name], image)
            try:
                done = await sandbox.exec(f"mkdir -p /app; cd /app\n{deed}", cwd="/")
                assert done.ok, done
                ctx = make_context(
                    task,
                    sandbox,
                    artifacts=tmp_path / f"kept-{number}",
                    provider=provider,
                    image=image,
                )
                found.append(await (reward or PipelineReward()).score(make_node(), ctx))
            finally:
                await sandbox.teardown()
    return found


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_reward_for_what_passes_and_nothing_for_the_rest(name: str, tmp_path: Path) -> None:
    honest = "echo 'echo 42' > answer.sh; echo 'echo build' > build.sh; echo '*.out' > .gitignore"
    good, wrong, gate, daemon, absent, git_ = await graded(
        name,
        tmp_path,
        [
            honest,
            f"{honest}; echo 'echo 41' > answer.sh",
            f"{honest}; echo 'echo 41' > answer.sh; mkdir -p tests; echo true > tests/check.sh; "
            "echo 'verification: {steps: [{name: x, command: \"true\"}]}' > agent.yaml",
            f"{honest}; echo 'echo 41' > answer.sh; echo 'echo 42 > answer.sh' >> build.sh",
            "echo 'echo x' > build.sh",
            f"{honest}; mkdir .git; echo '[core]' > .git/config; echo nonsense > .git/HEAD",
        ],
    )
    assert good.reward == 1.0, good.details
    assert good.grader_isolation == "pipeline"
    assert good.items["pipeline.steps_passed"] == 2.0
    assert good.details["run_id"]
    assert [each.reward for each in (wrong, gate, daemon, absent)] == [0.0] * 4
    assert daemon.details["reason"] == "write_violation"
    assert git_.reward == 1.0
    assert msgspec.json.encode(good)


@pytest.mark.namespaces
async def test_steps_of_a_reward_are_nobody_and_leave_nothing(tmp_path: Path) -> None:
    reward = PipelineReward(pipeline=pipeline("id -u; ls /tests; ! touch /tests/x"))
    (one,) = await graded("local", tmp_path, ["ln -s /etc/shadow leak; mkdir d; chmod 0 d"], reward)
    assert one.reward == 1.0, one.details
    assert one.details["tail_log"].split()[0] != "1000"
    assert "check.sh" in one.details["tail_log"]
    assert not list((tmp_path / "kept-0/pipeline").glob("work-*"))


def there(response: Response) -> bool:
    return Path(response.artifact_paths[0]).is_file()


@pytest.mark.namespaces
async def test_old_runs_of_a_verifier_go_while_others_verify(tmp_path: Path) -> None:
    repo, artifacts = make_repository(tmp_path), tmp_path / "artifacts"
    spec = pipeline("true", retention=Retention(runs=2))
    async with provider_of("local") as provider, provider_of("local") as other:
        verifiers = [PipelineVerifier(repo, spec, p, artifacts) for p in (provider, other)]
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                runs = [group.create_task(one("x")) for one in verifiers]
            assert all(there(run.result()) for run in runs)
        assert len(list((artifacts / "runs").iterdir())) == 4  # all of them just now
        for run in (artifacts / "runs").iterdir():
            earlier = (run / "manifest.json").stat().st_mtime - 600
            os.utime(run / "manifest.json", (earlier, earlier))
        last = (await verifiers[0]("x")).run_id
        left = {run.name for run in (artifacts / "runs").iterdir()}
        assert last in left
        assert len(left) == 2


@pytest.mark.namespaces
async def test_a_reward_keeps_what_it_answers_with_and_few_runs(tmp_path: Path) -> None:
    task = task_of(tmp_path / "task", "local")
    spec = pipeline("echo x > $TMPDIR/big; echo y > $VERIFIER_OUTPUTS/o", retention=Retention(1))
    runs = tmp_path / "kept" / "pipeline" / "runs"
    async with provider_of("local") as provider:
        image = await provider.prepare(SPECS["local"])
        sandbox = await provider.create(SPECS["local"], image)
        try:
            await sandbox.exec("mkdir /app", cwd="/")
            ctx = make_context(
                task, sandbox, artifacts=tmp_path / "kept", provider=provider, image=image
            )
            for _ in range(2):
                assert (await PipelineReward(pipeline=spec).score(make_node(), ctx)).reward == 1.0
                (kept,) = runs.iterdir()
                assert sorted(p.name for p in kept.iterdir() if p.name[0] != ".") == [
                    "build", "files", "junit", "logs", "manifest.json", "snapshots",
                ]  # fmt: skip
                os.utime(kept / "manifest.json", (0, 0))
        finally:
            await sandbox.teardown()


@pytest.mark.namespaces
async def test_what_is_not_there_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(InvalidRewardError):
        await graded("local", tmp_path, ["cd /; rm -rf /app"])


def test_what_a_reward_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no meaning"):
        PipelineReward(pipeline=pipeline("true", protected_paths=("x",)))
    file = tmp_path / "agent.yaml"
    file.write_text(TASK_PIPELINE)
    assert isinstance(compose.load("rewards", "pipeline")(file), PipelineReward)


async def test_a_repository_is_never_written_by_its_verifier(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    before = digest(repo)
    async with provider_of("bare") as provider:
        verifier = PipelineVerifier(repo, pipeline("true"), provider, tmp_path / "artifacts")
        with pytest.raises(ValueError, match="mounts"):
            await verifier("candidate")
    assert digest(repo) == before
