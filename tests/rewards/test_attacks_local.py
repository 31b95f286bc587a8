"""The verifier under attack in our own namespaces, on the host's root file system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from verifier_attacks import ATTACKS, CASES, EVERY
from verifier_stand import Room, rollout, shell

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.agent.nop import NopAgent
from ramify.planes.agent.oracle import OracleAgent
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(namespaces_problem: str | None, ramify_home: Path) -> AsyncIterator[Room | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        yield Room(provider, SandboxSpec(host_root=True, workdir="/app"))
    finally:
        await provider.aclose()


def agent(kind):
    async def act(sandbox, ctx):
        session = await kind().connect(sandbox, ctx)
        await session.prompt(ctx.task.instruction)
        await session.aclose()

    return act


@pytest.mark.parametrize("level", EVERY)
async def test_oracle_scores_1(room, tmp_path, level):
    result = await rollout(room, tmp_path, level, agent(OracleAgent))
    assert (result.reward, result.grader_isolation) == (1.0, level.value)


@pytest.mark.parametrize("level", EVERY)
async def test_nop_scores_0(room, tmp_path, level):
    assert (await rollout(room, tmp_path, level, agent(NopAgent))).reward == 0.0


@pytest.mark.parametrize(("name", "level"), CASES)
async def test_attack(room, tmp_path, name, level):
    _, script, expected = ATTACKS[name]
    if isinstance(expected, float):
        assert (await rollout(room, tmp_path, level, shell(script))).reward == expected
        return
    with pytest.raises(InvalidRewardError) as caught:
        await rollout(room, tmp_path, level, shell(script))
    assert caught.value.reason == expected
