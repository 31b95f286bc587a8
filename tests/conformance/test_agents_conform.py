"""The agent suite against the agents that need no model, in our own sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from ramify.contracts.agent import Agent
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import SolutionSettings, Task, TaskPackage
from ramify.planes.agent.nop import NopAgent
from ramify.planes.agent.oracle import OracleAgent
from ramify.planes.agent.program import ProgramAgent
from ramify.planes.agent.scripted import ScriptedAgent
from ramify.planes.agent.shell import ShellAgent
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.agent_bench import AgentBench, AgentScene
from ramify.testing.check import Check
from ramify.testing.conformance_agent import AGENT_CHECKS
from ramify.testing.conformance_checkpoint import CHECKPOINT_CHECKS
from ramify.testing.context import make_context

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(host_root=True, workdir="/srv")
LIVE = msgspec.structs.replace(SPEC, live=True)
LONG = "trap '' TERM; sleep 30 & sleep 30; sleep 30"


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


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def nop(folder: Path) -> dict[str, Callable[[], Agent]]:
    return {"works": NopAgent}


def scripted(folder: Path) -> dict[str, Callable[[], Agent]]:
    works = _written(folder / "works.txt", "echo one > f\ncat f\n")
    slow = _written(folder / "slow.txt", f"{LONG}\n")
    fails = _written(
        folder / "fails.json", '[{"command": "true"}, {"command": "exit 3", "expect_exit": 0}]'
    )
    return {
        "works": lambda: ScriptedAgent(works),
        "slow": lambda: ScriptedAgent(slow),
        "fails": lambda: ScriptedAgent(fails),
    }


def program(folder: Path) -> dict[str, Callable[[], Agent]]:
    return {
        "works": lambda: ProgramAgent(["sh", "-c", "cat; echo done >&2"]),
        "slow": lambda: ProgramAgent(["sh", "-c", LONG]),
        "fails": lambda: ProgramAgent(["sh", "-c", "sleep 20 & echo no; exit 2"]),
    }


def shell(folder: Path) -> dict[str, Callable[[], Agent]]:
    works = _written(folder / "works.txt", "send echo on$((1+1))\nexpect on2\n")
    slow = _written(folder / "slow.txt", "send sleep 30\ntimeout 25\nexpect never\n")
    fails = _written(folder / "fails.txt", "send echo x\ntimeout 0.3\nexpect never\n")
    return {
        "works": lambda: ShellAgent(works),
        "slow": lambda: ShellAgent(slow),
        "fails": lambda: ShellAgent(fails),
    }


def oracle(folder: Path) -> dict[str, Callable[[], Agent]]:
    return dict.fromkeys(SOLUTIONS, OracleAgent)


SOLUTIONS = {"works": "echo solved > solved", "slow": LONG, "fails": "echo no >&2; exit 4"}
AGENTS = {maker.__name__: maker for maker in (nop, scripted, program, shell, oracle)}


def _task(folder: Path, scene: str) -> Task:
    root = folder / f"task-{scene}"
    _written(root / "solution" / "solve.sh", SOLUTIONS[scene])
    package = TaskPackage(str(root), "digest", SPEC, solution=SolutionSettings())
    return Task("conformance:one", "Do the task.", package=package)


def _scene(
    provider: LocalProvider,
    folder: Path,
    name: str,
    make: Callable[[], Agent],
    spec: SandboxSpec = SPEC,
) -> AgentScene:
    @asynccontextmanager
    async def scene():
        sandbox = await provider.create(spec)
        try:
            artifacts = folder / "artifacts"
            artifacts.mkdir(exist_ok=True)
            ctx = make_context(_task(folder, name), sandbox, artifacts=artifacts, provider=provider)
            yield make(), sandbox, ctx
        finally:
            await sandbox.teardown()

    return scene


@pytest.mark.parametrize("check", AGENT_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("agent", AGENTS)
async def test_agent(
    agent: str, check: Check[AgentBench], provider: LocalProvider, tmp_path: Path
) -> None:
    makers = AGENTS[agent](tmp_path)
    scenes = {name: _scene(provider, tmp_path, name, make) for name, make in makers.items()}
    await check.run(AgentBench(scenes, acts=agent != "nop"))


@pytest.mark.live
@pytest.mark.parametrize("check", CHECKPOINT_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("agent", [name for name in AGENTS if name != "nop"])
async def test_agent_with_its_processes(
    agent: str, check: Check[AgentBench], provider: LocalProvider, tmp_path: Path
) -> None:
    makers = AGENTS[agent](tmp_path)
    scenes = {name: _scene(provider, tmp_path, name, make, LIVE) for name, make in makers.items()}
    await check.run(AgentBench(scenes))
