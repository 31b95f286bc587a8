"""The stages of a rollout, out of a task: one, or one for each of its steps."""

from __future__ import annotations

from collections.abc import Mapping

from ramify.contracts.reward import Reward
from ramify.contracts.task import IsolationLevel, Task
from ramify.kernel.stages import Stage


def stage_levels(task: Task, level: IsolationLevel) -> tuple[IsolationLevel, ...]:
    """The isolation at which each stage of a task is verified.

    Freezing a file system ends the sandbox, so steps that others follow are verified live where
    the last is verified on the frozen file system. The tests are removed before the agent goes on.
    """
    steps = task.package.steps if task.package else ()
    before = IsolationLevel.LIVE if level is IsolationLevel.FILESYSTEM else level
    return (*(before for _ in steps[1:]), level)


def stages_of(
    task: Task, level: IsolationLevel, rewards: Mapping[IsolationLevel, Reward]
) -> list[Stage]:
    """The stages of a task; `rewards` has one for each of its `stage_levels`."""
    levels = stage_levels(task, level)
    package = task.package
    if package is None:
        return [Stage(task, rewards[level])]
    if not package.steps:
        return [Stage(task, rewards[level], package.agent_timeout_sec)]
    return [
        Stage(
            task.at_step(index),
            rewards[at],
            step.agent_timeout_sec,
            step.name,
            step.min_reward,
        )
        for index, (step, at) in enumerate(zip(package.steps, levels, strict=True))
    ]
