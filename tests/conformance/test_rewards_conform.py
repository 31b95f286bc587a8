"""The reward suite against the script verifier at every level, and a plain function."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.context import Context
from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.messages import Message
from ramify.contracts.reward import Reward
from ramify.contracts.sandbox import Sandbox, SandboxSpec
from ramify.contracts.task import IsolationLevel, Task, TaskPackage
from ramify.contracts.tree import Step
from ramify.planes.reward.function import FunctionReward
from ramify.planes.reward.script import ScriptVerifier
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.check import Check
from ramify.testing.conformance_reward import REWARD_CHECKS, RewardBench, RewardScene
from ramify.testing.context import make_context, make_node

LOOP = pytest.mark.asyncio(loop_scope="module")
SPEC = SandboxSpec(host_root=True, workdir="/app")
ANSWERS = {"right": "42", "wrong": "41", "broken": "boom"}
# `boom` makes the tests write a reward that is none; an untouched workspace scores 0.
TEST_SH = """
answer=$(cat /app/answer.txt 2>/dev/null)
case "$answer" in
    42) echo 1 ;;
    boom) echo NaN ;;
    *) echo 0 ;;
esac > /logs/verifier/reward.txt
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        await provider.prepare(SPEC)
        yield provider
    finally:
        await provider.aclose()


async def _prepare(sandbox: Sandbox, ctx: Context) -> None:
    """The task's start: an empty work directory."""
    result = await sandbox.exec("mkdir -p /app && echo given > /app/given.txt", cwd="/")
    assert result.ok, result.stderr


def _script_scene(
    provider: LocalProvider, folder: Path, level: IsolationLevel, answer: str
) -> RewardScene:
    root = folder / "task"
    (root / "tests").mkdir(parents=True, exist_ok=True)
    (root / "tests" / "test.sh").write_text(TEST_SH)
    package = TaskPackage(str(root), "digest", SPEC, outputs=("answer.txt",))
    task = Task("conformance:one", "What is six times seven?", package=package)

    @asynccontextmanager
    async def scene():
        image = await provider.prepare(SPEC)
        sandbox = await provider.create(SPEC, image)
        try:
            await _prepare(sandbox, make_context(task, artifacts=folder))
            await sandbox.exec(f"echo {answer} > /app/answer.txt")
            artifacts = folder / "artifacts"
            artifacts.mkdir(exist_ok=True)
            ctx = make_context(task, sandbox, artifacts=artifacts, provider=provider, image=image)
            yield ScriptVerifier(level, _prepare), make_node(), ctx
        finally:
            await sandbox.teardown()

    return scene


@LOOP
@pytest.mark.namespaces
@pytest.mark.parametrize("check", REWARD_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("level", IsolationLevel)
async def test_script_verifier(
    level: IsolationLevel, check: Check[RewardBench], provider: LocalProvider, tmp_path: Path
) -> None:
    scenes = {
        name: _script_scene(provider, tmp_path, level, answer) for name, answer in ANSWERS.items()
    }
    await check.run(RewardBench(scenes, tmp_path, {"right": 1.0, "wrong": 0.0}))


def _exact(completion: list[Message], answer: str) -> float:
    if not completion:
        raise InvalidRewardError("missing", "nothing was said")
    return float(completion[-1].content == answer)


def _function_scene(folder: Path, answer: str | None) -> RewardScene:
    @asynccontextmanager
    async def scene():
        task = Task("conformance:one", "What is six times seven?", target="42")
        steps = [Step((Message("assistant", answer),))] if answer is not None else []
        node = make_node([Message("user", task.instruction)], steps)
        reward: Reward = FunctionReward(_exact)
        yield reward, node, make_context(task, artifacts=folder)

    return scene


@LOOP
@pytest.mark.parametrize("check", REWARD_CHECKS, ids=lambda check: check.name)
async def test_function_reward(check: Check[RewardBench], tmp_path: Path) -> None:
    scenes = {
        name: _function_scene(tmp_path, answer)
        for name, answer in {"right": "42", "wrong": "41", "broken": None}.items()
    }
    expected = {"right": 1.0, "wrong": 0.0}
    await check.run(RewardBench(scenes, tmp_path, expected, uses_sandbox=False))
