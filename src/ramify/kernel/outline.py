"""What a value is computed from: the shape of a tree and the returns of its leaves, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite
from operator import lt

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reward import Granularity
from ramify.contracts.tree import NodeStatus, Outcome, StepKind
from ramify.kernel.tree import Tree

Number = float | Fraction
"""Estimates are exact where they are given fractions, and floats where they are given floats."""

_REWARD = "reward"
_NEVER_SCORED = frozenset(
    NodeStatus(outcome.value) for outcome in Outcome if not outcome.counts
) | {NodeStatus.OPEN}


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of a tree. What is said of an edge is kept under the node that it leads to.

    Attributes:
        parents: of each node; -1 for node 0, the root. A parent precedes its children.
        enumerated: edges that are one of a finite set of options → prior (None: not known).
        forced: edges that somebody chose; left out of every estimate.
        outcome_dependent: edges that exist because of what came of others.
        rewards: of edges, where there are any.

    Raises:
        ValueError: the parents are not in order, or a prior is no probability.
        InvalidRewardError: the reward of an edge is not finite.
    """

    parents: Sequence[int]
    enumerated: Mapping[int, Number | None] = field(default_factory=dict[int, "Number | None"])
    forced: Set[int] = frozenset()
    outcome_dependent: Set[int] = frozenset()
    rewards: Mapping[int, Number] = field(default_factory=dict[int, Number])

    def __post_init__(self) -> None:
        parents = self.parents
        if not parents or parents[0] != -1 or min(parents[1:], default=0) < 0:
            raise ValueError("a tree has one root, node 0, whose parent is -1")
        if not all(map(lt, parents, range(len(parents)))):
            raise ValueError("a parent must come before its children")
        for node, prior in self.enumerated.items():
            if prior is not None and not (isfinite(prior) and 0 <= prior <= 1):
                raise ValueError(f"the prior of node {node} is {prior}; it must be within 0 and 1")
        check_finite(self.rewards, "the reward of the step to node")

    def __len__(self) -> int:
        return len(self.parents)

    def children(self) -> list[list[int]]:
        """Ids of the children of each node, oldest first."""
        found: list[list[int]] = [[] for _ in self.parents]
        for node in range(1, len(self.parents)):
            found[self.parents[node]].append(node)
        return found

    def path(self, node: int) -> list[int]:
        """Ids from the root to a node, both included."""
        ids = [node]
        while (parent := self.parents[ids[-1]]) >= 0:
            ids.append(parent)
        return ids[::-1]


def outline(tree: Tree) -> Outline:
    """The outline of a recorded tree. Only leaves carry rewards there, so no edge has one."""
    parents = [-1]
    enumerated: dict[int, Number | None] = {}
    forced: set[int] = set()
    outcome_dependent: set[int] = set()
    for node in range(1, len(tree)):
        parents.append(tree.parent(node) or 0)
        step = tree.step(node)
        if step is None:
            continue
        if step.kind is StepKind.ENUMERATED:
            enumerated[node] = step.prior
        elif step.kind is StepKind.FORCED:
            forced.add(node)
        if step.outcome_dependent:
            outcome_dependent.add(node)
    return Outline(parents, enumerated, forced, outcome_dependent)


def leaf_returns(tree: Tree) -> dict[int, float]:
    """The return of each scored end in a recorded tree: its last terminal signal named `reward`.

    An end that was never scored (open, cancelled, failed world or machine) is not in it: that is
    never 0. For an `invalid` one the least reward of its task is recorded. An inner node that was
    scored before somebody went on from it keeps its own score.
    """
    found: dict[int, float] = {}
    for node in range(len(tree)):
        if tree.status(node) not in _NEVER_SCORED:
            for event in tree.rewards(node):
                if event.name == _REWARD and event.granularity is Granularity.TERMINAL:
                    found[node] = event.value
    return found


def check_finite(numbers: Mapping[int, Number], what: str) -> None:
    """Raises InvalidRewardError for NaN and infinities."""
    if not all(map(isfinite, numbers.values())):
        bad = next(node for node, number in numbers.items() if not isfinite(number))
        raise InvalidRewardError("malformed", f"{what} {bad} is {numbers[bad]}; it must be finite")
