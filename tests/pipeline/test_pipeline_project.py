"""A repository of several projects: each has a pipeline, and all of it is guarded for each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from pipeline_stand import commit, digest, git, make_repository, provider_of

from ramify.apps.pipeline.config import parse_pipeline
from ramify.apps.pipeline.pins import find_pin
from ramify.apps.pipeline.project import Project, find_project, placed
from ramify.apps.pipeline.records import Response
from ramify.apps.pipeline.verifier import PipelineVerifier
from ramify.apps.pipeline.verify import VerifyOptions, planned_verification, run_planned
from ramify.contracts.errors import ConfigError, InfraError, VerificationRejected

LOCAL = pytest.mark.namespaces
GATE = """\
verification:
  artifacts: [out/*.txt]
  junit: [out/*.xml]
  writable: [./scratch/]
  protected_paths: [tests/**, ':/README.md']
  cache: {key: [lock, ':/docs/a.txt']}
  steps:
    - {name: here, command: 'pwd; mkdir out; echo made > out/a.txt; cat src.txt ../../README.md'}
    - {name: below, command: pwd, cwd: tests}
"""


def monorepo(place: Path, gate: str = GATE) -> Path:
    """A project in `packages/web*` of a repository; the place of the project."""
    repo = make_repository(place)
    project = repo / "packages" / "web*"
    (project / "tests").mkdir(parents=True)
    (project / "src.txt").write_text("of the project\n")
    (project / "tests" / "test.txt").write_text("test\n")
    (project / ".gitignore").write_text("out/\n")
    (project / "agent.yaml").write_text(gate)
    commit(repo, "project")
    return project


async def verified(project: Path, tmp_path: Path) -> Response:
    host = {"PATH": os.environ["PATH"], "AGENT_ARTIFACT_DIR": str(tmp_path / "artifacts")}
    async with planned_verification(VerifyOptions(project, "local", host=host)) as planned:
        done = await run_planned(planned, emit=lambda _event: None, say=lambda _line: None)
    return done.response


async def test_the_project_is_a_directory_of_the_repository(tmp_path: Path) -> None:
    project = monorepo(tmp_path)
    repo = tmp_path / "repo"
    assert await find_project(project) == Project(repo, "packages/web*")
    assert await find_project(repo) == Project(repo, "")
    (tmp_path / "link").symlink_to(project)
    assert await find_project(tmp_path / "link") == Project(repo, "packages/web*")


async def test_a_directory_that_the_repository_does_not_have_is_on_its_own(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    (repo / "build" / "new").mkdir()
    (repo / "build" / "new" / "agent.yaml").write_text(GATE)
    assert await find_project(repo / "build" / "new") == Project(repo / "build" / "new", "")
    (repo / "web").mkdir()
    (repo / "web" / "agent.yaml").write_text(GATE)
    assert await find_project(repo / "web") == Project(repo / "web", "")
    git(repo, "add", "web")  # staged, not committed: part of it, and not yet pinned
    assert await find_project(repo / "web") == Project(repo, "web")
    assert (await find_pin(repo, file="web/agent.yaml")).unpinned


async def test_a_repository_of_somebody_else_above_is_none_of_ours(tmp_path: Path) -> None:
    project = monorepo(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("only root has files of others")
    os.chown(project, 65534, 65534)
    os.chown(tmp_path / "repo" / ".git", 12345, 12345)
    assert await find_project(project) == Project(project, "")


async def test_what_is_above_and_no_repository_is_told(tmp_path: Path) -> None:
    (tmp_path / "sub" / "web").mkdir(parents=True)
    (tmp_path / "sub" / ".git").write_text("gitdir: ../.git/modules/sub\n")
    with pytest.raises(ConfigError, match="does not lead to a git directory"):
        await find_project(tmp_path / "sub" / "web")


def test_paths_are_relative_to_the_project_or_to_the_repository() -> None:
    spec = placed(parse_pipeline(GATE.encode()), "packages/web*")
    assert [step.cwd for step in spec.steps] == ["packages/web*", "packages/web*/tests"]
    assert spec.steps[-1].artifacts == ("packages/web\\*/out/*.txt",)
    assert spec.steps[-1].junit == ("packages/web\\*/out/*.xml",)
    assert spec.writable == ("packages/web*/scratch",)
    assert spec.protected_paths == ("packages/web\\*/tests/**", "README.md")
    assert spec.cache is not None
    assert spec.cache.key == ("packages/web\\*/lock", "docs/a.txt")
    own = parse_pipeline(GATE.encode())
    assert placed(own, "") is own


@LOCAL
async def test_it_is_pinned_runs_in_its_place_and_the_whole_repository_is_named(
    tmp_path: Path,
) -> None:
    project = monorepo(tmp_path)
    repo = tmp_path / "repo"
    before = digest(repo)
    response = await verified(project, tmp_path)
    assert (response.status, response.unpinned) == ("PASS", False), response.tail_log
    assert response.tail_log.splitlines() == [
        str(project), "of the project", "hello", str(project / "tests"),
    ]  # fmt: skip
    head = git(repo, "rev-parse", "HEAD")
    assert (response.manifest.commit_sha, response.manifest.base_sha) == (head, head)
    assert not response.manifest.dirty
    assert response.manifest.tree_sha == git(repo, "rev-parse", "HEAD^{tree}")
    assert [a.path for a in response.artifacts if a.path.startswith("build/")] == [
        "build/packages/web*/out/a.txt"
    ]
    assert digest(repo) == before
    (repo / "new.txt").write_text("not of the project\n")
    assert (await verified(project, tmp_path)).manifest.dirty


@LOCAL
async def test_the_whole_repository_is_guarded_and_protected(tmp_path: Path) -> None:
    text = "verification:\n  steps:\n    - {name: a, command: 'echo x >> ../../src/app.py'}\n"
    project = monorepo(tmp_path, text)
    response = await verified(project, tmp_path)
    assert response.reason == "write_violation"
    assert [v.path for v in response.write_violations] == ["src/app.py"]
    (project / "agent.yaml").write_text(GATE)
    response = await verified(project, tmp_path)
    assert (response.status, response.reason) == ("FAIL", "config_changed")
    commit(tmp_path / "repo", "gate")
    for path in (tmp_path / "repo" / "README.md", project / "tests" / "test.txt"):
        was = path.read_text()
        path.write_text("else\n")
        response = await verified(project, tmp_path)
        assert (response.status, response.reason) == ("FAIL", "protected_changed"), path
        path.write_text(was)
    (tmp_path / "repo" / "tests").mkdir()
    (tmp_path / "repo" / "tests" / "new").write_text("not of the project\n")
    assert (await verified(project, tmp_path)).status == "PASS"


@LOCAL
async def test_the_lock_is_the_repositorys(tmp_path: Path) -> None:
    slow = "verification:\n  steps:\n    - {name: slow, command: 'sleep 60'}\n"
    project = monorepo(tmp_path, slow)
    other = tmp_path / "repo" / "other"
    other.mkdir()
    (other / "agent.yaml").write_text(slow)
    commit(tmp_path / "repo", "another")
    begun = asyncio.Event()
    host = {"PATH": os.environ["PATH"], "AGENT_ARTIFACT_DIR": str(tmp_path / "artifacts")}

    async def first() -> None:
        async with planned_verification(VerifyOptions(project, "local", host=host)) as planned:
            await run_planned(planned, emit=lambda _e: begun.set(), say=lambda _line: None)

    running = asyncio.create_task(first())
    try:
        await begun.wait()
        with pytest.raises(InfraError, match="is being verified already"):
            await verified(other, tmp_path)
    finally:
        running.cancel()
        await asyncio.wait([running])


@LOCAL
async def test_a_verifier_of_a_project(tmp_path: Path) -> None:
    project = monorepo(tmp_path)
    spec = parse_pipeline(
        b"verification:\n  steps:\n    - {name: a, command: 'cat src.txt && test ! -e bad'}\n"
    )
    async with provider_of("local") as provider:
        verifier = PipelineVerifier(project, spec, provider, tmp_path / "artifacts")
        response = await verifier("done")
        assert response.manifest.commit_sha == git(tmp_path / "repo", "rev-parse", "HEAD")
        (project / "bad").touch()
        with pytest.raises(VerificationRejected):
            await verifier("done")
