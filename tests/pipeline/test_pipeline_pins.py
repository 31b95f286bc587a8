"""A repository that edits its own gate does not pass, and nothing of it is run to find out."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from pipeline_stand import commit, digest, git, make_repository, pipeline, provider_of, verify

from ramify.apps.pipeline.config import parse_pipeline
from ramify.apps.pipeline.git import find_git
from ramify.apps.pipeline.pins import find_pin
from ramify.apps.pipeline.snapshot import changed_since, take_snapshot
from ramify.contracts.errors import ConfigError

pytestmark = pytest.mark.namespaces
GATE = "verification:\n  steps:\n    - {name: test, command: 'grep hello README.md'}\n"


def gated(place: Path, text: str = GATE) -> Path:
    repo = make_repository(place)
    (repo / "agent.yaml").write_text(text)
    commit(repo, "gate")
    return repo


async def test_the_committed_pipeline_holds(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    pin = await find_pin(repo)
    assert (pin.data.decode(), pin.unpinned, pin.changed) == (GATE, False, False)
    assert pin.base == git(repo, "rev-parse", "HEAD")
    (repo / "agent.yaml").write_text(GATE.replace("grep hello README.md", "true"))
    pin = await find_pin(repo)
    assert (pin.data.decode(), pin.changed) == (GATE, True)
    async with provider_of("local") as provider:
        response = await verify(provider, repo, parse_pipeline(pin.data), pin=pin)
    assert (response.status, response.reason) == ("FAIL", "config_changed")
    assert [step.status for step in response.manifest.steps] == ["skipped"]
    (repo / "agent.yaml").unlink()
    assert (await find_pin(repo)).changed


async def test_a_base_further_back_holds_against_commits(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    base = git(repo, "rev-parse", "HEAD")
    (repo / "agent.yaml").write_text(GATE.replace("grep hello README.md", "true"))
    commit(repo, "weaker gate")
    assert not (await find_pin(repo)).changed
    pin = await find_pin(repo, base)
    assert (pin.data.decode(), pin.base, pin.changed) == (GATE, base, True)
    with pytest.raises(ConfigError, match="is no commit"):
        await find_pin(repo, "nonsense")
    with pytest.raises(ConfigError, match="is no name of a commit"):
        await find_pin(repo, "--all")


async def test_without_a_committed_pipeline_the_working_copy_is_used_and_told(
    tmp_path: Path,
) -> None:
    repo = make_repository(tmp_path)
    with pytest.raises(ConfigError, match="verify init"):
        await find_pin(repo)
    (repo / "agent.yaml").write_text(GATE)
    pin = await find_pin(repo)
    assert pin.unpinned
    async with provider_of("local") as provider:
        response = await verify(provider, repo, parse_pipeline(pin.data), pin=pin)
    assert response.passed
    assert response.unpinned
    assert response.manifest.unpinned


async def test_a_link_is_no_pipeline(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    (repo / "agent.yaml").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError):
        await find_pin(repo)
    commit(repo)
    with pytest.raises(ConfigError):
        await find_pin(repo)


PROTECTED = {
    "edited": "echo x >> docs/a.txt",
    "deleted": "rm docs/a.txt",
    "added": "echo x > docs/new.txt",
    "added_and_ignored": "echo docs/conftest.py >> .git/info/exclude; echo x > docs/conftest.py",
    "made_executable": "chmod +x docs/a.txt",
    "replaced_by_a_link": "rm docs/a.txt; ln -s b.txt docs/a.txt",
    "directory_is_a_link": "mv docs elsewhere; ln -s elsewhere docs",
    "hidden_from_status": "git update-index --assume-unchanged docs/a.txt; echo x >> docs/a.txt",
    "skip_worktree": "git update-index --skip-worktree docs/a.txt; rm docs/a.txt",
}


@pytest.mark.parametrize("case", PROTECTED)
async def test_protected_paths_must_be_as_the_base_has_them(case: str, tmp_path: Path) -> None:
    repo = gated(tmp_path)
    spec = pipeline("grep -x a docs/a.txt; ls docs; test ! -L docs", protected_paths=("docs/",))
    async with provider_of("local") as provider:
        assert (await verify(provider, repo, spec)).passed
        run(repo, PROTECTED[case])
        before = digest(repo)
        failed = await verify(provider, repo, spec)
        assert (failed.status, failed.reason) == ("FAIL", "protected_changed"), case
        assert failed.manifest.steps[0].status == "skipped"
        restoring = msgspec.structs.replace(spec, protected="restore")
        restored = await verify(provider, repo, restoring)
        assert restored.passed, restored.tail_log
        assert restored.manifest.restored
        assert restored.tail_log.split() == ["a", "a.txt", "b.txt"]
        removing = pipeline(
            "rm docs/a.txt", "true", protected="restore", protected_paths=("docs/",)
        )
        response = await verify(provider, repo, removing)
        assert response.reason == "write_violation"
    assert digest(repo) == before


def run(repo: Path, script: str) -> None:
    git(repo, "-c", f"alias.x=!{script}", "x")


async def test_a_protected_path_that_is_none_is_told_of(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    spec = pipeline("true", protected_paths=("src/**", "test/**", "docs"))
    async with provider_of("local") as provider:
        response = await verify(provider, repo, spec)
    assert response.passed
    assert response.tail_log == "[ramify] no file is protected by test/**; is it spelled right?"


async def test_hidden_changes_are_part_of_what_is_verified(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    commit_tree = git(repo, "rev-parse", "HEAD^{tree}")
    clean = await take_snapshot(repo, tmp_path / "one")
    assert (clean.tree, clean.dirty) == (commit_tree, False)
    run(repo, "git update-index --assume-unchanged README.md; echo x >> README.md")
    hidden = await take_snapshot(repo, tmp_path / "two")
    assert hidden.dirty
    assert hidden.tree != commit_tree
    assert await changed_since(repo, clean) == ["README.md"]


async def test_nothing_of_a_hostile_repository_is_run(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    proof = tmp_path / "proof"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\necho ran >> {proof}\ncat\n")
    evil.chmod(0o755)
    config = f"""
[core]
    fsmonitor = {evil}
    hooksPath = {tmp_path}
    pager = {evil}
    sshCommand = {evil}
[filter "evil"]
    clean = {evil}
    smudge = {evil}
    process = {evil}
    required = true
[diff]
    external = {evil}
[alias]
    rev-parse = !{evil}
[extensions]
    partialClone = origin
[remote "origin"]
    url = ext::{evil}
    promisor = true
[protocol "ext"]
    allow = always
"""
    with (repo / ".git/config").open("a") as file:
        file.write(config)
    (repo / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (repo / "README.md").write_text("hello again\n")
    for hook in ("post-index-change", "reference-transaction"):
        (repo / ".git/hooks").mkdir(exist_ok=True)
        (repo / ".git/hooks" / hook).symlink_to(evil)
    pin = await find_pin(repo)
    async with provider_of("local") as provider:
        spec = parse_pipeline(pin.data)
        response = await verify(
            provider, repo, msgspec.structs.replace(spec, protected_paths=("docs",)), pin=pin
        )
    assert response.passed, response.tail_log
    assert response.manifest.dirty
    assert not proof.exists()
    with suppress(subprocess.CalledProcessError):
        git(repo, "diff")  # what an ordinary git does here
    assert proof.exists()


async def test_objects_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    (repo / "other").write_text(GATE.replace("grep hello README.md", "true"))
    wanted = git(repo, "rev-parse", "HEAD:agent.yaml")
    forged = git(repo, "hash-object", "-w", "other")
    objects = repo / ".git/objects"
    target = objects / wanted[:2] / wanted[2:]
    target.chmod(0o644)
    target.write_bytes((objects / forged[:2] / forged[2:]).read_bytes())
    with pytest.raises(ConfigError, match="git cannot read it"):
        await find_pin(repo)


async def test_replaced_objects_do_not_count(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    (repo / "other").write_text(GATE.replace("grep hello README.md", "true"))
    forged = git(repo, "hash-object", "-w", "other")
    git(repo, "replace", git(repo, "rev-parse", "HEAD:agent.yaml"), forged)
    assert (await find_pin(repo)).data.decode() == GATE


async def test_linked_working_trees_submodules_and_sha256(tmp_path: Path) -> None:
    repo = gated(tmp_path)
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    side = (tmp_path / "side").resolve()
    assert find_git(side) is not None
    (side / "agent.yaml").write_text(GATE + "# more\n")
    assert (await find_pin(side)).changed
    async with provider_of("local") as provider:
        response = await verify(provider, side, pipeline("git log --oneline | wc -l"))
    assert response.tail_log.strip() == "2"
    assert response.manifest.commit_sha == git(side, "rev-parse", "HEAD")

    newer = tmp_path / "newer"
    newer.mkdir()
    git(newer, "init", "-q", "--object-format=sha256")
    (newer / "a").write_text("a\n")
    head = commit(newer)
    snapshot = await take_snapshot(newer, tmp_path / "three")
    assert (snapshot.commit, snapshot.dirty) == (head, False)
    assert snapshot.tree == git(newer, "rev-parse", "HEAD^{tree}")

    git(repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(newer / ".."
        "/side"), "sub")  # fmt: skip
    commit(repo)
    snapshot = await take_snapshot(repo, tmp_path / "four")
    assert snapshot.tree == git(repo, "rev-parse", "HEAD^{tree}")
    assert not snapshot.dirty


async def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    repo = tmp_path / "fresh"
    repo.mkdir()
    git(repo, "init", "-q")
    (repo / "a").write_text("a\n")
    snapshot = await take_snapshot(repo, tmp_path / "shadow")
    assert (snapshot.commit, snapshot.dirty) == ("", False)
    git(repo, "add", "-A")
    assert snapshot.tree == git(repo, "write-tree")


@pytest.mark.parametrize("forged", ["outside", "inside"])
async def test_a_forged_link_shows_nothing_of_the_host(forged: str, tmp_path: Path) -> None:
    repo = gated(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the key\n")
    own = (repo if forged == "inside" else tmp_path) / "evil"
    (repo / ".git").rename(own)
    (repo / ".git").write_text(f"gitdir: {own}\n")
    (own / "gitdir").write_text(f"{repo}/.git\n")
    (own / "commondir").write_text(f"{secret}\n")
    async with provider_of("local") as provider:
        with pytest.raises(ConfigError, match="not its repository's"):
            await verify(provider, repo, pipeline(f"cat {secret}/key"))
