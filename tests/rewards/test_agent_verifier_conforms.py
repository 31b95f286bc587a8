"""The reward suite against an agent that grades, and a judge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from graded_world import verdict

from ramify.contracts.context import Context
from ramify.contracts.messages import Message
from ramify.contracts.reward import Reward
from ramify.contracts.sandbox import Sandbox, SandboxSpec
from ramify.contracts.task import IsolationLevel, Task, TaskPackage, VerifierSettings
from ramify.contracts.tree import Step
from ramify.planes.agent.chat import ChatAgent
from ramify.planes.reward.agent_verifier import AgentVerifier
from ramify.planes.reward.judge import Judge
from ramify.planes.reward.judge_reward import JudgeReward
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.check import Check
from ramify.testing.conformance_reward import REWARD_CHECKS, RewardBench, RewardScene
from ramify.testing.context import make_context, make_node
from ramify.testing.scripted_model import ScriptedModel, Seen, Turn, call

LOOP = pytest.mark.asyncio(loop_scope="module")
SPEC = SandboxSpec(host_root=True, workdir="/app")
ANSWERS = {"right": "42", "wrong": "41", "broken": "boom"}
EXPECTED = {"right": 1.0, "wrong": 0.0}


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
    result = await sandbox.exec("mkdir -p /app && echo given > /app/given.txt", cwd="/")
    assert result.ok, result.stderr


def _grader(seen: Seen) -> Turn:
    """Compares with what only it was given; cannot speak once it has read `boom`."""
    if seen.turn == 0:
        return call("bash", command="cat answer.txt /tests/expected.txt 2>&1; true")
    read = next(m.content for m in seen.messages if m.role == "tool").split()
    return "boom!" if "boom" in read else verdict(seen, float(read[0] == read[-1]))


def _graded(
    provider: LocalProvider, folder: Path, level: IsolationLevel, answer: str
) -> RewardScene:
    root = folder / "task"
    (root / "tests").mkdir(parents=True, exist_ok=True)
    (root / "tests" / "expected.txt").write_text("42\n")
    settings = VerifierSettings(timeout_sec=60.0)
    package = TaskPackage(str(root), "digest", SPEC, settings, outputs=("answer.txt",))
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
            model = ScriptedModel(_grader)
            yield AgentVerifier(ChatAgent(), _prepare, level=level, model=model), make_node(), ctx
        finally:
            await sandbox.teardown()

    return scene


@LOOP
@pytest.mark.namespaces
@pytest.mark.parametrize("check", REWARD_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("level", [IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR])
async def test_agent_verifier(
    level: IsolationLevel, check: Check[RewardBench], provider: LocalProvider, tmp_path: Path
) -> None:
    scenes = {name: _graded(provider, tmp_path, level, word) for name, word in ANSWERS.items()}
    await check.run(RewardBench(scenes, tmp_path, EXPECTED))


def _marks(seen: Seen) -> str:
    system, page = seen.messages[0].content, seen.messages[1].content
    if "| boom" in page:
        return "boom!"
    nonce = system.partition("with the nonce ")[2].partition(":")[0]
    mark = 10 if "| 42" in page else 0
    made = [{"criterion": "verdict", "reason": "r", "mark": mark}]
    return json.dumps({"nonce": nonce, "verdicts": made})


def _judged(folder: Path, answer: str) -> RewardScene:
    @asynccontextmanager
    async def scene():
        task = Task("conformance:one", "What is six times seven?")
        steps = [Step((Message("assistant", answer),))]
        node = make_node([Message("user", task.instruction)], steps)
        reward: Reward = JudgeReward(Judge(ScriptedModel(_marks), "Is it right?"))
        yield reward, node, make_context(task, artifacts=folder)

    return scene


@LOOP
@pytest.mark.parametrize("check", REWARD_CHECKS, ids=lambda check: check.name)
async def test_judge(check: Check[RewardBench], tmp_path: Path) -> None:
    scenes = {name: _judged(tmp_path, answer) for name, answer in ANSWERS.items()}
    await check.run(RewardBench(scenes, tmp_path, EXPECTED, uses_sandbox=False))
