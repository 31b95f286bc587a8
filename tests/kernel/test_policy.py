"""Where rollouts branch: what each form of `--branch` means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import UsageError
from ramify.contracts.messages import TokenSpan
from ramify.contracts.tree import Step
from ramify.kernel.policy import (
    AtSteps,
    AtSurprise,
    Fork,
    Keep,
    PilotTree,
    Point,
    ValuePoints,
    parse_branch,
)


def test_forms() -> None:
    assert parse_branch("group:8@step:3") == AtSteps({3: 8}, "group")
    assert parse_branch("depth:8,16x2") == AtSteps({8: 2, 16: 2}, "depth")
    assert parse_branch("depth:2x3,5x4") == AtSteps({2: 3, 5: 4}, "depth")
    assert parse_branch("depth:4") == AtSteps({4: 2}, "depth")
    assert parse_branch("values:8x4") == ValuePoints(8, 4)
    assert parse_branch("entropy:2x3") == AtSurprise(2, 3, 0.2)
    assert parse_branch("entropy:2x3@0.5") == AtSurprise(2, 3, 0.5)


@given(st.text(max_size=30))
def test_anything_else_is_one_clear_error(text: str) -> None:
    if not text.startswith(("group:", "depth:", "values:", "entropy:")):
        with pytest.raises(UsageError, match="--branch"):
            parse_branch(text)


@given(st.integers(1, 12), st.integers(0, 40))
def test_places_are_spread_over_the_path_and_never_its_end(states: int, length: int) -> None:
    kept = [Point(node, node) for node in range(length + 1)]
    chosen = ValuePoints(states, 2).after(kept)
    places = [index for index, _ in chosen]
    assert places == sorted(set(places))
    assert len(places) == min(states, max(length, 1))
    if length:
        assert places[0] == 0
        assert places[-1] < length
    assert all(fork.width == 2 for _, fork in chosen)


def surprised(*nats: float) -> list[Step]:
    return [Step(tokens=TokenSpan((1, 2), (-n, -n))) for n in nats]


def test_surprise_is_held_against_the_first_step() -> None:
    policy = AtSurprise(width=3, most=2, rise=0.5)
    calm = Point(2, 2, 0, surprised(0.4, 0.7))
    startled = Point(2, 2, 0, surprised(0.4, 1.0))
    assert policy.at(Point(0, 0)) is None
    assert policy.at(calm) is None
    assert policy.at(startled) == Fork(3, "entropy@2")
    assert policy.at(Point(2, 2, 2, surprised(0.4, 1.0))) is None, "twice on a path at most"


def test_surprise_needs_log_probabilities() -> None:
    with pytest.raises(UsageError, match="log-probabilities"):
        AtSurprise(2, 1, 0.2).at(Point(1, 1, 0, [Step()]))
    told = [Step(info={"logprobs": [-0.1]}), Step(info={"logprobs": [-0.9]})]
    assert AtSurprise(2, 1, 0.2).at(Point(2, 2, 0, told)) == Fork(2, "entropy@2")


def test_a_pilot_doubles_at_half_and_three_quarters() -> None:
    policy = PilotTree()
    assert isinstance(policy.at(Point(0, 0)), Keep)
    kept = [Point(node, node) for node in range(9)]
    assert [(index, fork.width) for index, fork in policy.after(kept)] == [(4, 1), (6, 1)]
    assert policy.at(Point(20, 6, branches=1)) == Fork(2, "pilot")
    assert policy.at(Point(20, 5, branches=1)) is None
    assert policy.at(Point(20, 6, branches=2)) is None


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_pilot_of_a_short_rollout(length: int) -> None:
    policy = PilotTree()
    chosen = policy.after([Point(node, node) for node in range(length + 1)])
    assert all(0 <= index < length for index, _ in chosen)
