"""Credit: golden values, exact properties, and what systems of these names compute."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from golden import LEAVES, A, B, agrees, worked
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import UnknownNameError
from ramify.kernel.credit import (
    forest_advantages,
    gae,
    node_advantages,
    preference_pairs,
    segment_advantages,
    treerl_advantages,
    vine_advantages,
)
from ramify.kernel.groups import dr_grpo, grpo, maxrl, rloo, tree_grpo
from ramify.kernel.outline import Outline
from ramify.kernel.schemes import SCHEMES, assign_credit
from ramify.kernel.value import Estimator, Values, tree_values

F = Fraction

NUMBERS = pytest.mark.parametrize("number", [F, float])
FLAT = [F(1), F(1), F(0), F(0), F(1)]


@NUMBERS
def test_leave_one_out_on_the_worked_example(number: type) -> None:
    found = node_advantages(worked(number))
    exact = {A: F(5, 12), B: F(-5, 12), 3: F(1, 2), 4: F(1, 2), 5: F(-1), 6: F(-2, 3), 7: F(1, 3)}
    for node, advantage in exact.items():
        assert agrees(found[node], advantage, number), node
    assert found[0] == 0


@NUMBERS
def test_gae_is_the_same_for_every_lambda(number: type) -> None:
    for lam in (F(0), F(1, 3), F(1)):
        found = gae(worked(number), number(lam))
        assert agrees(found[A], F(5, 24), number)
        assert agrees(found[3], F(1, 3), number)


def test_treerl_on_the_worked_example() -> None:
    found = treerl_advantages(worked(F, Estimator.LEAF_MEAN))
    assert found[A] == pytest.approx(2 / 15 / math.sqrt(3), abs=1e-12)
    assert found[A] == pytest.approx(0.0769800, abs=1e-7)
    with pytest.raises(ValueError, match="leaf means"):
        treerl_advantages(worked())


def test_groups_on_the_worked_example() -> None:
    assert grpo(FLAT)[0] == pytest.approx(0.7302954, abs=1e-7)
    assert grpo(FLAT)[2] == pytest.approx(-1.0954431, abs=1e-7)
    assert dr_grpo(FLAT) == [F(2, 5), F(2, 5), F(-3, 5), F(-3, 5), F(2, 5)]
    assert rloo(FLAT) == [F(1, 2), F(1, 2), F(-3, 4), F(-3, 4), F(1, 2)]
    assert maxrl(FLAT) == [F(2, 3), F(2, 3), -1, -1, F(2, 3)]
    first, second = tree_grpo([[1, 1, 0], [0, 0, 0, 1]])
    assert first == pytest.approx([1.6464, 1.6464, -1.9565], abs=5e-5)
    assert second == pytest.approx([-1.3018] * 3 + [2.5690], abs=5e-5)


def test_a_group_of_one_gets_nothing_but_where_a_system_gives_it_its_reward() -> None:
    assert grpo([0.7]) == [0.0]
    assert rloo([0.7]) == [0.0]
    assert grpo([0.7], lone_raw=True) == pytest.approx([0.7], abs=1e-6)
    assert tree_grpo([[0.7]], lone_raw=True)[0] == pytest.approx([1.4], abs=2e-6)
    one = tree_values(Outline([-1, 0]), {1: 0.7})
    assert assign_credit("verl", [one])[0].along([0, 1]) == pytest.approx([0.7], abs=1e-6)
    assert assign_credit("grpo", [one])[0].along([0, 1]) == [0.0]


def test_what_was_never_scored_enters_no_group() -> None:
    for function in (grpo, dr_grpo, rloo, maxrl):
        with_gap = function([1.0, None, 0.0, 1.0])
        assert with_gap[1] is None
        assert [a for a in with_gap if a is not None] == function([1.0, 0.0, 1.0])
        assert function([None, None]) == [None, None]
        assert function([]) == []
    assert maxrl([0, 0]) == [0, 0]
    with pytest.raises(ValueError, match="negative"):
        maxrl([1, -1])


def test_names_of_systems() -> None:
    forest = [worked(float), worked(float)]
    rewards = [1.0, 1.0, 0.0, 0.0, 1.0] * 2
    n, mean = 10, 0.6
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
    expected = {
        "prime-rl": 1 - mean,
        "tinker": 1 - mean,
        "trl": (1 - mean) / (std + 1e-4),
        "verl": (1 - mean) / (std + 1e-6),
        "skyrl": (1 - mean) / (std + 1e-6),
        "tree-grpo-verl": 0.4 / (math.sqrt(0.3) + 1e-6) + 0.4 / (std + 1e-6),
    }
    for name, advantage in expected.items():
        for credit in assign_credit(name, forest):
            assert credit.along([0, A, 3]) == pytest.approx([advantage] * 2, abs=1e-6), name
    assert set(expected) < set(SCHEMES)
    with pytest.raises(UnknownNameError, match="did you mean 'tinker'"):
        assign_credit("tinkre", forest)


def grown(shape: list[int], rng: random.Random) -> Values:
    parents = [-1, *(pick % n for n, pick in enumerate(shape, 1))]
    leaves = set(range(len(parents))) - set(parents)
    returns = {n: F(rng.randrange(4)) for n in leaves if rng.random() < 0.9}
    children = Outline(parents).children()
    options: dict[int, F] = {}
    for found in children:
        if len(found) > 1 and rng.random() < 0.3:
            options.update((child, F(1, len(found))) for child in found)
    forced = {n for n in range(1, len(parents)) if n not in options and rng.random() < 0.1}
    return tree_values(Outline(parents, options, forced), returns)


shapes = st.lists(st.integers(0, 10**6), max_size=40)
rngs = st.randoms(use_true_random=False)


@settings(deadline=None)
@given(shapes, rngs, st.fractions(0, 1))
def test_gae_with_values_of_the_same_tree_is_delta(
    shape: list[int], rng: random.Random, lam: F
) -> None:
    values = grown(shape, rng)
    assert gae(values, lam) == gae(values, 0)


def test_gae_with_a_critic() -> None:
    shape = Outline([-1, 0, 1, 1])
    values = tree_values(shape, {2: F(1), 3: F(0)})
    found = gae(values, F(1, 2), {0: F(1, 4), 1: F(3, 4)})
    assert found[2:] == [F(1, 4), F(-3, 4)]
    assert found[1] == F(1, 2) + F(1, 2) * F(-1, 4)
    with pytest.raises(ValueError, match="node 1"):
        gae(values, F(1, 2), {0: F(1, 4)})


@settings(deadline=None)
@given(shapes, rngs)
def test_leave_one_out_is_what_it_says(shape: list[int], rng: random.Random) -> None:
    values = grown(shape, rng)
    found = node_advantages(values)
    children = values.outline.children()
    for node in range(len(values)):
        draws = [c for c in children[node] if values.sampled[c]]
        for child in draws:
            others = [values.arrivals[c] for c in draws if c != child]
            if others:
                assert found[child] == values.arrivals[child] - sum(others) / len(others)  # type: ignore[operator, arg-type]
            else:
                assert found[child] == found[node], "a chain has what its segment has"
        if len(draws) > 1:
            assert sum(found[c] or 0 for c in draws) == 0
    assert [found[n] is None for n in range(len(values))] == [v is None for v in values.value]
    assert all(found[n] in (0, None) for n in values.outline.forced)


def test_other_estimators_hold_siblings_against_plain_means_too() -> None:
    for estimator in Estimator:
        values = worked(F, estimator)
        found = node_advantages(values)
        assert found[3:6] == [F(1, 2), F(1, 2), F(-1)]


def test_trunks_are_held_against_the_other_trees() -> None:
    roots = [F(1), F(0), F(1, 2)]
    forest = [tree_values(Outline([-1, 0, 1]), {2: r}) for r in roots]
    found = forest_advantages(forest)
    assert [tree[2] for tree in found] == [F(3, 4), F(-3, 4), 0]
    assert [tree[1] for tree in found] == [tree[2] for tree in found]
    assert forest_advantages(forest[:1]) == [[0, 0, 0]]


def test_leave_one_out_is_an_unbiased_gradient() -> None:
    """Two sampled steps, the second branched in two: sum over outcomes of w A score = gradient."""
    p = {"first": F(1, 3), "right": F(1, 2), "wrong": F(1, 5)}

    def score(x: int, q: F) -> F:  # derivative of log-probability by q
        return 1 / q if x else -1 / (1 - q)

    gradient = F(0)
    for one in (0, 1):
        q = p["right"] if one else p["wrong"]
        for two in (0, 1):
            for three in (0, 1):
                chance = p["first"] if one else 1 - p["first"]
                chance *= (q if two else 1 - q) * (q if three else 1 - q)
                values = tree_values(Outline([-1, 0, 1, 1]), {2: F(two), 3: F(three)})
                a = node_advantages(values, baseline=F(2, 7))
                on_first = (a[1] or 0) * score(one, p["first"])
                gradient += chance * on_first
    assert gradient == p["right"] - p["wrong"], "the derivative of V by the first chance"


def test_vine_and_segments() -> None:
    shape = Outline([-1, 0, 0, 1, 1, 3])
    values = tree_values(shape, {2: F(0), 4: F(0), 5: F(1)})
    assert values.value[:2] == [F(1, 4), F(1, 2)]
    assert vine_advantages(values, 5) == {1: F(1, 4), 3: F(1, 2), 5: F(0)}
    assert segment_advantages(values) == [0, F(1, 4), F(-1, 4), F(1, 2), F(-1, 2), F(1, 2)]
    credit = assign_credit("vineppo", [values])[0]
    assert credit.along([0, 1, 3, 5]) == [F(1, 4), F(1, 2), F(0)]
    assert credit.along([0, 2]) == [None], "auxiliary rollouts are not trained on"


def test_pairs_by_margin_and_by_certainty() -> None:
    values = worked()
    pairs = list(preference_pairs(values))
    assert [(p.node, p.chosen, p.rejected) for p in pairs] == [
        (0, (A,), (B,)), (A, (3,), (5,)), (A, (4,), (5,)),
    ]  # fmt: skip
    assert pairs[0].gap == F(5, 12)
    assert pairs[0].z is None
    assert len(list(preference_pairs(values, margin=F(1, 2)))) == 2
    assert list(preference_pairs(values, min_z=0.1)) == [], "nothing is known of b's error"
    shape = Outline([-1, 0, 0, 1, 1, 2, 2, 3])
    sure = tree_values(shape, {7: 1.0, 4: 0.8, 5: 0.1, 6: 0.3})
    top = next(iter(preference_pairs(sure, min_z=2.0)))
    assert (top.chosen, top.rejected) == ((1,), (2,))
    assert top.z == pytest.approx(0.7 / math.sqrt(0.01 + 0.01))
    assert (3, 7) in [p.chosen for p in preference_pairs(sure)]
    assert all(p.z is None or p.z < 6 for p in preference_pairs(sure))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_gives_each_edge_of_a_path_one_number(scheme: str) -> None:
    forest = [worked(float), worked(float)]
    for values, credit in zip(forest, assign_credit(scheme, forest), strict=True):
        for leaf in LEAVES:
            path = values.outline.path(leaf)
            assert len(credit.along(path)) == 2
        assert len(credit.by_node(values)) == len(values)


def test_below_an_end_that_somebody_went_on_from_there_is_no_credit() -> None:
    values = tree_values(Outline([-1, 0, 0, 1], forced={3}), {1: F(1), 2: F(0), 3: F(9)})
    [credit] = assign_credit("dr-grpo", [values])
    assert credit.ends == {1: F(1, 2), 2: F(-1, 2)}
    assert credit.along([0, 1, 3]) == [F(1, 2), None]
    assert credit.by_node(values)[:3] == [0, F(1, 2), F(-1, 2)]
