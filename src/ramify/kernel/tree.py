"""A rollout's tree in flat arrays: ids are append-ordered, so a parent precedes its children.

Structure costs 17 bytes a node (parent, depth, last child, previous sibling, status) and a
reference to the step, whose payload is shared, never copied.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ramify.contracts.errors import StoreError
from ramify.contracts.events import AnyEvent, CheckpointEvent, NodeEvent, RewardGiven, StatusEvent
from ramify.contracts.messages import Message
from ramify.contracts.reward import Granularity, RewardEvent, Space
from ramify.contracts.tree import NodeStatus, Step

_STATUSES = tuple(NodeStatus)
_CODE = {status: code for code, status in enumerate(_STATUSES)}
_NONE = -1


class Tree:
    """Nodes, the steps between them, and what is known about each.

    Args:
        messages: what opens the conversation; it belongs to the root (id 0).
    """

    __slots__ = (
        "_depth",
        "_last_child",
        "_older_sibling",
        "_parent",
        "_rewards",
        "_states",
        "_status",
        "_steps",
        "opening",
    )

    def __init__(self, messages: tuple[Message, ...] = ()) -> None:
        self.opening = messages
        self._parent = array("i", [_NONE])
        self._depth = array("I", [0])
        self._last_child = array("i", [_NONE])
        self._older_sibling = array("i", [_NONE])
        self._status = bytearray([_CODE[NodeStatus.OPEN]])
        self._steps: list[Step | None] = [None]
        self._states: dict[int, str] = {}
        self._rewards: dict[int, list[RewardEvent]] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, parent: int, step: Step) -> int:
        """Append a child of `parent`; returns its id. The parent becomes an inner node."""
        if not 0 <= parent < len(self):
            raise IndexError(f"no node {parent} in a tree of {len(self)}")
        node = len(self)
        self._parent.append(parent)
        self._depth.append(self._depth[parent] + 1)
        self._last_child.append(_NONE)
        self._older_sibling.append(self._last_child[parent])
        self._last_child[parent] = node
        self._status.append(_CODE[NodeStatus.OPEN])
        self._steps.append(step)
        if self.status(parent) is NodeStatus.OPEN:
            self.settle(parent, NodeStatus.INNER)
        return node

    def settle(self, node: int, status: NodeStatus) -> None:
        """Set what is known about a node."""
        self._status[node] = _CODE[status]

    def reward(self, node: int, event: RewardEvent) -> None:
        """Attach a signal to a node."""
        self._rewards.setdefault(node, []).append(event)

    def set_state(self, node: int, reference: str) -> None:
        """Attach the reference of a snapshot of the world to a node."""
        self._states[node] = reference

    def parent(self, node: int) -> int | None:
        """Id of the parent; None at the root."""
        parent = self._parent[node]
        return None if parent == _NONE else parent

    def children(self, node: int) -> list[int]:
        """Ids of the children, oldest first."""
        found: list[int] = []
        child = self._last_child[node]
        while child != _NONE:
            found.append(child)
            child = self._older_sibling[child]
        return found[::-1]

    def depth(self, node: int) -> int:
        """Number of steps from the root."""
        return self._depth[node]

    def status(self, node: int) -> NodeStatus:
        """What is known about a node."""
        return _STATUSES[self._status[node]]

    def step(self, node: int) -> Step | None:
        """The step that led to a node; None at the root."""
        return self._steps[node]

    def state(self, node: int) -> str | None:
        """Reference to the snapshot at a node, if one was taken."""
        return self._states.get(node)

    def rewards(self, node: int) -> Sequence[RewardEvent]:
        """Signals on a node, in the order they were given."""
        return tuple(self._rewards.get(node, ()))

    def leaves(self) -> Iterator[int]:
        """Ids of all nodes without children, in id order."""
        return (node for node in range(len(self)) if self._last_child[node] == _NONE)

    def path(self, node: int) -> list[int]:
        """Ids from the root to a node, both included."""
        ids = [node]
        while (parent := self._parent[ids[-1]]) != _NONE:
            ids.append(parent)
        return ids[::-1]

    def subtree(self, node: int) -> list[int]:
        """Ids of a node and all below it, in id order."""
        inside = {node}
        for candidate in range(node + 1, len(self)):
            if self._parent[candidate] in inside:
                inside.add(candidate)
        return sorted(inside)

    def node(self, node: int) -> TreeNode:
        """A node seen with its context, as a reward is given it."""
        if not 0 <= node < len(self):
            raise IndexError(f"no node {node} in a tree of {len(self)}")
        return TreeNode(self, node)


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A view of one node: implements `contracts.tree.RolloutNode`. Holds no state of its own."""

    tree: Tree
    id: int

    @property
    def depth(self) -> int:
        """Number of steps from the root."""
        return self.tree.depth(self.id)

    @property
    def status(self) -> NodeStatus:
        """What is known about it."""
        return self.tree.status(self.id)

    @property
    def step(self) -> Step | None:
        """The step that led here."""
        return self.tree.step(self.id)

    @property
    def path(self) -> Sequence[TreeNode]:
        """Root to this node."""
        return [TreeNode(self.tree, node) for node in self.tree.path(self.id)]

    @property
    def subtree(self) -> Sequence[TreeNode]:
        """This node and all below it."""
        return [TreeNode(self.tree, node) for node in self.tree.subtree(self.id)]

    @property
    def messages(self) -> Sequence[Message]:
        """The whole conversation up to here."""
        found = list(self.tree.opening)
        for node in self.tree.path(self.id):
            step = self.tree.step(node)
            found.extend(step.messages if step else ())
        return found

    @property
    def state(self) -> str | None:
        """Reference to the snapshot at this node."""
        return self.tree.state(self.id)


def tree_from_events(events: Iterable[AnyEvent]) -> Tree:
    """Rebuild one rollout's tree from the events of its accepted attempt.

    Raises:
        StoreError: a node is missing or out of order, so the record is not whole.
    """
    tree = Tree()
    for event in events:
        match event:
            case NodeEvent(node=0, messages=messages):
                tree.opening = messages
            case NodeEvent(node=node, parent=parent, step=Step() as step):
                if node != len(tree) or not 0 <= parent < node:
                    raise StoreError(
                        f"rollout {event.rollout_id}: node {node} (parent {parent}) does not "
                        f"follow the {len(tree)} nodes before it; the event log is not whole"
                    )
                tree.add(parent, step)
            case StatusEvent(node=node, status=status) if node < len(tree):
                tree.settle(node, status)
            case CheckpointEvent(node=node, snapshot=snapshot) if node < len(tree):
                tree.set_state(node, snapshot)
            case RewardGiven(node=node) if node < len(tree):
                tree.reward(
                    node,
                    RewardEvent(
                        event.name, event.value, Space(event.space), Granularity(event.granularity)
                    ),
                )
            case _:
                pass
    return tree
