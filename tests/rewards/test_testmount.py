"""Isolated test scripts lie where nothing inside can write to them, on both providers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from verifier_stand import Room, rollout, task_package

from ramify.contracts.context import Context
from ramify.contracts.errors import SandboxStartError
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import (
    Capabilities,
    Sandbox,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
)
from ramify.contracts.task import Hardening, IsolationLevel, ScriptProfile, TaskPackage
from ramify.planes.environment.package import provision_package
from ramify.planes.reward.script import ScriptVerifier
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")
OUTPUTS, WORKDIR = IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR
FILESYSTEM = IsolationLevel.FILESYSTEM
ISOLATED = ScriptProfile(Hardening.ISOLATED, "")
PASSES = "echo 1 > /logs/verifier/reward.txt\n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param("local", marks=pytest.mark.namespaces),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
async def room(
    request: pytest.FixtureRequest,
    namespaces_problem: str | None,
    docker_problem: str | None,
    ramify_home: Path,
) -> AsyncIterator[Room | None]:
    local = request.param == "local"
    if (namespaces_problem if local else docker_problem) is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    spec = SandboxSpec(host_root=True) if local else SandboxSpec(image=IMAGE)
    provider = LocalProvider() if local else DockerProvider(ramify_home)
    try:
        yield Room(provider, msgspec.structs.replace(spec, workdir="/app"))
    finally:
        await provider.aclose()


async def honest(sandbox: Sandbox, ctx: Context) -> None:
    """Solves the task; the world has something to say at its end."""
    ctx.artifacts.mkdir(parents=True, exist_ok=True)
    (ctx.artifacts / "world.json").write_text('{"world": "answers"}')
    done = await sandbox.exec("echo 'echo 42' > answer.sh", user="root", cwd=ctx.workdir)
    assert done.ok


async def graded(
    room: Room, tmp_path: Path, package: TaskPackage, level: IsolationLevel = OUTPUTS
) -> VerifyResult:
    verifier = ScriptVerifier(level, provision_package, ISOLATED)
    return await rollout(room, tmp_path, level, honest, package, verifier)


def said(tmp_path: Path) -> str:
    return (tmp_path / "artifacts/verifier/test-stdout.txt").read_text()


TRIES = """\
cd /
try() { if "$@" 2>/dev/null; then echo "did: $*"; fi; }
try touch /tests/new
try sh -c 'echo "# more" >> /tests/test.sh'
try sh -c 'echo "# more" >> /proc/self/root/tests/test.sh'
try sh -c 'echo "# more" >> /proc/$PPID/fd/255'
try chmod 777 /tests/test.sh
try rm -f /tests/test.sh
try mv /tests /elsewhere
try rmdir /tests
try ln /tests/test.sh /app/link
try umount /tests
try umount -l /tests
try mount -o remount,rw /tests
try mount -o remount,bind,rw /tests
try mount -t tmpfs none /tests
try mount --bind /app /tests
try unshare -m true
try unshare -Urm sh -c 'umount -l /tests'
cat /tests/world.json
echo 1 > /logs/verifier/reward.txt
"""


@pytest.mark.parametrize("level", [OUTPUTS, WORKDIR])
async def test_nothing_inside_writes_to_them(
    room: Room, tmp_path: Path, level: IsolationLevel
) -> None:
    package = task_package(tmp_path / "task", room.spec, TRIES)
    result = await graded(room, tmp_path, package, level)
    assert result.reward == 1.0
    assert result.details["hardening"]["tests"] == "read-only"
    assert said(tmp_path) == '{"world": "answers"}'
    assert not list((tmp_path / "artifacts").glob(".ramify-*"))
    assert (tmp_path / "task/tests/test.sh").read_text() == TRIES


async def test_they_are_as_they_were_written(room: Room, tmp_path: Path) -> None:
    """Several sources, links, programs and directories; all can be read by an own user."""
    script = (
        "cd /tests && find . | sort | tr '\\n' ' '; cat way/deep one; ./run; id -un\n"
        f"[ -w . ] && echo writable; {PASSES}"
    )
    package = task_package(tmp_path / "task", room.spec, script)
    more = tmp_path / "task/more"
    (more / "sub").mkdir(parents=True)
    (more / "sub/deep").write_text("deep ")
    (more / "way").symlink_to("sub")
    (more / "one").write_text("one ")
    (more / "one").chmod(0o600)
    (more / "sub").chmod(0o700)
    (more / "run").write_text("#!/bin/sh\necho ran\n")
    (more / "run").chmod(0o4700)
    verifier = msgspec.structs.replace(package.verifier, more_tests=("more",), user="nobody")
    package = msgspec.structs.replace(package, verifier=verifier)
    assert (await graded(room, tmp_path, package)).reward == 1.0
    assert said(tmp_path) == (
        ". ./one ./run ./sub ./sub/deep ./test.sh ./way ./world.json deep one ran\nnobody\n"
    )


async def test_a_script_that_writes_to_its_own_tests_fails(room: Room, tmp_path: Path) -> None:
    script = "touch /tests/mine; echo $((1 - $?)) > /logs/verifier/reward.txt"
    package = task_package(tmp_path / "task", room.spec, script)
    assert (await graded(room, tmp_path, package)).reward == 0.0


class _Other:
    """A provider that offers other mounts than it has, or refuses those that it is asked for."""

    def __init__(self, inner: SandboxProvider, mounts: frozenset[str]) -> None:
        self._inner, self._mounts = inner, mounts

    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self._inner.capabilities(), mounts=self._mounts)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        if spec.mounts:
            raise SandboxStartError("bind source path does not exist: /nowhere")
        return await self._inner.create(spec, image)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        ((), "writable: the {name} sandbox has no read-only mounts here"),
        (("ro",), "writable: the mount was refused: bind source path does not exist: /nowhere"),
    ],
)
async def test_where_they_cannot_be_mounted_it_is_said(
    room: Room, tmp_path: Path, mounts: tuple[str, ...], why: str
) -> None:
    other = Room(_Other(room.provider, frozenset(mounts)), room.spec)  # type: ignore[arg-type]
    package = task_package(tmp_path / "task", room.spec, f"cat /tests/world.json; {PASSES}")
    result = await graded(other, tmp_path, package)
    assert result.reward == 1.0
    assert result.details["hardening"]["tests"] == why.format(name=room.provider.name)
    assert said(tmp_path) == '{"world": "answers"}'


async def test_other_ways_in_which_they_lie(room: Room, tmp_path: Path) -> None:
    package = task_package(tmp_path / "task", room.spec, PASSES)
    among = msgspec.structs.replace(package, outputs=("/tests/answer.sh", "answer.sh"))
    result = await graded(room, tmp_path / "a", among)
    assert result.details["hardening"]["tests"] == "writable: the agent's work lies in /tests too"
    result = await graded(room, tmp_path / "b", package, FILESYSTEM)
    told = result.details["hardening"]["tests"]
    assert told == "writable: the file system is the agent's"
    plain = ScriptVerifier(OUTPUTS, provision_package)
    result = await rollout(room, tmp_path / "c", OUTPUTS, honest, package, plain)
    assert result.details["hardening"]["tests"] == "writable: not isolated"


async def test_what_was_taken_out_of_repositories_is_said(room: Room, tmp_path: Path) -> None:
    async def act(sandbox: Sandbox, ctx: Context) -> None:
        config = "[core]\n\tbare = false\n[diff]\n\texternal = /app/evil\n"
        done = await sandbox.exec(
            "mkdir -p .git/hooks; cat > .git/config; echo a > .git/hooks/post-commit",
            stdin=config.encode(),
            user="root",
            cwd=ctx.workdir,
        )
        assert done.ok

    script = f"cd /app && cat .git/config && ls .git; {PASSES}"
    package = task_package(tmp_path / "task", room.spec, script)
    for name, profile in (("hard", ISOLATED), ("plain", None)):
        verifier = ScriptVerifier(WORKDIR, provision_package, profile)
        result = await rollout(room, tmp_path / name, WORKDIR, act, package, verifier)
        found = result.details["hardening"].get("taken_out_of_git")
        assert found == (["/app: .git: hooks, diff.external"] if name == "hard" else None)
    assert said(tmp_path / "hard") == '[core]\n\tbare = "false"\nconfig\n'
    assert "evil" in said(tmp_path / "plain")
