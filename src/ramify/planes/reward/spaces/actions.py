"""The action space: the right actions, none of the wrong ones, and a question where one is due."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError
from ramify.contracts.reward import Space, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.spaces.walking import Action, signal, unscored, walk


class ActionPattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which actions are meant.

    Attributes:
        tool: the tool's name, or a pattern of names (`*`, `?`, `[...]`).
        matches: a regular expression that the texts of its arguments contain; empty: any.

    Raises:
        ConfigError: no regular expression.
    """

    tool: str = "*"
    matches: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.matches)
        except re.error as error:
            raise ConfigError(f"{self.matches!r} is no regular expression: {error}") from None

    def fits(self, action: Action) -> bool:
        """Whether an action is one of them."""
        named = fnmatchcase(action.name, self.tool)
        return named and (not self.matches or re.search(self.matches, action.text) is not None)


class RightActions:
    """Whether the required actions were taken, and no forbidden one. Implements `Reward`.

    The reward is the share of required actions that were taken (where they are ordered: the longest
    run of them in that order); it is 0 as soon as one forbidden action was taken. Each action can
    stand for one requirement only. Steps that took a required action have the value 1, those with
    a forbidden one 0. Without arguments, both are those of the task's metadata, `required_actions`
    and `forbidden_actions`: lists of tables with `tool` and `matches`.

    Args:
        required, forbidden: the actions; None: the task's own.
        ordered: whether the required ones have to come in this order.
    """

    name = "right_actions"

    def __init__(
        self,
        required: Sequence[ActionPattern] | None = None,
        forbidden: Sequence[ActionPattern] | None = None,
        *,
        ordered: bool = False,
    ) -> None:
        self._required, self._forbidden, self._ordered = required, forbidden, ordered

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Compare. Raises: ConfigError (the task's metadata holds something else)."""
        required = _patterns(self._required, ctx, "required_actions")
        forbidden = _patterns(self._forbidden, ctx, "forbidden_actions")
        actions = [action for _, _, each in walk(node.path) for action in each]
        taken = (_in_order if self._ordered else _in_any_order)(required, actions)
        bad = [each for each in actions if any(pattern.fits(each) for pattern in forbidden)]
        share = len(taken) / len(required) if required else 1.0
        steps = {action.node: 1.0 for action in taken.values()}
        steps |= {action.node: 0.0 for action in bad}
        missing = [msgspec.to_builtins(p) for n, p in enumerate(required) if n not in taken]
        details: dict[str, Any] = {
            **({"missing": missing} if missing else {}),
            **({"forbidden": [[each.node, each.name] for each in bad]} if bad else {}),
        }
        return signal(self.name, Space.ACTION, 0.0 if bad else share, steps, details)


def _patterns(
    given: Sequence[ActionPattern] | None, ctx: Context, key: str
) -> Sequence[ActionPattern]:
    if given is not None:
        return given
    try:
        return msgspec.convert(ctx.task.metadata.get(key, []), list[ActionPattern])
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), file=ctx.task.task_id, field=f"metadata.{key}") from None


def _in_any_order(
    required: Sequence[ActionPattern], actions: Sequence[Action]
) -> dict[int, Action]:
    """Requirement → action, as many as can be had with one action for each."""
    owner: dict[int, int] = {}

    def place(wanted: int, tried: set[int]) -> bool:
        for index, action in enumerate(actions):
            if index not in tried and required[wanted].fits(action):
                tried.add(index)
                if index not in owner or place(owner[index], tried):
                    owner[index] = wanted
                    return True
        return False

    for wanted in range(len(required)):
        place(wanted, set())
    return {wanted: actions[index] for index, wanted in owner.items()}


def _in_order(required: Sequence[ActionPattern], actions: Sequence[Action]) -> dict[int, Action]:
    """The longest run of requirements that were met one after the other."""
    best: list[dict[int, Action]] = [{} for _ in range(len(actions) + 1)]
    for wanted, pattern in enumerate(required):
        row: list[dict[int, Action]] = [{}]
        for index, action in enumerate(actions):
            options = [row[-1], best[index + 1]]
            if pattern.fits(action):
                options.append({**best[index], wanted: action})
            row.append(max(options, key=len))
        best = row
    return best[-1]


@dataclass(frozen=True, slots=True)
class AskedWhenDue:
    """Whether the agent asked its user when it should have, and only then. Implements `Reward`.

    The task's metadata says whether it should: `should_ask`, true or false. 1 where it did as it
    should, else 0; not scored where the task does not say.

    Attributes:
        tools: names of tools by which agents ask.
    """

    tools: tuple[str, ...] = ("ask_user", "request_permission")

    @property
    def name(self) -> str:
        """What the signal is called."""
        return "asked_when_due"

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Look for questions."""
        should = ctx.task.metadata.get("should_ask")
        if not isinstance(should, bool):
            return unscored(
                self.name, Space.ACTION, "the task's metadata does not say `should_ask`"
            )
        asked = [
            at.id
            for at, step, actions in walk(node.path)
            if "ask_user" in step.info or any(action.name in self.tools for action in actions)
        ]
        right = float(bool(asked) == should)
        details = {"should_ask": should, "asked_at": asked}
        return signal(self.name, Space.ACTION, right, dict.fromkeys(asked, right), details)
