"""pass@k, pass^k, and intervals of means."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError
from ramify.kernel.intervals import Clustered, Mean, mean_of, paired_difference, wilson
from ramify.kernel.passk import pass_at_k, pass_hat_k, tree_pass_at_k, tree_pass_hat_k
from ramify.kernel.student import t_cdf, t_quantile

F = Fraction


def clustered_mean(clusters: list[list[float]]) -> Mean:
    found = Clustered()
    for number, cluster in enumerate(clusters):
        for score in cluster:
            found.add(str(number), score)
    estimate = found.estimate()
    assert estimate is not None
    return estimate


def test_golden_values() -> None:
    values = [F(1), F(1, 2), F(0)]
    assert [tree_pass_at_k(values, k) for k in (1, 2, 3)] == [F(1, 2), F(5, 6), 1]
    assert pass_at_k(5, 2, 3) == F(9, 10)
    assert wilson(3, 5) == pytest.approx((0.2307, 0.8824), abs=5e-5)


chances = st.lists(st.fractions(0, 1, max_denominator=12), min_size=1, max_size=7)


@settings(deadline=None)
@given(chances, st.data())
def test_trees_agree_with_the_mean_over_subsets(values: list[F], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    subsets = list(combinations(values, k))
    failing = sum(math.prod(1 - v for v in some) for some in subsets) / F(len(subsets))
    assert tree_pass_at_k(values, k) == 1 - failing
    assert tree_pass_hat_k(values, k) == sum(math.prod(s) for s in subsets) / F(len(subsets))
    assert math.isclose(tree_pass_at_k([float(v) for v in values], k), 1 - failing, abs_tol=1e-12)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_trees_that_succeed_or_fail_are_chens_case(found: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(found)))
    values = [F(x) for x in found]
    assert tree_pass_at_k(values, k) == pass_at_k(len(found), sum(found), k)
    assert tree_pass_hat_k(values, k) == pass_hat_k(len(found), sum(found), k)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (pass_at_k, (5, 6, 1)), (pass_at_k, (5, 2, 6)), (pass_at_k, (5, 2, 0)),
        (pass_hat_k, (0, 0, 1)), (tree_pass_at_k, ([0.5], 2)), (tree_pass_at_k, ([1.5], 1)),
        (tree_pass_at_k, ([math.nan], 1)), (wilson, (1, 0)), (wilson, (3, 2)),
        (mean_of, ([],)), (paired_difference, ({"a": [1.0]}, {"b": [1.0]})),
        (t_quantile, (1.0, 3)), (t_quantile, (0.5, 0)),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(function, arguments) -> None:
    with pytest.raises(ValueError, match=r"."):
        function(*arguments)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidRewardError, match="nan"):
        mean_of([1.0, math.nan])
    with pytest.raises(InvalidRewardError, match="inf"):
        clustered_mean([[1.0], [math.inf]])


def test_student_against_tables() -> None:
    for dof, expected in {1: 12.7062047, 2: 4.3026527, 7: 2.3646243, 30: 2.0422725}.items():
        assert t_quantile(0.975, dof) == pytest.approx(expected, abs=1e-7)
        assert t_quantile(0.025, dof) == pytest.approx(-expected, abs=1e-7)
        assert t_cdf(t_quantile(0.9, dof), dof) == pytest.approx(0.9, abs=1e-12)
    assert t_quantile(0.975, 1e9) == NormalDist().inv_cdf(0.975)


def test_wilson_at_the_ends_and_its_coverage() -> None:
    assert wilson(0, 4)[0] == 0
    assert wilson(4, 4)[1] == 1
    n, p = 20, 0.3
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(c for k, c in enumerate(chance) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert 0.93 <= covered <= 0.99


def test_errors_of_jobs() -> None:
    flat = mean_of([1.0, 0.0, 1.0, 1.0])
    assert (flat.mean, flat.se) == (0.75, pytest.approx(0.25))
    alone = clustered_mean([[1.0], [0.0], [1.0], [1.0]])
    assert (alone.mean, alone.se) == (0.75, pytest.approx(0.25)), "clusters of one are no clusters"
    same = clustered_mean([[1.0] * 5, [0.0] * 5, [1.0] * 5, [1.0] * 5])
    assert same.se == pytest.approx(0.25), "repeats that all agree say nothing new"
    assert mean_of([1.0]).se is None
    assert mean_of([1.0]).interval() is None
    assert clustered_mean([[1.0]]).se is None
    assert clustered_mean([[1.0, 0.0, 1.0, 1.0]]) == alone, "one task: its repeats are all there is"
    assert Clustered().estimate() is None


scores = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), scores)),
    st.lists(st.tuples(st.sampled_from("ab"), scores)),
)
def test_scores_taken_back_leave_no_trace(
    kept: list[tuple[str, float]], taken: list[tuple[str, float]]
) -> None:
    found, plain = Clustered(), Clustered()
    for entry in taken + kept:
        found.add(*entry)
    for entry in taken:
        found.remove(*entry)
    for entry in reversed(kept):
        plain.add(*entry)
    for bad in (math.nan, math.inf):
        with pytest.raises(InvalidRewardError):
            found.add("a", bad)
    assert found.estimate() == plain.estimate()


def test_errors_of_extreme_scores() -> None:
    """Whose squares no float holds."""
    for size in (1e200, 1e-200):
        assert clustered_mean([[size], [0.0]]) == Mean(size / 2, size / 2, 2, 1)
    assert clustered_mean([[1.0], [1.0]]).se == 0.0


def test_pairs_take_out_what_tasks_differ_in() -> None:
    rng = random.Random(1)
    first, second = dict[str, list[float]](), dict[str, list[float]]()
    for task in range(40):
        hard = rng.gauss(0, 10)
        first[str(task)] = [hard + rng.gauss(0, 0.1) for _ in range(3)]
        second[str(task)] = [hard + 1 + rng.gauss(0, 0.1)]
    found = paired_difference(first, {**second, "other": [9.0]})
    low, high = found.interval() or (0, 0)
    assert low < 1 < high
    assert (found.se or 9) < 0.1
    assert found.n == 40


def test_clustered_intervals_cover() -> None:
    rng, covered = random.Random(2), 0
    for _ in range(2000):
        clusters = [
            [m + rng.gauss(0, 1) for _ in range(3)] for m in (rng.gauss(0, 1) for _ in range(10))
        ]
        low, high = clustered_mean(clusters).interval() or (9, 9)
        covered += low <= 0 <= high
    assert 0.93 <= covered / 2000 <= 0.97
