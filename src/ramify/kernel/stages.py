"""The prompts of a rollout, one after the other, and how their scores become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ramify.contracts.reward import Granularity, Reward, RewardEvent, VerifyResult
from ramify.contracts.task import IsolationLevel, Task

_LADDER = tuple(level.value for level in IsolationLevel)


@dataclass(frozen=True, slots=True)
class Stage:
    """One prompt, and how what comes of it is scored. Most rollouts have one.

    Attributes:
        task: the task as it stands here; its instruction is the prompt.
        reward: how it is scored.
        agent_timeout_sec: time for the turn.
        name: of the task's step; empty where the task has no steps.
        min_reward: lower bounds on the reward and on items by name. Where one is not reached, the
            stages after this one are left out.
    """

    task: Task
    reward: Reward
    agent_timeout_sec: float = 600.0
    name: str = ""
    min_reward: Mapping[str, float] = field(default_factory=dict[str, float])


def falls_short(stage: Stage, found: VerifyResult) -> bool:
    """Whether a bound of the stage is not reached. A missing item reaches none."""
    known = dict(found.items)
    if found.reward is not None:
        known["reward"] = found.reward
    return any(known.get(name, -float("inf")) < low for name, low in stage.min_reward.items())


def of_step(stage: Stage, event: RewardEvent) -> RewardEvent:
    """A signal on the whole of a step as one on a part of the trajectory."""
    return msgspec.structs.replace(
        event, name=f"{stage.name}.{event.name}", granularity=Granularity.STEP
    )


def combined(
    scores: Sequence[tuple[Stage, VerifyResult]], strategy: Literal["mean", "final"]
) -> VerifyResult:
    """One result for all stages that were reached; that of the only stage as it is.

    `mean`: the mean of their rewards, and of each item (0 where a stage lacks it). `final`: those
    of the last. The parts stand among the items, under the step's name. The isolation is the
    weakest of all. Where a stage that counts has no reward, there is none.
    """
    if len(scores) == 1 and not scores[0][0].name:
        return scores[0][1]
    counted = [found for _, found in (scores if strategy == "mean" else scores[-1:])]
    names = {name for found in counted for name in found.items}
    items = {name: sum(f.items.get(name, 0.0) for f in counted) / len(counted) for name in names}
    for stage, found in scores:
        items.update({f"{stage.name}.{name}": value for name, value in found.items.items()})
        if found.reward is not None:
            items[f"{stage.name}.reward"] = found.reward
    rewards = [found.reward for found in counted if found.reward is not None]
    reward = sum(rewards) / len(rewards) if len(rewards) == len(counted) else None
    return VerifyResult(
        reward=reward,
        items=dict(sorted(items.items())),
        events=() if reward is None else (RewardEvent("reward", reward),),
        grader_isolation=weakest([found.grader_isolation for _, found in scores]),
        details={stage.name: found.details for stage, found in scores},
        errors={
            f"{stage.name}.{name}": text
            for stage, found in scores
            for name, text in found.errors.items()
        },
    )


def weakest(levels: Sequence[str | None]) -> str | None:
    """Of several isolation levels the one at which most was shared; None if one is unknown."""
    known = [level for level in levels if level in _LADDER]
    return max(known, key=_LADDER.index) if len(known) == len(levels) else None
