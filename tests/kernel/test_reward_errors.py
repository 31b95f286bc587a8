"""A reward that cannot be computed: what is known of it is kept, and the agent is not blamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lifecycle_parts import Stage

from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, RewardFailedError
from ramify.contracts.events import RewardGiven, RewardParts
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.task import Task
from ramify.contracts.tree import Outcome, RolloutNode
from ramify.kernel.stages import Stage as KernelStage

EVENTS = (RewardEvent("core.style", 0.5),)


@dataclass
class Given:
    """A reward that finds what it is told to."""

    found: VerifyResult

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        return self.found


def stages(*found: VerifyResult) -> list[KernelStage]:
    task = Task("set:one", input="Do it.")
    if len(found) == 1:
        return [KernelStage(task, Given(found[0]))]
    return [KernelStage(task, Given(one), name=f"s{n}") for n, one in enumerate(found)]


def events_of(stage: Stage, kind: type) -> list[Any]:
    return [event for event in stage.observer.events if isinstance(event, kind)]


async def test_a_failed_part_leaves_the_rollout_unscored_and_keeps_the_others(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    found = VerifyResult(None, {"core.style": 0.5}, EVENTS, errors={"core.tests": "boom"})
    result = await stage.play(stages=stages(found))
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == ("reward_failed", False)
    assert "core.tests: boom" in result.error.message
    assert result.items == {"core.style": 0.5}
    assert result.reward_errors == {"core.tests": "boom"}
    assert result.unscored_by_us
    assert [event.name for event in events_of(stage, RewardGiven)] == ["core.style"]
    (told,) = events_of(stage, RewardParts)
    assert (told.errors, told.missing) == ({"core.tests": "boom"}, True)
    assert told.outcome is Outcome.SCORED


async def test_a_metric_that_fails_costs_nothing_but_itself(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    found = VerifyResult(0.5, {"core.style": 0.5}, EVENTS, errors={"core.length": "boom"})
    result = await stage.play(stages=stages(found))
    assert (result.outcome, result.reward, result.error) == (Outcome.SCORED, 0.5, None)
    assert result.reward_errors == {"core.length": "boom"}
    (told,) = events_of(stage, RewardParts)
    assert not told.missing


async def test_that_the_agent_failed_is_not_forgotten(tmp_path: Path) -> None:
    async def fail(stage: Stage) -> None:
        raise AgentError("it gave up")

    stage = Stage(tmp_path, {"execute": fail})
    result = await stage.play(stages=stages(VerifyResult(None, errors={"core.tests": "boom"})))
    assert result.outcome is Outcome.INFRA_ERROR, "never the agent's 0"
    (told,) = events_of(stage, RewardParts)
    assert told.outcome is Outcome.AGENT_ERROR


async def test_parts_that_wait_for_siblings_make_it_provisional(tmp_path: Path) -> None:
    found = VerifyResult(None, details={"pending": ["core.rank"]})
    result = await Stage(tmp_path).play(stages=stages(found))
    assert (result.outcome, result.reward, result.error) == (Outcome.SCORED, None, None)
    assert result.pending == ("core.rank",)


@pytest.mark.parametrize("strategy", ["mean", "final"])
async def test_what_earlier_steps_scored_is_kept(tmp_path: Path, strategy: str) -> None:
    first = VerifyResult(1.0, {"style": 1.0})
    second = VerifyResult(None, {"style": 0.5}, errors={"tests": "boom"})
    stage = Stage(tmp_path)
    result = await stage.play(stages=stages(first, second), reward_strategy=strategy)
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)
    assert result.items["s0.reward"] == 1.0
    assert "s1.reward" not in result.items
    assert result.items["s1.style"] == 0.5
    assert result.reward_errors == {"s1.tests": "boom"}


async def test_one_that_raises_can_be_scored_later_as_well(tmp_path: Path) -> None:
    async def fail(stage: Stage) -> None:
        raise RewardFailedError("the judge is down")

    stage = Stage(tmp_path, {"verify": fail})
    result = await stage.play()
    assert result.outcome is Outcome.INFRA_ERROR
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("reward_failed", "the judge is down")
    assert result.reward_errors == {"reward": "the judge is down"}
    (told,) = events_of(stage, RewardParts)
    assert told.missing
