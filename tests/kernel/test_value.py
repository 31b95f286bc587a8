"""Values of states: the worked example exactly, what is left out, what is flagged, and bias."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import product

import pytest
from golden import PARENTS, RETURNS, A, B, agrees, worked
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reward import Granularity, RewardEvent
from ramify.contracts.tree import NodeStatus, Step, StepKind
from ramify.kernel.intervals import value_interval
from ramify.kernel.outline import Outline, leaf_returns, outline
from ramify.kernel.tree import Tree
from ramify.kernel.value import Estimator, mean_value, tree_values

F = Fraction

NUMBERS = pytest.mark.parametrize("number", [F, float])


@NUMBERS
def test_child_means_of_the_worked_example(number: type) -> None:
    values = worked(number)
    assert agrees(values.value[0], F(11, 24), number)
    assert agrees(values.value[A], F(2, 3), number)
    assert agrees(values.value[B], F(1, 4), number)
    assert agrees(values.variance[0], F(5, 24) ** 2, number)
    assert agrees(values.variance[A], F(1, 3) ** 2, number)
    assert math.isclose(values.at(0).se or 0, 5 / 24, rel_tol=1e-12)
    assert values.variance[B] is None, "nothing is known of the error of a single leaf"
    assert (values.at(0).n, values.at(0).leaves, values.at(A).n) == (2, 5, 3)
    assert not values.at(0).biased


@NUMBERS
def test_leaf_means_of_the_worked_example(number: type) -> None:
    assert agrees(worked(number, Estimator.LEAF_MEAN).value[0], F(3, 5), number)


def test_discount_and_rewards_of_edges() -> None:
    shape = Outline([-1, 0, 0, 1], rewards={1: F(1), 3: F(2)})
    values = tree_values(shape, {2: F(8), 3: F(4)}, discount=F(1, 2))
    assert values.value[1] == 2 + F(1, 2) * 4
    assert values.arrivals[1:3] == [1 + F(1, 2) * 4, F(1, 2) * 8]
    assert values.value[0] == F(7, 2)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**6), max_size=40),
    st.randoms(use_true_random=False),
    st.sampled_from(Estimator),
)
def test_one_pass_agrees_with_the_definition(
    shape: list[int], rng: random.Random, estimator: Estimator
) -> None:
    parents = [-1, *(pick % n for n, pick in enumerate(shape, 1))]
    children = Outline(parents).children()
    ends = [n for n in range(len(parents)) if not children[n] and n % 5 != 4]
    returns = {n: F(rng.randrange(-9, 10), 3) for n in ends}
    values = tree_values(Outline(parents), returns, estimator=estimator)

    def leaves(node: int) -> list[F]:
        if not children[node]:
            return [returns[node]] if node in returns else []
        return [r for child in children[node] for r in leaves(child)]

    def mean(node: int) -> F | None:
        if not children[node]:
            return returns.get(node)
        known = [v for child in children[node] if (v := mean(child)) is not None]
        return sum(known) / len(known) if known else None

    for node in range(len(parents)):
        below = leaves(node)
        assert values.at(node).leaves == len(below)
        if estimator is Estimator.LEAF_MEAN:
            assert values.value[node] == (sum(below) / len(below) if below else None)
        elif estimator is Estimator.CHILD_MEAN:
            assert values.value[node] == mean(node)
        if below and estimator is Estimator.BLUE:
            found = values.value[node]
            assert found is not None
            assert min(below) <= found <= max(below)
        if values.count[node] < 2:
            assert values.variance[node] is None, "one child says nothing of its error"


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=40), st.randoms(use_true_random=False))
def test_floats_agree_with_fractions(shape: list[int], rng: random.Random) -> None:
    parents = [-1, *(pick % n for n, pick in enumerate(shape, 1))]
    exact = {n: F(rng.randrange(-9, 10), 3) for n in set(range(len(parents))) - set(parents)}
    one = tree_values(Outline(parents), exact)
    two = tree_values(Outline(parents), {n: float(r) for n, r in exact.items()})
    for found, true in zip([*two.value, *two.variance], [*one.value, *one.variance], strict=True):
        assert (found is None) == (true is None)
        assert found is None or math.isclose(found, true or 0, rel_tol=1e-12, abs_tol=1e-12)


def test_what_was_never_scored_is_dropped_and_counted_and_never_zero() -> None:
    values = tree_values(Outline([-1, 0, 0, 0, 3, 3]), {1: 1.0, 2: 0.5})
    assert (values.value[0], values.at(0).n, values.at(0).dropped) == (0.75, 2, 2)
    assert (values.value[3], values.at(3).dropped, values.at(4).dropped) == (None, 2, 1)
    nothing = tree_values(Outline([-1, 0]), {})
    assert (nothing.value[0], nothing.at(0).se, nothing.at(0).dropped) == (None, None, 1)
    assert tree_values(Outline([-1]), {}).at(0).dropped == 1


def test_forced_continuations_are_left_out() -> None:
    values = tree_values(Outline([-1, 0, 0, 0, 1], forced={3, 4}), {1: 0.5, 2: 0.25, 3: 9, 4: 9})
    assert values.value[0] == 0.375
    assert (values.at(0).n, values.at(0).forced, values.at(0).leaves) == (2, 1, 2)
    assert values.value[1] == 0.5, "its own score stands, whatever came of going on from it"
    assert values.at(0).dropped == 0
    chosen = tree_values(Outline([-1, 0, 0], forced={1, 2}), {1: 1.0, 2: 1.0})
    assert (chosen.value[0], chosen.at(0).dropped, chosen.at(0).forced) == (None, 0, 2)


def test_options_count_by_their_priors_and_missing_ones_are_flagged() -> None:
    shape = [-1, 0, 0, 1, 1, 2, 2]
    known = tree_values(
        Outline(shape, {1: F(3, 4), 2: F(1, 4)}), dict.fromkeys((3, 4, 5), F(1)) | {6: F(0)}
    )
    assert known.value[0] == F(3, 4) + F(1, 4) * F(1, 2)
    assert known.variance[0] == F(1, 16) * F(1, 4), "the sum of q^2 SE^2"
    assert not known.at(0).assumed_priors
    assumed = tree_values(Outline([-1, 0, 0], {1: None, 2: None}), {1: F(1), 2: F(0)}).at(0)
    assert (assumed.value, assumed.assumed_priors) == (F(1, 2), True)
    partial = tree_values(Outline([-1, 0, 0], {1: F(3, 4), 2: F(1, 4)}), {2: F(1)}).at(0)
    assert (partial.value, partial.partial, partial.dropped) == (F(1), True, 1)
    mixed = tree_values(Outline([-1, 0, 0, 0], {1: 0.5, 2: 0.5}), {1: 1.0, 2: 0.0, 3: 1.0})
    assert (mixed.value[0], mixed.at(0).n, mixed.at(0).leaves) == (0.5, 2, 2)


def test_an_only_option_passes_its_error_on() -> None:
    values = tree_values(Outline([-1, 0, 1, 1], {1: 1.0}), {2: 1.0, 3: 0.0})
    assert (values.value[0], values.at(0).se) == (0.5, values.at(1).se)


def test_what_outcomes_decided_is_flagged_up_to_the_root_and_not_beside() -> None:
    shape = Outline([-1, 0, 0, 1, 1, 2, 2], outcome_dependent={4})
    values = tree_values(shape, dict.fromkeys((3, 4, 5, 6), 1.0))
    assert [values.at(node).biased for node in range(7)] == [True, True, *[False] * 5]
    assert values.biased()
    dropped = tree_values(shape, dict.fromkeys((3, 5, 6), 1.0))
    assert dropped.biased(), "that it was never scored does not undo the choice"
    left_out = Outline([-1, 0, 0], forced={2}, outcome_dependent={2})
    assert not tree_values(left_out, {1: 1.0, 2: 1.0}).biased()


def test_blue_gives_a_well_known_child_more() -> None:
    parents, returns = [-1, 0], dict[int, float]()
    for n in range(12):
        parents.append(1)
        returns[len(parents) - 1] = float(n % 2)
    for _ in range(3):
        parents.append(0)
        returns[len(parents) - 1] = 1.0
    returns[len(parents) - 1] = 0.0
    shape = Outline(parents)
    blue = tree_values(shape, returns, estimator=Estimator.BLUE)
    plain = tree_values(shape, returns)
    assert plain.value[0] == pytest.approx((0.5 + 2) / 4)
    assert 0.5 < (blue.value[0] or 0) < (plain.value[0] or 0)
    assert (blue.at(0).se or 9) < (plain.at(0).se or 0)
    assert worked(float, Estimator.BLUE).value[A] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(InvalidRewardError, match="node 1"):
        tree_values(Outline([-1, 0]), {1: bad})
    with pytest.raises(InvalidRewardError, match="step to node 1"):
        Outline([-1, 0], rewards={1: bad})
    with pytest.raises(ValueError, match="prior of node 1"):
        Outline([-1, 0], {1: bad})
    with pytest.raises(ValueError, match="discount"):
        tree_values(Outline([-1, 0]), {1: 1.0}, discount=bad)


def test_trees_out_of_order_and_priors_above_one_are_refused() -> None:
    for parents in ([], [0], [-1, 2, 0], [-1, 1], [-1, -1]):
        with pytest.raises(ValueError, match=r"parent|root"):
            Outline(parents)
    with pytest.raises(ValueError, match="node 0 add up to 1.5"):
        tree_values(Outline([-1, 0, 0], {1: 0.75, 2: 0.75}), {1: 1.0, 2: 1.0})


def recorded() -> Tree:
    """Five leaves: scored, invalid, never scored twice, and without any score."""
    tree = Tree()
    for kind in (StepKind.SAMPLED, StepKind.SAMPLED, StepKind.FORCED, StepKind.ENUMERATED):
        tree.add(0, Step(kind=kind, prior=1.0 if kind is StepKind.ENUMERATED else None))
    tree.add(0, Step(outcome_dependent=True))
    return tree


def test_returns_are_read_from_a_recorded_tree() -> None:
    tree = recorded()
    shape = outline(tree)
    assert (shape.enumerated, shape.forced, shape.outcome_dependent) == ({4: 1.0}, {3}, {5})
    scored = [RewardEvent("reward", 0.25), RewardEvent("style", 0.9), RewardEvent("reward", 0.5)]
    scored.append(RewardEvent("reward", 7.0, granularity=Granularity.STEP))
    for node in range(1, 6):
        for event in scored:
            tree.reward(node, event)
    for node, status in enumerate(
        (NodeStatus.SCORED, NodeStatus.INVALID, NodeStatus.INFRA_ERROR, NodeStatus.ENV_ERROR), 1
    ):
        tree.settle(node, status)
    tree.reward(2, RewardEvent("reward", -1.0))
    assert leaf_returns(tree) == {1: 0.5, 2: -1.0}, "5 is open, 3 and 4 failed on our side"
    tree.settle(5, NodeStatus.AGENT_TIMEOUT)
    assert leaf_returns(tree)[5] == 0.5


# Bias, by going through everything that can happen.

HALF = F(1, 2)


def test_a_plan_that_does_not_look_at_outcomes_has_no_bias() -> None:
    """Two draws (p = 1/3), the first of which, by depth alone, is branched into 1, 2 or 3."""
    p = F(1, 3)
    for width in (1, 2, 3):
        expected: dict[Estimator, F] = dict.fromkeys(Estimator, F(0))
        for first in product((0, 1), repeat=2):
            for last in product((0, 1), repeat=width + 1):
                chance = math.prod(p if x else 1 - p for x in (*first, *last))
                parents = [-1, 0, 0, *[1] * width, 2]
                success = [first[0] & x for x in last[:width]] + [first[1] & last[-1]]
                returns = {3 + n: F(x) for n, x in enumerate(success)}
                values = tree_values(Outline(parents), returns)
                assert not values.biased()
                assert values.value[0] is not None
                expected[Estimator.CHILD_MEAN] += chance * values.value[0]
        assert expected[Estimator.CHILD_MEAN] == p * p


def test_a_second_chance_after_a_failure_is_biased_and_says_so() -> None:
    expected = F(0)
    for first in (0, 1):
        for second in (0, 1):
            if first:
                values = tree_values(Outline([-1, 0], outcome_dependent={1}), {1: F(1)})
            else:
                shape = Outline([-1, 0, 0], outcome_dependent={1, 2})
                values = tree_values(shape, {1: F(0), 2: F(second)})
            assert values.at(0).biased
            assert values.value[0] is not None
            expected += HALF * HALF * values.value[0]
    assert expected == F(5, 8)


def test_stopping_at_the_first_success_tends_to_the_logarithm_of_two() -> None:
    expected = F(0)
    for tries in range(1, 60):
        shape = Outline([-1] + [0] * tries, outcome_dependent=set(range(1, tries + 1)))
        values = tree_values(shape, {n: F(n == tries) for n in range(1, tries + 1)})
        assert values.biased()
        expected += HALF**tries * (values.value[0] or 0)
    assert math.isclose(expected, math.log(2), rel_tol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = random.Random(4)
    shape = Outline([-1] + [0] * 8 + [n for n in range(1, 9) for _ in range(2)])
    covered = 0
    for _ in range(10_000):
        returns: dict[int, float] = {}
        for child in range(8):
            state = rng.gauss(0.3, 1)
            for leaf in (9 + 2 * child, 10 + 2 * child):
                returns[leaf] = state + rng.gauss(0, 2)
        low, high = value_interval(tree_values(shape, returns)) or (9, 9)
        covered += low <= 0.3 <= high
    assert 9300 <= covered <= 9700, covered


def test_intervals_through_options_and_where_nothing_is_known() -> None:
    shape = Outline([-1, 0, 0, *[1] * 8, *[2] * 8], {1: 0.5, 2: 0.5})
    returns = {n: float(n % 3) for n in range(3, 19)}
    values = tree_values(shape, returns)
    low, high = value_interval(values) or (0, 0)
    assert low < (values.value[0] or 0) < high
    assert value_interval(values, 3) is None
    assert value_interval(tree_values(Outline([-1, 0]), {})) is None


def test_a_task_is_worth_the_mean_of_its_trees() -> None:
    trees = [tree_values(Outline(PARENTS), RETURNS), tree_values(Outline([-1, 0]), {1: F(0)})]
    found = mean_value([*trees, tree_values(Outline([-1, 0]), {})])
    assert trees[0].value[0] == F(7, 12)
    assert (found.value, found.n, found.leaves, found.dropped) == (F(7, 24), 2, 6, 1)
    assert found.se == pytest.approx(7 / 24)
    assert mean_value(trees[:1]).se is None
