"""A plain Python function as a reward; it gets the arguments that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ramify.contracts.context import Context
from ramify.contracts.errors import (
    ConfigError,
    InfraError,
    InvalidRewardError,
    RewardFailedError,
)
from ramify.contracts.reward import Granularity, RubricManifest, Space, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.arguments import Scene
from ramify.planes.reward.calling import Caller
from ramify.planes.reward.parsers.base import Parser
from ramify.planes.reward.parts import Supplies, make_part, short_name
from ramify.planes.reward.results import NotANumberError, combine, read_score


class FunctionReward:
    """Scores a node with one function: a rubric of one, whose result is the function's own.

    It may ask for what a function of a `Rubric` may, columns and objects aside. What is no number,
    not finite, or a bool is an error on our side, as is anything it raises; neither ever becomes a
    reward of 0.

    Args:
        func: the function, sync or async.
        name: what the signal is called; default the function's own name.
        timeout_sec: seconds it may take.

    Raises:
        ConfigError: a required parameter has another name, or it compares siblings.
    """

    def __init__(
        self, func: Callable[..., Any], name: str | None = None, timeout_sec: float = 600.0
    ) -> None:
        self._part = make_part(
            func,
            Supplies((), {"parser": Parser()}),
            name=name or short_name(func),
            weight=1.0,
            space=Space.OUTPUT,
            granularity=Granularity.TERMINAL,
            group=False,
            timeout_sec=timeout_sec,
        )
        if self._part.compares:
            raise ConfigError(
                f"{self._part.name}() compares siblings; put it into a Rubric: Rubric([...])"
            )
        self._caller = Caller(32)

    def describe(self) -> RubricManifest:
        """The one function."""
        return RubricManifest("", (self._part.entry,))

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Call the function.

        Raises: InvalidRewardError and InfraError as the function raises them; RewardFailedError
        for every other failure of it.
        """
        part = self._part
        bound = part.bind([Scene(node, ctx)])
        returned = await self._caller.call(bound, part.call.is_async, part.timeout_sec)
        if isinstance(returned.value, VerifyResult):
            return returned.value
        score = read_score(part.entry, returned, 0)
        if (error := score.raised) is None:
            return combine([(part.entry, score)])
        if isinstance(error, InvalidRewardError | InfraError):
            raise error
        text = str(error).replace("it returned", "returned", 1)
        failed = isinstance(error, NotANumberError)
        raise RewardFailedError(
            f"reward function {part.name} {text} on {ctx.task.task_id}"
            if failed
            else f"reward function {part.name} failed on {ctx.task.task_id}: {score.message}"
        ) from error
