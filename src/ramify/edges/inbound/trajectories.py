"""Trajectories that were recorded elsewhere, or exported by us: one JSON object per line.

Three forms are read. The linear record of the `verifiers` library (`prompt`, `completion`), our
tree record (`prompt`, `nodes`), and a plain `{"messages": [...]}`. What is known of the task may
stand beside: `task_id` (or `task`, a text), `answer`, `info` (an object). Other fields are ignored,
but for `reward`, which is the reward that it was recorded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.messages import Message
from ramify.contracts.task import RESERVED_KEYS, Task, Taskset
from ramify.contracts.tree import NodeStatus, Outcome, Step, StepKind
from ramify.edges.inbound.messages import foreign_messages
from ramify.envs.monitor import Trajectories
from ramify.envs.tail import Line
from ramify.kernel.tree import Tree

_NEVER_SCORED = {outcome.value for outcome in Outcome if not outcome.counts} | {"open", "inner"}


@dataclass(frozen=True, slots=True)
class TrajectoryReader:
    """Reads lines. With a taskset, a task of that id is taken from there."""

    taskset: Taskset | None = None

    def read(self, line: Line) -> Trajectories:
        """What one line holds.

        Raises: ValueError (no JSON object, or none of the forms), UsageError.
        """
        found: object = msgspec.json.decode(line.content)
        if not isinstance(found, dict):
            raise ValueError(f"it is {type(found).__name__}, not an object")
        record = cast("dict[str, Any]", found)
        if "nodes" in record:
            return self._tree(record, line.number)
        if "completion" in record:
            return self._linear(record, line.number)
        if "messages" in record:
            return self._plain(record, line.number)
        raise ValueError("it has none of `messages`, `completion` and `nodes`")

    def _plain(self, record: dict[str, Any], number: int) -> Trajectories:
        messages = foreign_messages(record["messages"], "assistant")
        if not messages:
            raise ValueError("it has no message")
        first = next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))
        return self._path(record, number, messages[:first], messages[first:])

    def _linear(self, record: dict[str, Any], number: int) -> Trajectories:
        prompt = foreign_messages(record.get("prompt"), "user")
        completion = foreign_messages(record["completion"], "assistant")
        return self._path(record, number, prompt, completion)

    def _path(
        self,
        record: dict[str, Any],
        number: int,
        prompt: tuple[Message, ...],
        completion: tuple[Message, ...],
    ) -> Trajectories:
        tree = Tree(prompt)
        for messages in _steps(completion):
            tree.add(len(tree) - 1, Step(messages, action=_action(messages)))
        leaf = len(tree) - 1
        ended = record.get("stop_condition")
        leaf_id = record.get("leaf_id")
        reward = _number(record.get("reward"))
        return Trajectories(
            task=self._task(record, number, prompt),
            tree=tree,
            leaves=[leaf],
            tree_id=_name(record),
            ids={leaf: leaf_id} if isinstance(leaf_id, int) else {},
            skipped={leaf: str(ended)} if ended in _NEVER_SCORED else {},
            recorded={} if reward is None else {leaf: reward},
        )

    def _tree(self, record: dict[str, Any], number: int) -> Trajectories:
        prompt = foreign_messages(record.get("prompt"), "user")
        tree = Tree(prompt)
        given: object = record["nodes"]
        if not isinstance(given, list) or not given:
            raise ValueError("`nodes` is no list of nodes")
        nodes = [_node(index, one) for index, one in enumerate(cast("list[object]", given))]
        for index, node in enumerate(nodes[1:], 1):
            parent = node.get("parent")
            if not isinstance(parent, int) or not 0 <= parent < index:
                raise ValueError(f"node {index} has the parent {parent!r}, which is not before it")
            tree.add(parent, _step(node))
        leaves = list(tree.leaves())
        statuses = {leaf: str(nodes[leaf].get("status", "scored")) for leaf in leaves}
        for leaf, status in statuses.items():
            if status in tuple(NodeStatus):
                tree.settle(leaf, NodeStatus(status))
        rewards = {leaf: _number(nodes[leaf].get("reward")) for leaf in leaves}
        return Trajectories(
            task=self._task(record, number, prompt),
            tree=tree,
            leaves=leaves,
            tree_id=_name(record),
            skipped={leaf: word for leaf, word in statuses.items() if word in _NEVER_SCORED},
            recorded={leaf: reward for leaf, reward in rewards.items() if reward is not None},
        )

    def _task(self, record: dict[str, Any], number: int, prompt: Sequence[Message]) -> Task:
        task_id = _task_id(record, number)
        if self.taskset is not None:
            try:
                return self.taskset.get_task(task_id)
            except UsageError:
                pass  # it is of another set: what the line says of it is left
        info: object = record.get("info")
        known = cast("dict[str, Any]", info) if isinstance(info, dict) else {}
        return Task(
            task_id,
            input=next((message.content for message in prompt if message.role == "user"), ""),
            target=record.get("answer"),
            metadata={key: value for key, value in known.items() if key not in RESERVED_KEYS},
        )


def _task_id(record: dict[str, Any], number: int) -> str:
    given = record.get("task_id", record.get("task"))
    if isinstance(given, str) and given.strip():
        for text in (given, f"stream:{given}"):
            try:
                Task.parse_task_id(text)
            except ConfigError:
                continue
            return text
    return f"stream:line-{number}"


def _name(record: dict[str, Any]) -> str:
    for key in ("tree_id", "rollout_id", "id"):
        if isinstance(name := record.get(key), str | int):
            return str(name)
    return ""


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def _node(index: int, node: object) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ValueError(f"node {index} is no object")
    found = cast("dict[str, Any]", node)
    if found.get("node", index) != index:
        raise ValueError(f"node {index} has the number {found.get('node')!r}")
    return found


def _step(node: dict[str, Any]) -> Step:
    messages = foreign_messages(node.get("messages"), "assistant")
    kind, prior = node.get("kind"), node.get("prior")
    return Step(
        messages,
        action=str(node.get("action") or _action(messages)),
        kind=StepKind(kind) if kind in tuple(StepKind) else StepKind.SAMPLED,
        role=str(node.get("role", "agent")),
        prior=_number(prior),
        branch_reason=str(node["branch_reason"]) if node.get("branch_reason") else None,
    )


def _steps(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """A step begins with what the policy says; what its tools and its user answer belongs to it."""
    steps: list[list[Message]] = []
    for message in messages:
        if message.role == "assistant" or not steps:
            steps.append([])
        steps[-1].append(message)
    return [tuple(step) for step in steps]


def _action(messages: Sequence[Message]) -> str:
    """The tools that a step calls, for people."""
    return ", ".join(call.name for message in messages for call in message.tool_calls)
