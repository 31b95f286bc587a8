"""The action space: tools are used that exist, with arguments that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.messages import ToolSpec
from ramify.contracts.reward import Space, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.spaces.toolschema import mismatch
from ramify.planes.reward.spaces.walking import Action, signal, unscored, walk


class OfferedTools:
    """Whether every tool call is one that was offered. Implements `Reward`.

    A call of a tool that was not offered, or with arguments that its schema refuses, is out of
    distribution. The reward is the share of calls that are not, and 1 without calls; a step is
    worth the share of its own. What was offered is what the agent recorded with its first step.

    Args:
        tools: what was offered, in place of what was recorded.
    """

    name = "offered_tools"

    def __init__(self, tools: Sequence[ToolSpec] | None = None) -> None:
        self._tools = None if tools is None else {tool.name: tool.parameters for tool in tools}

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Compare each call with what was offered."""
        offered = self._tools if self._tools is not None else _recorded(node)
        wrong: list[list[Any]] = []
        steps: dict[int, float] = {}
        count = 0
        for at, _, actions in walk(node.path):
            if not actions:
                continue
            if offered is None:
                why = "the agent did not record which tools it was offered; give them as tools="
                return unscored(self.name, Space.ACTION, why)
            bad = [(each, why) for each in actions if (why := _problem(each, offered))]
            count += len(actions)
            steps[at.id] = 1.0 - len(bad) / len(actions)
            wrong += [[at.id, each.name, why] for each, why in bad]
        reward = 1.0 - len(wrong) / count if count else 1.0
        details = {"out_of_distribution": wrong} if wrong else {}
        items = {"out_of_distribution": float(len(wrong))}
        return signal(self.name, Space.ACTION, reward, steps, details, items)


def _recorded(node: RolloutNode) -> Mapping[str, Any] | None:
    for each in node.path:
        found: object = each.step.info.get("tools") if each.step else None
        if isinstance(found, list):
            tools = msgspec.convert(cast("list[object]", found), list[ToolSpec])
            return {tool.name: tool.parameters for tool in tools}
    return None


def _problem(action: Action, offered: Mapping[str, Any]) -> str | None:
    if action.name not in offered:
        return "there is no such tool"
    arguments = action.arguments
    if arguments is None:
        return "its arguments are no JSON object"
    return mismatch(arguments, offered[action.name])
