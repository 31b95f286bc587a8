"""The tree: append-ordered, whole, small, and rebuilt from its events as it was."""

from __future__ import annotations

import itertools
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import StoreError
from ramify.contracts.events import NodeEvent
from ramify.contracts.messages import Message
from ramify.contracts.reward import Granularity, RewardEvent, Space
from ramify.contracts.tree import NodeStatus, Step
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.trajectory import trajectory, trajectory_hash
from ramify.kernel.tree import Tree, tree_from_events
from ramify.testing.fakecontext import FakeClock, FakeObserver

shapes = st.lists(st.integers(0, 10**6), max_size=60)
"""For each new node a number that picks its parent among those there are."""
OPENING = (Message("user", "Do it."),)


def step(number: int) -> Step:
    return Step((Message("assistant", f"said {number}"),), action=f"do {number}")


def grown(shape: list[int]) -> tuple[Tree, list[int]]:
    """A tree of that shape, and each node's parent as a plain list."""
    tree, parents = Tree(OPENING), [-1]
    for number, pick in enumerate(shape, start=1):
        parent = pick % number
        assert tree.add(parent, step(number)) == number
        parents.append(parent)
    return tree, parents


@given(shapes)
def test_structure_agrees_with_a_plain_list_of_parents(shape: list[int]) -> None:
    tree, parents = grown(shape)
    count = len(parents)
    assert len(tree) == count
    for node in range(count):
        own = parents[node]
        assert tree.parent(node) == (None if own < 0 else own)
        children = [n for n in range(count) if parents[n] == node]
        assert tree.children(node) == children
        assert (tree.status(node) is NodeStatus.OPEN) == (not children)
        assert tree.depth(node) == (0 if own < 0 else tree.depth(own) + 1)
        path = tree.path(node)
        assert path[0] == 0
        assert path[-1] == node
        assert all(parents[b] == a for a, b in itertools.pairwise(path)), "parents come first"
        below = [n for n in range(count) if node in tree.path(n)]
        assert tree.subtree(node) == below
    assert list(tree.leaves()) == [n for n in range(count) if n not in parents]


@given(shapes)
def test_a_node_sees_its_context(shape: list[int]) -> None:
    tree, _ = grown(shape)
    node = tree.node(len(tree) - 1)
    said = [message.content for message in node.messages]
    assert said == ["Do it.", *(f"said {n}" for n in tree.path(node.id)[1:])]
    assert [n.id for n in node.path] == tree.path(node.id)
    assert [n.id for n in node.subtree] == [node.id]
    assert node.depth == len(node.path) - 1


statuses = st.sampled_from([s for s in NodeStatus if s not in (NodeStatus.OPEN, NodeStatus.INNER)])
rewards = st.builds(
    RewardEvent,
    st.sampled_from(["reward", "style"]),
    st.floats(-1, 1),
    st.sampled_from(list(Space)),
    st.sampled_from(list(Granularity)),
)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.lists(rewards, max_size=3), statuses)))
async def test_the_recorder_and_its_events_tell_the_same_tree(
    script: list[tuple[int, list[RewardEvent], NodeStatus]],
) -> None:
    observer = FakeObserver()
    recorder = TreeRecorder("r", observer, FakeClock())
    await recorder.prompt(OPENING)
    for number, (pick, given_rewards, status) in enumerate(script, start=1):
        recorder.current = pick % number
        await recorder.step(step(number))
        for event in given_rewards:
            recorder.reward(event)
        recorder.settle(status)
    built, rebuilt = recorder.tree, tree_from_events(observer.events)
    assert rebuilt.opening == built.opening == OPENING
    assert len(rebuilt) == len(built)
    for node in range(len(built)):
        assert rebuilt.parent(node) == built.parent(node)
        assert rebuilt.step(node) == built.step(node)
        assert rebuilt.rewards(node) == built.rewards(node)
        assert rebuilt.status(node) == built.status(node)
    assert trajectory_hash(rebuilt) == trajectory_hash(built)


@pytest.mark.parametrize("missing", range(1, 4))
def test_a_record_with_a_hole_is_refused(missing: int) -> None:
    events = [NodeEvent("r", 0.0, 0, -1, None, OPENING)]
    events += [NodeEvent("r", 0.0, node, node - 1, step(node)) for node in range(1, 5)]
    del events[missing]
    with pytest.raises(StoreError, match="not whole"):
        tree_from_events(events)


def test_a_node_that_is_not_there() -> None:
    tree = Tree()
    with pytest.raises(IndexError):
        tree.add(1, step(1))
    with pytest.raises(IndexError):
        tree.add(-1, step(1))
    with pytest.raises(IndexError):
        tree.node(1)


def test_a_trajectory_is_derived_from_tree_and_leaf() -> None:
    tree, _ = grown([0, 1, 1])
    tree.settle(3, NodeStatus.SCORED)
    tree.reward(3, RewardEvent("reward", 1.0))
    path = trajectory(tree, 3)
    assert path.prompt == OPENING
    assert [s.action for s in path.steps] == ["do 1", "do 3"]
    assert [m.content for m in path.completion] == ["said 1", "said 3"]
    assert path.status is NodeStatus.SCORED
    assert [event.value for event in path.rewards] == [1.0]


def test_structure_costs_at_most_64_bytes_a_node() -> None:
    """Measured on the arrays themselves, over-allocation and the pointer to the step included."""
    count, shared, tree = 100_000, step(1), Tree()
    for node in range(count):
        tree.add(node // 2, shared)
    fields = [getattr(tree, name) for name in Tree.__slots__]
    sizes = [sys.getsizeof(f) for f in fields if isinstance(f, array | bytearray | list | dict)]
    assert len(sizes) >= 7, "the structure is not where this test looks for it"
    assert sum(sizes) / count <= 64
