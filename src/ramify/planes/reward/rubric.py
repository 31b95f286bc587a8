"""A rubric: plain functions, each of which gets the arguments that it names, and their weights."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.reward import Granularity, Reward, RubricManifest, Space, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.arguments import Scene, check_names
from ramify.planes.reward.calling import Caller
from ramify.planes.reward.parsers.base import Parser
from ramify.planes.reward.parts import Part, Supplies, check_unique, make_part, short_name
from ramify.planes.reward.results import Score, combine, raise_invalid, read_score
from ramify.planes.reward.threads import Returned


class Rubric:
    """A weighted set of functions and metrics. Implements `GroupReward` and `Described`.

    A function is sync or async, and asks by name, or by type, for what it wants:

    - `prompt` (messages that open the conversation), `completion` (those since), `answer` (the
      task's target), `info` (its metadata), `task`, `node`, `path`, `state` (reference to the
      snapshot at the node), `ctx`, `parser`, a column of the task declared in `columns`, an object
      given in `objects`; `**kwargs` gets all of it;
    - a **group function** asks for `nodes`, `prompts`, `completions`, `answers`, `infos`, `states`,
      `tasks` or `paths`: a list each, one entry per sibling (leaf of the same task). It returns a
      list of as many scores. `answer`, `info` and `task` are those of the task they share; a
      column is a list.

    It returns a number, a VerifyResult, or RewardEvents (whose mean is its value). A Reward may
    stand in place of a function.

    What it asks for is resolved here, once. All functions of a node run in parallel, and one that
    raises, does not return in time or returns anything else has an entry in the result's `errors`;
    the others count all the same. If its weight is not 0, the reward is None, never 0. An
    InvalidRewardError that a function of non-zero weight raises makes the whole invalid. Results
    stand in the order of the functions, whichever ends first.

    A synchronous function runs in a thread. Python cannot stop it: after its timeout it is written
    off and goes on in the background; it does not keep the process from ending. While 128 of them
    hang, no other synchronous function is called, which is an error of each. What keeps the
    interpreter lock for long (one large regular expression) belongs in a process. An async function
    runs on the event loop: it must not block there.

    Args:
        funcs: the functions.
        weights: one for each; by default 1. Weight 0 makes it a metric.
        name: namespace of its functions: `name.function`.
        parser: what functions that ask for `parser` get; by default a plain Parser.
        objects: name → object that functions may ask for, also by its class.
        columns: keys of `Task.metadata` that functions may ask for.
        timeout_sec: seconds each function may take once it has started.
        concurrency: functions that run at once, over all nodes.

    Raises:
        ConfigError: a function asks for something that nobody supplies, two have the same name, or
            numbers do not fit.
    """

    def __init__(
        self,
        funcs: Sequence[Callable[..., Any] | Reward] = (),
        weights: Sequence[float] | None = None,
        *,
        name: str = "",
        parser: Parser | None = None,
        objects: Mapping[str, object] | None = None,
        columns: Sequence[str] = (),
        timeout_sec: float = 60.0,
        concurrency: int = 32,
    ) -> None:
        if weights is not None and len(weights) != len(funcs):
            raise ConfigError(
                f"{len(funcs)} functions, but {len(weights)} weights", field="weights"
            )
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {concurrency}")
        check_names(columns, objects or {})
        fixed = {"parser": parser or Parser(), **(objects or {})}
        self._supplies = Supplies(tuple(columns), fixed)
        self._name, self._timeout_sec = name, timeout_sec
        self._caller = Caller(concurrency)
        self._parts: tuple[Part, ...] = ()
        for index, func in enumerate(funcs):
            self.add(func, 1.0 if weights is None else weights[index])

    @property
    def name(self) -> str:
        """Its namespace; empty without one."""
        return self._name

    @property
    def compares(self) -> bool:
        """Whether some functions compare siblings."""
        return any(part.compares for part in self._parts)

    def add(
        self,
        func: Callable[..., Any] | Reward,
        weight: float = 1.0,
        *,
        name: str | None = None,
        space: Space = Space.OUTPUT,
        granularity: Granularity = Granularity.TERMINAL,
        group: bool = False,
        timeout_sec: float | None = None,
    ) -> None:
        """Add a function, after those that are there.

        Args:
            func: the function, or a Reward.
            weight: what its value is multiplied by; 0 makes it a metric.
            name: what it is called; by default its own name.
            space, granularity: what its signal is about.
            group: it compares siblings, though none of its arguments' names says so.
            timeout_sec: by default the function's own `timeout_sec`, if it has one, else the
                rubric's.

        Raises:
            ConfigError: as for the rubric.
        """
        own = name or short_name(func)
        limit: float = getattr(func, "timeout_sec", self._timeout_sec)
        part = make_part(
            func,
            self._supplies,
            name=f"{self._name}.{own}" if self._name else own,
            weight=weight,
            space=space,
            granularity=granularity,
            group=group,
            timeout_sec=limit if timeout_sec is None else timeout_sec,
        )
        check_unique([*(p.name for p in self._parts), part.name])
        self._parts = (*self._parts, part)

    def describe(self) -> RubricManifest:
        """Its functions, in the order in which they are evaluated and added up."""
        return RubricManifest(self._name, tuple(part.entry for part in self._parts))

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Score one node. Group functions are left out and named in `details["pending"]`.

        Raises: InvalidRewardError (as a function of non-zero weight raises it).
        """
        scene = Scene(node, ctx)
        singles = [part for part in self._parts if not part.compares]
        found = await self._evaluate([(part, [scene]) for part in singles])
        scores = [(part.entry, one[0]) for part, one in zip(singles, found, strict=True)]
        raise_invalid(scores)
        return combine(
            scores, [part.name for part in self._parts if part.compares], self._own_names
        )

    async def score_group(
        self, nodes: Sequence[RolloutNode], contexts: Sequence[Context]
    ) -> Sequence[VerifyResult]:
        """Score siblings with all functions; one result each, in the same order.

        What fails for one of them is in that one's `errors`, an InvalidRewardError too; a group
        function that fails, or returns the wrong number of scores, has failed for all.

        Raises: UsageError (not siblings, or not a context for each).
        """
        if len(nodes) != len(contexts):
            raise UsageError(f"{len(nodes)} nodes, but {len(contexts)} contexts")
        if len({ctx.task.task_id for ctx in contexts}) > 1:
            raise UsageError("siblings are leaves of the same task; these are of several")
        if not nodes:
            return []
        scenes = [Scene(node, ctx) for node, ctx in zip(nodes, contexts, strict=True)]
        wanted: list[tuple[Part, list[Scene]]] = []
        for part in self._parts:
            wanted += [(part, scenes)] if part.compares else [(part, [one]) for one in scenes]
        found = await self._evaluate(wanted)
        flat = {
            (part.name, id(scene)): score
            for (part, seen), scores in zip(wanted, found, strict=True)
            for scene, score in zip(seen, scores, strict=True)
        }
        return [
            combine(
                [(part.entry, flat[part.name, id(scene)]) for part in self._parts],
                own=self._own_names,
            )
            for scene in scenes
        ]

    @property
    def _own_names(self) -> dict[str, str]:
        return {part.name: part.own for part in self._parts}

    async def _evaluate(self, wanted: Sequence[tuple[Part, list[Scene]]]) -> list[list[Score]]:
        if len(wanted) == 1:
            return [await self._one(*wanted[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(part, scenes)) for part, scenes in wanted]
        return [task.result() for task in tasks]

    async def _one(self, part: Part, scenes: list[Scene]) -> list[Score]:
        """What a function says about each of the scenes it was shown. Never raises its errors."""
        try:
            bound = part.bind(scenes)
        except LookupError as error:
            returned = Returned(None, error)
        else:
            returned = await self._caller.call(bound, part.call.is_async, part.timeout_sec)
        each = _spread(returned, len(scenes)) if part.compares else [returned]
        return [
            read_score(part.entry, one, scene.node.id)
            for one, scene in zip(each, scenes, strict=True)
        ]


def _spread(returned: Returned, count: int) -> list[Returned]:
    """One result per sibling of what a group function returned."""
    value: object = returned.value
    if returned.raised is None:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            wrong = TypeError(f"it returned {reprlib.repr(value)}; a group function returns a list")
            returned = Returned(None, wrong)
        else:
            found = cast(Sequence[object], value)
            if len(found) == count:
                return [Returned(one) for one in found]
            returned = Returned(None, ValueError(f"it returned {len(found)} scores for {count}"))
    return [returned] * count
