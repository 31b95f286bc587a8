"""A trajectory is one root-to-leaf path: derived from the tree, never declared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce
from operator import add

from ramify.contracts.messages import Message, Usage
from ramify.contracts.plain import encoded
from ramify.contracts.reward import RewardEvent
from ramify.contracts.tree import NodeStatus, Step
from ramify.kernel.tree import Tree


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One path through a tree, as a trainer or a person reads it.

    Attributes:
        leaf: id of the leaf; the path is a pure function of the tree and this id.
        prompt: what opened the conversation.
        steps: the edges, in order.
        status: status of the leaf.
        rewards: signals on the leaf.
    """

    leaf: int
    prompt: tuple[Message, ...]
    steps: tuple[Step, ...]
    status: NodeStatus
    rewards: tuple[RewardEvent, ...]

    @property
    def completion(self) -> tuple[Message, ...]:
        """Every message after the prompt, in order."""
        return tuple(message for step in self.steps for message in step.messages)

    @property
    def usage(self) -> Usage:
        """Tokens and cost over all steps."""
        return reduce(add, (step.usage for step in self.steps if step.usage), Usage())


def trajectory(tree: Tree, leaf: int) -> Trajectory:
    """The path from the root to `leaf`."""
    steps = tuple(step for node in tree.path(leaf) if (step := tree.step(node)) is not None)
    return Trajectory(leaf, tree.opening, steps, tree.status(leaf), tuple(tree.rewards(leaf)))


def trajectories(tree: Tree) -> list[Trajectory]:
    """All root-to-leaf paths, by leaf id."""
    return [trajectory(tree, leaf) for leaf in tree.leaves()]


def tree_usage(tree: Tree) -> Usage:
    """Tokens and cost of a whole tree, each step counted once."""
    steps = (tree.step(node) for node in range(1, len(tree)))
    return reduce(add, (step.usage for step in steps if step and step.usage), Usage())


def trajectory_hash(tree: Tree) -> str:
    """Identifies what was said and done in a tree, whatever it cost in time.

    Equal seeds on different executors must give equal hashes, so timings and measurements
    (`Step.info`, `usage`) are left out, and nodes count in the order of the tree, oldest child
    first: branches that run side by side get their ids in any order.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(encoded(tree.opening))
    places = {0: 0}
    queue = tree.children(0)[::-1]
    while queue:
        node = queue.pop()
        parent, step = tree.parent(node), tree.step(node)
        places[node] = len(places)
        if parent is not None and step is not None:
            content = (places[parent], step.kind, step.action, step.role, step.messages)
            digest.update(encoded(content))
        queue.extend(tree.children(node)[::-1])
    return digest.hexdigest()
