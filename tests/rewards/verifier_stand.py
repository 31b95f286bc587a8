"""A task in a real sandbox, for the tests that attack its verifier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.context import Context
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxProvider, SandboxSpec
from ramify.contracts.task import (
    IsolationLevel,
    SolutionSettings,
    Task,
    TaskPackage,
    VerifierSettings,
)
from ramify.planes.environment.package import provision_package
from ramify.planes.reward.script import ScriptVerifier
from ramify.testing.fakecontext import fake_context

TEST_SH = """\
#!/bin/bash
# Grades answer.sh by what it prints.
if [ ! -e answer.sh ]; then echo 0 > /logs/verifier/reward.txt; exit 1; fi
said=$(sh ./answer.sh 2>&1)
if [ "$said" = 42 ]; then reward=1; else reward=0; fi
if [ -e /tests/helpers.sh ]; then . /tests/helpers.sh; fi
echo $reward > /logs/verifier/reward.txt
"""
SOLVE_SH = "echo 'echo 42' > answer.sh\n"


@dataclass(frozen=True, slots=True)
class Room:
    """Where rollouts run: a provider and a spec with a known work directory."""

    provider: SandboxProvider
    spec: SandboxSpec


def task_package(root: Path, spec: SandboxSpec, test_sh: str = TEST_SH) -> TaskPackage:
    """A task directory on disk."""
    for name, content in {"tests/test.sh": test_sh, "solution/solve.sh": SOLVE_SH}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return TaskPackage(
        str(root),
        "digest",
        spec,
        VerifierSettings(timeout_sec=20.0),
        SolutionSettings(),
        outputs=("answer.sh",),
    )


async def rollout(
    room: Room,
    tmp_path: Path,
    level: IsolationLevel,
    act: Callable[[Sandbox, Context], Awaitable[object]],
    package: TaskPackage | None = None,
    verifier: ScriptVerifier | None = None,
) -> VerifyResult:
    """Provision a sandbox, let `act` work in it as the agent, verify, tear down."""
    verifier = verifier or ScriptVerifier(level, provision_package)
    package = package or task_package(tmp_path / "task", room.spec)
    image = await room.provider.prepare(room.spec)
    sandbox = await room.provider.create(room.spec, image)
    try:
        ctx = fake_context(
            Task("set:attacked", input="Print 42.", package=package),
            artifacts=tmp_path / "artifacts",
            sandbox=sandbox,
            provider=room.provider,
            image=image,
        )
        await provision_package(sandbox, ctx)
        await act(sandbox, ctx)
        return await verifier.score(None, ctx)  # type: ignore[arg-type]  (the node is not looked at)
    finally:
        await sandbox.teardown()


def shell(script: str) -> Callable[[Sandbox, Context], Awaitable[object]]:
    """An agent that runs one script as root and must succeed in it."""

    async def act(sandbox: Sandbox, ctx: Context) -> None:
        result = await sandbox.exec(script, user="root", cwd=ctx.workdir, timeout_sec=30)
        assert result.ok, result

    return act
