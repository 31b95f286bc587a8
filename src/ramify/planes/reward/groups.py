"""Several rubrics as one, in a fixed order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ramify.contracts.context import Context
from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reward import RubricManifest, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.parts import check_unique
from ramify.planes.reward.results import merge
from ramify.planes.reward.rubric import Rubric

T = TypeVar("T")


class RubricGroup:
    """Several rubrics as one. Implements `GroupReward` and `Described`.

    The reward is the sum of the rubrics' rewards, and None as soon as one of them is None. They are
    evaluated in parallel, and stand in their order: what is compiled (the taskset's, named `core`,
    then the harness's, then normalisers) comes first, what a user adds last.

    Args:
        rubrics: the rubrics, or groups of them.

    Raises:
        ConfigError: two functions have the same name.
    """

    def __init__(self, rubrics: Sequence[Rubric | RubricGroup] = ()) -> None:
        self._rubrics: tuple[Rubric | RubricGroup, ...] = ()
        for rubric in rubrics:
            self.add_rubric(rubric)

    def add_rubric(self, rubric: Rubric | RubricGroup) -> None:
        """Add a rubric, after those that are there. Raises ConfigError (a name is taken)."""
        wanted = (*self._rubrics, rubric)
        check_unique([entry.name for one in wanted for entry in one.describe().entries])
        self._rubrics = wanted

    @property
    def name(self) -> str:
        """The rubrics' names."""
        return "+".join(rubric.name for rubric in self._rubrics if rubric.name)

    @property
    def compares(self) -> bool:
        """Whether some functions compare siblings."""
        return any(rubric.compares for rubric in self._rubrics)

    def describe(self) -> RubricManifest:
        """All functions of all rubrics, in the order in which they are added up.

        Raises: ConfigError (a function added to a rubric since has a name that is taken).
        """
        entries = tuple(e for rubric in self._rubrics for e in rubric.describe().entries)
        check_unique([entry.name for entry in entries])
        return RubricManifest(self.name, entries)

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Score one node with all rubrics.

        Raises: InvalidRewardError (the first rubric's that says so, once all have ended).
        """
        self.describe()

        async def one(rubric: Rubric | RubricGroup) -> VerifyResult | InvalidRewardError:
            try:
                return await rubric.score(node, ctx)
            except InvalidRewardError as error:  # it must not stop the other rubrics
                return error

        results: list[VerifyResult] = []
        for found in await _all([one(rubric) for rubric in self._rubrics]):
            if isinstance(found, InvalidRewardError):
                raise found
            results.append(found)
        return merge(results)

    async def score_group(
        self, nodes: Sequence[RolloutNode], contexts: Sequence[Context]
    ) -> Sequence[VerifyResult]:
        """Score siblings with all functions of all rubrics; one result each, in the same order.

        Raises: UsageError (not siblings, or not a context for each).
        """
        self.describe()
        found = await _all([rubric.score_group(nodes, contexts) for rubric in self._rubrics])
        return [merge([results[index] for results in found]) for index in range(len(nodes))]


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    async def awaited(one: Awaitable[T]) -> T:
        return await one

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(awaited(one)) for one in work]
    return [task.result() for task in tasks]
