"""Runs of pipelines, for real: what is answered, what is kept, how steps are stopped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from pipeline_stand import (
    commit,
    digest,
    git,
    make_repository,
    pipeline,
    provider_of,
    run_directory,
    verify,
)

from ramify.apps.pipeline.records import CacheSpec, Manifest, PipelineSpec, RunEvent, StepSpec
from ramify.contracts.errors import ConfigError

PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_every_field_is_true(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    (repo / "draft.txt").unlink()
    head = git(repo, "rev-parse", "HEAD")
    before = digest(repo)
    steps = (
        StepSpec("Install all!", "echo one; echo two >&2"),
        StepSpec("test", "echo x > $TMPDIR/t; echo y > $VERIFIER_OUTPUTS/o; exit 3"),
        StepSpec("lint", "true"),
    )
    async with provider_of(name) as provider:
        response = await verify(provider, repo, PipelineSpec(steps))
    assert digest(repo) == before

    assert (response.status, response.reason) == ("FAIL", "step_failed")
    assert response.tail_log.splitlines()[:2] == ["one", "two"]
    assert "exited with 3" in response.tail_log
    run = run_directory(response)
    assert run == tmp_path / "artifacts/runs" / response.run_id
    manifest = response.manifest
    started, ended = (
        datetime.fromisoformat(text) for text in (manifest.timestamp_start, manifest.timestamp_end)
    )
    assert started.tzinfo is not None
    assert started <= ended
    assert manifest.commit_sha == head
    assert [(c.name, c.command, c.exit_code) for c in manifest.commands_executed] == [
        ("Install all!", steps[0].command, 0),
        ("test", steps[1].command, 3),
    ]
    assert all(c.duration_ms >= 0 for c in manifest.commands_executed)
    assert manifest.platform.os == "linux"
    assert manifest.platform.arch == platform.machine()
    image = "host" if name == "local" else "debian:bookworm-slim"
    assert manifest.platform.container_image == image
    assert manifest.platform.image_digest.startswith("sha256:")
    assert [step.status for step in manifest.steps] == ["passed", "failed", "skipped"]

    assert msgspec.json.decode((run / "manifest.json").read_bytes(), type=Manifest) == manifest
    logs = sorted(path.name for path in (run / "logs").iterdir())
    assert logs == ["combined.log", "step-01-install-all.log", "step-02-test.log"]
    assert (run / "logs/step-01-install-all.log").read_text() == "one\ntwo\n"
    assert (run / "build/o").read_text() == "y\n"
    assert (run / "tmp/t").read_text() == "x\n"
    assert (tmp_path / "artifacts/cache").is_dir()
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(".")) == sorted(
        ["manifest.json", "logs", "build", "tmp", "db", "snapshots", "fixtures", "junit", "files"]
    )
    for artifact in response.artifacts:
        data = (run / artifact.path).read_bytes()
        assert (artifact.sha256, artifact.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert {str(run / a.path) for a in response.artifacts} == set(response.artifact_paths[1:])
    assert not (run / ".work").exists()


@pytest.mark.namespaces
async def test_what_is_verified_is_named(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        dirty = (await verify(provider, repo, pipeline("true"))).manifest
        again = (await verify(provider, repo, pipeline("true"))).manifest
        (repo / "draft.txt").write_text("changed\n")
        other = (await verify(provider, repo, pipeline("true"))).manifest
        head = commit(repo)
        clean = (await verify(provider, repo, pipeline("true"))).manifest
    assert dirty.dirty
    assert (dirty.tree_sha, dirty.patch_sha256) == (again.tree_sha, again.patch_sha256)
    assert other.patch_sha256 != dirty.patch_sha256
    assert other.tree_sha == clean.tree_sha == git(repo, "rev-parse", "HEAD^{tree}")
    assert (clean.commit_sha, clean.dirty, clean.patch_sha256) == (head, False, "")


@pytest.mark.parametrize("name", PROVIDERS)
async def test_steps_see_seed_variables_and_nothing_of_the_host(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    spec = msgspec.structs.replace(
        pipeline(
            "env | sort; pwd; touch $TEST_DB_PATH/x $SNAPSHOT_DIR/y $JUNIT_DIR/z $FIXTURE_DIR/f",
            "echo mine > $ARTIFACT_DIR/own; mkdir -p $ARTIFACT_DIR/d/e; echo > $ARTIFACT_DIR/d/e/f",
            "cat $ARTIFACT_DIR/own; rm -rf $ARTIFACT_DIR/tmp || echo it stays",
            "echo forged > $ARTIFACT_DIR/manifest.json; test ! -e $ARTIFACT_DIR/logs",
        ),
        pass_env=("PASSED", "ABSENT"),
        env={"GIVEN": "g"},
    )
    async with provider_of(name) as provider:
        response = await verify(provider, repo, spec, host={"PASSED": "p", "HIDDEN": "h"})
    lines = response.tail_log.splitlines()
    for line in (
        "TMPDIR=/artifacts/tmp", "TEST_DB_PATH=/artifacts/db", "SNAPSHOT_DIR=/artifacts/snapshots",
        "HOME=/artifacts/home", "PASSED=p", "GIVEN=g", "CI=1", str(repo), "mine", "it stays",
        "ARTIFACT_DIR=/artifacts", "FIXTURE_DIR=/artifacts/fixtures",
    ):  # fmt: skip
        assert line in lines
    assert "HIDDEN" not in response.tail_log
    run = run_directory(response)
    assert response.passed, response.tail_log
    made = ("db/x", "snapshots/y", "junit/z", "fixtures/f", "files/own", "files/d/e/f")
    assert [(run / name).exists() for name in made] == [True] * 6
    assert sorted(path.name for path in (run / "files").iterdir()) == ["d", "manifest.json", "own"]
    assert (run / "manifest.json").read_text() != "forged\n"
    assert str(run / "files/own") in response.artifact_paths
    assert {"GIVEN", "PASSED", "TMPDIR"} <= set(response.manifest.env_names)


@pytest.mark.namespaces
async def test_exit_codes_and_signals(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        killed = await verify(provider, repo, pipeline("kill -9 $$"))
        multi = await verify(provider, repo, pipeline("false\ntrue"))
        fine = StepSpec("lint", "exit 4", allow_exit_codes=(4,))
        allowed = await verify(provider, repo, PipelineSpec((fine,)))
        absent = await verify(provider, repo, PipelineSpec((StepSpec("x", "y", shell=("nosh",)),)))
        nowhere = await verify(provider, repo, PipelineSpec((StepSpec("x", "true", cwd="no"),)))
    assert (killed.manifest.steps[0].exit_code, killed.manifest.steps[0].signal) == (137, 9)
    assert not multi.passed
    assert allowed.passed
    assert absent.manifest.steps[0].exit_code == 127
    assert nowhere.manifest.steps[0].exit_code == 126


@pytest.mark.namespaces
async def test_output_is_bounded_masked_and_told_live(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    secret = "hunter2-hunter2"
    spec = msgspec.structs.replace(
        pipeline(
            "printf 'a\\033[31mred\\033]0;title\\007 %s\\n' $TOKEN",
            "yes | head -c 30000000; echo END; printf '%02000d\\n' 7 8; seq 300",
        ),
        secrets=("TOKEN",),
    )
    events: list[RunEvent] = []
    async with provider_of("local") as provider:
        response = await verify(provider, repo, spec, host={"TOKEN": secret}, events=events)
    assert response.passed
    lines = response.tail_log.split("\n")
    assert len(lines) == 200
    assert lines[-1] == "300"
    run = run_directory(response)
    for path in (run / "logs").iterdir():
        assert secret.encode() not in path.read_bytes()
        assert path.stat().st_size < 20_000_000
    first = (run / "logs/step-01-step1.log").read_text()
    assert "***" in first
    step = response.manifest.steps[1]
    assert step.log_bytes > 30_000_000
    assert step.log_dropped_bytes == step.log_bytes - 16 * 1024 * 1024
    kinds = [event.kind for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_ended"
    shown = "".join(event.text for event in events if event.kind == "output")
    assert "ared ***" in shown
    assert "\x1b" not in shown
    assert secret not in shown


@pytest.mark.namespaces
async def test_tests_are_read_from_junit_reports(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    report = (
        '<testsuite><testcase classname="c" name="a"/>'
        '<testcase classname="c" name="b"><failure message="no"/></testcase>'
        '<testcase classname="c" name="d"><skipped/></testcase></testsuite>'
    )
    steps = (
        StepSpec("test", f"echo '{report}' > $JUNIT_DIR/r.xml; ln -s /etc/passwd $JUNIT_DIR/l.xml"),
        StepSpec(
            "more",
            f"mkdir -p build/o; echo '{report}' > build/o/x.xml; echo no > build/o/bad.xml",
            junit=("build/o/*.xml",),
            artifacts=("build/o",),
        ),
    )
    async with provider_of("local") as provider:
        response = await verify(provider, repo, PipelineSpec(steps))
        none = await verify(provider, repo, pipeline("true"))
    tests = response.tests
    assert tests is not None
    assert (tests.total, tests.passed, tests.failed, tests.skipped) == (6, 2, 2, 2)
    assert any("bad.xml" in line for line in tests.unreadable)
    assert "build/build/o/x.xml" in {artifact.path for artifact in response.artifacts}
    assert none.tests is None


@pytest.mark.namespaces
async def test_a_repository_that_moves_does_not_pass(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)

    async def edit() -> None:
        await asyncio.sleep(0.5)
        (repo / "README.md").write_text("edited\n")
        (repo / "build/old.o").write_text("nobody minds\n")

    async with provider_of("local") as provider, asyncio.TaskGroup() as group:
        group.create_task(edit())
        response = await verify(provider, repo, pipeline("sleep 1.5"))
        assert (response.status, response.reason) == ("FAIL", "moving_tree")
        assert "README.md" in response.message
        group.create_task(edit())
        spec = pipeline("sleep 1.5; cat README.md", snapshot="copy")
        response = await verify(provider, repo, spec)
        assert response.passed
    (repo / "README.md").touch()


@pytest.mark.namespaces
async def test_what_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        spec = msgspec.structs.replace(pipeline("true"), secrets=("TOKEN",))
        with pytest.raises(ConfigError, match="TOKEN is not set"):
            await verify(provider, repo, spec)
        step = StepSpec("x", "true", network="packages")
        with pytest.raises(ConfigError, match="no package host is known"):
            await verify(provider, repo, PipelineSpec((step,)))
        (repo / ".git/HEAD").unlink()
        (repo / ".git").rename(repo / "real")
        (repo / ".git").write_text("gitdir: /root\n")
        with pytest.raises(ConfigError, match="does not lead to a git directory"):
            await verify(provider, repo, pipeline("true"))
    assert not list((tmp_path / "artifacts/runs").glob("*/manifest.json"))
    assert not list((tmp_path / "artifacts/runs").glob("*/.work"))


@pytest.mark.namespaces
async def test_run_ids_sort_by_time(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        ids = [(await verify(provider, repo, pipeline("true"))).run_id for _ in range(2)]
    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}", each) for each in ids)
    assert len(set(ids)) == 2


@pytest.mark.parametrize("name", PROVIDERS)
async def test_only_steps_that_say_so_have_a_network(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    told = "env | grep -ci _proxy= || true; ls /sys/class/net 2> /dev/null | grep -vx lo || true"
    steps = (
        StepSpec("before", told),
        StepSpec("install", told),
        StepSpec("after", told),
        StepSpec("some", told, network="packages"),
        StepSpec("install", told, network="none"),
    )
    async with provider_of(name) as provider:
        host = {"RAMIFY_PACKAGE_HOSTS": "packages.example.com"}
        response = await verify(provider, repo, PipelineSpec(steps), host=host)
    assert response.passed, response.tail_log
    wishes = [step.network for step in response.manifest.steps]
    assert wishes == ["none", "full", "none", "packages", "none"]
    logs = sorted((run_directory(response) / "logs").glob("step-*"))
    assert [log.read_text().split()[0] != "0" for log in logs] == [w != "none" for w in wishes]


@pytest.mark.namespaces
async def test_a_cache_is_kept_after_pass_and_never_changed(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    file = "$PIP_CACHE_DIR/x"
    command = f"cat {file} 2> /dev/null || true; mkdir -p $PIP_CACHE_DIR; echo $N > {file}"
    spec = msgspec.structs.replace(
        pipeline(command, "$RESULT"), cache=CacheSpec(("docs/*.txt",)), pass_env=("N", "RESULT")
    )
    async with provider_of("local") as provider:

        async def said(number: int, result: str = "true") -> str:
            host = {"N": str(number), "RESULT": result}
            return (await verify(provider, repo, spec, host=host)).tail_log.partition("\n")[0]

        assert "exited with 1" in await said(1, "false")
        assert await said(2) == ""
        assert await said(3) == "2"
        assert await said(4) == "2"
        (repo / "docs/a.txt").write_text("another lock file\n")
        assert await said(5) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of others")
@pytest.mark.parametrize("name", PROVIDERS)
async def test_steps_run_as_the_owner_of_the_repository(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    for place, directories, files in os.walk(repo):
        for each in (".", *directories, *files):
            os.chown(os.path.join(place, each), 1234, 1234, follow_symlinks=False)
    command = "id -u; echo x > $VERIFIER_OUTPUTS/x; echo x > build/y; mkdir build/z; touch t.log"
    told = " && git status --short" if name == "local" else ""
    async with provider_of(name) as provider:
        response = await verify(provider, repo, pipeline(f"{command}{told}"))
        wrote = await verify(provider, repo, pipeline("chmod 600 README.md; chmod 700 docs"))
    assert response.passed, response.tail_log
    assert response.tail_log.split()[0] == "1234"
    assert (run_directory(response) / "build/x").stat().st_uid == 1234
    kinds = {(v.path, v.kind) for v in wrote.write_violations}
    assert kinds == {("README.md", "mode"), ("docs", "mode")}


@pytest.mark.namespaces
async def test_no_draft_of_a_manifest_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed while the manifest goes to the disk leaves nothing that looks like one."""
    seen: list[list[str]] = []
    runs, to_disk = tmp_path / "artifacts" / "runs", os.fsync

    def look(descriptor: int) -> None:
        seen.extend(sorted(os.listdir(run)) for run in runs.iterdir())
        to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    async with provider_of("local") as provider:
        response = await verify(
            provider, make_repository(tmp_path), PipelineSpec((StepSpec("one", "true"),))
        )
    assert response.status == "PASS"
    found = [[name for name in names if "manifest" in name] for names in seen]
    assert found == [[], ["manifest.json"]], "the draft is synced, then the directory"
