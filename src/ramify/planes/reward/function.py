"""A plain Python function as a reward; it gets the arguments that it names."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from ramify.contracts.calls import resolve
from ramify.contracts.context import Context
from ramify.contracts.errors import InfraError, InvalidRewardError
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode

_NAMES = ("prompt", "completion", "answer", "task", "info", "node", "path", "state", "ctx")


class FunctionReward:
    """Scores a node with a function, in our own process; a synchronous one runs in a thread.

    The function's parameters may be named `prompt` (messages that open the conversation),
    `completion` (those since), `answer` (the task's target), `task`, `info` (its metadata),
    `node`, `path`, `state` (reference to the snapshot at the node) and `ctx`. It returns a number
    or a VerifyResult. What is no number, not finite, or a bool is an error on our side, as is
    anything it raises; neither ever becomes a reward of 0.

    Args:
        func: the function, sync or async.
        name: what the signal is called; default the function's own name.

    Raises:
        ConfigError: a required parameter has another name.
    """

    def __init__(self, func: Callable[..., Any], name: str | None = None) -> None:
        self._call = resolve(func, _NAMES, {Task: "task", Context: "ctx"})
        self._name = name or self._call.name

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Call the function.

        Raises: InvalidRewardError and InfraError as the function raises them; InfraError for
        every other failure of it.
        """
        try:
            value: object = await self._call(_values(node, ctx))
        except (InvalidRewardError, InfraError):
            raise
        except Exception as error:
            raise InfraError(
                f"reward function {self._name} failed on {ctx.task.task_id}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(value, VerifyResult):
            return value
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InfraError(
                f"reward function {self._name} returned {value!r} on {ctx.task.task_id}; "
                "it must return a finite number or a VerifyResult"
            )
        number = float(value)
        return VerifyResult(
            reward=number,
            items={self._name: number},
            events=(RewardEvent(self._name, number),),
            grader_isolation="host",
        )


def _values(node: RolloutNode, ctx: Context) -> dict[str, Any]:
    prompt = list(node.path[0].messages)
    return {
        "prompt": prompt,
        "completion": list(node.messages)[len(prompt) :],
        "answer": ctx.task.target,
        "task": ctx.task,
        "info": ctx.task.metadata,
        "node": node,
        "path": list(node.path),
        "state": node.state,
        "ctx": ctx,
    }
