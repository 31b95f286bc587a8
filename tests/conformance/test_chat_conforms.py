"""The agent suite against the chat agent, with a scripted model, in our own sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.agent.chat import ChatAgent
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.agent_bench import AgentBench, AgentScene
from ramify.testing.check import Check
from ramify.testing.conformance_agent import AGENT_CHECKS
from ramify.testing.context import make_context
from ramify.testing.scripted_model import Script, ScriptedModel, Seen, Turn, call

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(host_root=True, workdir="/srv")
LONG = "trap '' TERM; sleep 30 & sleep 30; sleep 30"


def works(seen: Seen) -> Turn:
    return "Done." if seen.answers else call("bash", command="echo one > f; cat f")


SCENES: dict[str, Script] = {
    "works": works,
    "slow": lambda seen: call("bash", command=LONG),
    "fails": lambda seen: call("bsah", command="ls"),
}


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


def scene(provider: LocalProvider, folder: Path, script: Script) -> AgentScene:
    @asynccontextmanager
    async def opened():
        sandbox = await provider.create(SPEC)
        try:
            # Idle helpers of a sandbox are processes, too: have as many as it ever keeps before
            # any are counted.
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(sandbox.exec("sleep 0.1"))
            task = Task("conformance:one", "Do the task.")
            ctx = make_context(task, sandbox, artifacts=folder, provider=provider)
            yield ChatAgent(), sandbox, dataclasses.replace(ctx, model=ScriptedModel(script))
        finally:
            await sandbox.teardown()

    return opened


@pytest.mark.parametrize("check", AGENT_CHECKS, ids=lambda check: check.name)
async def test_chat(check: Check[AgentBench], provider: LocalProvider, tmp_path: Path) -> None:
    await check.run(AgentBench({n: scene(provider, tmp_path, s) for n, s in SCENES.items()}))
