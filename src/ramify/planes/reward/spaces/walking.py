"""A rollout's path as what was done, step by step, and process rewards over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

from ramify.contracts.context import Context
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.messages import ToolCall
from ramify.contracts.reward import Granularity, RewardEvent, Space, VerifyResult
from ramify.contracts.tree import RolloutNode, Step

_MAX_TEXT = 32 * 1024
HOST = "host"
"""`grader_isolation` of what is computed in our own process."""


@dataclass(frozen=True, slots=True)
class Action:
    """One tool call as it was recorded.

    Attributes:
        node: the node it led to.
        call: the call, its arguments as the policy wrote them.
        result: what the tool answered; None where no answer was recorded.
        role: who acted.
    """

    node: int
    call: ToolCall
    result: str | None
    role: str

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.call.name

    @property
    def arguments(self) -> dict[str, Any] | None:
        """Its arguments; None where they are no JSON object."""
        try:
            found: object = json.loads(self.call.arguments.strip() or "{}")
        except (ValueError, RecursionError):
            return None
        return cast("dict[str, Any]", found) if isinstance(found, dict) else None

    @property
    def text(self) -> str:
        """All texts among its arguments, one below the other; the arguments as they stand where
        they are no JSON. Of much text the beginning and the end."""
        arguments = self.arguments
        text = self.call.arguments if arguments is None else "\n".join(_texts(arguments))
        return (
            text
            if len(text) <= _MAX_TEXT
            else f"{text[: _MAX_TEXT // 2]}\n{text[-_MAX_TEXT // 2 :]}"
        )


def actions_of(step: Step, node: int) -> list[Action]:
    """What was done in a step."""
    results = {m.tool_call_id: m.content for m in step.messages if m.role == "tool"}
    return [
        Action(node, call, results.get(call.id), step.role)
        for message in step.messages
        if message.role == "assistant"
        for call in message.tool_calls
    ]


def walk(path: Sequence[RolloutNode]) -> Iterator[tuple[RolloutNode, Step, list[Action]]]:
    """Each step of a path with what was done in it, from the root on."""
    for node in path:
        if node.step is not None:
            yield node, node.step, actions_of(node.step, node.id)


Check = Callable[[RolloutNode, Sequence[Action]], float | None]
"""Values one step, seen from its node, with the path up to it; None where it says nothing of it."""


class ProcessReward:
    """Values each step of a path in the light of what came before it. Implements `Reward`.

    The reward is the mean over the steps that have a value, 1 where none has; each such step has
    an event of its own, with its node.

    Args:
        check: values one step.
        name: what the signal is called.
        space: what it is read in.

    Raises:
        UnsupportedError: the space is reserved.
    """

    def __init__(self, check: Check, *, name: str, space: Space | str = Space.ACTION) -> None:
        self._check, self._name, self._space = check, name, open_space(space)

    @property
    def name(self) -> str:
        """What the signal is called."""
        return self._name

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Walk the path. Raises what `check` raises."""
        found: dict[int, float] = {}
        for at, _, actions in walk(node.path):
            if (value := self._check(at, actions)) is not None:
                found[at.id] = value
        reward = fmean(found.values()) if found else 1.0
        return signal(self._name, self._space, reward, found)


def signal(
    name: str,
    space: Space,
    reward: float,
    steps: dict[int, float],
    details: dict[str, Any] | None = None,
    items: dict[str, float] | None = None,
) -> VerifyResult:
    """A result with one event for the whole trajectory, and one for each step that has a value."""
    events = [RewardEvent(name, reward, space)]
    events += [
        RewardEvent(f"{name}.step", value, space, Granularity.STEP, node)
        for node, value in sorted(steps.items())
    ]
    return VerifyResult(
        reward=reward,
        items=items or {},
        events=tuple(events),
        space=space,
        grader_isolation=HOST,
        details=details or {},
    )


def unscored(name: str, space: Space, why: str) -> VerifyResult:
    """A result that says why there is no value; in a rubric an error, never a 0."""
    return VerifyResult(reward=None, space=space, grader_isolation=HOST, errors={name: why})


def open_space(space: Space | str) -> Space:
    """A space by its name. Raises: UnsupportedError (it is reserved, or there is no such)."""
    names = [each.value for each in Space if each is not Space.LATENT]
    if space == Space.LATENT:
        raise UnsupportedError(
            "the space `latent` is reserved: nothing here has access to a model's activations; "
            f"use {', '.join(names)}"
        )
    if space not in names:
        raise UnsupportedError(f"there is no space {space!r}; use {', '.join(names)}")
    return Space(space)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in cast("dict[str, object]", value).values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _texts(inner)
    elif value is not None:
        yield json.dumps(value)
