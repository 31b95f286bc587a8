"""The verifier under attack in Docker containers."""

from __future__ import annotations

import pytest
import rooms
from verifier_attacks import ATTACKS, CASES, EVERY
from verifier_stand import rollout, shell

from ramify.contracts.errors import InvalidRewardError
from ramify.planes.agent.nop import NopAgent
from ramify.planes.agent.oracle import OracleAgent

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
room = rooms.docker_room


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
