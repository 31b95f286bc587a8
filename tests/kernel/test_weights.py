"""Token weights: every identity exactly."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from golden import LEAVES, RETURNS, A, worked
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.kernel.outline import Outline
from ramify.kernel.value import Estimator, Values, tree_values
from ramify.kernel.weights import WeightScheme, path_weights, token_weights

F = Fraction

TOKENS = 10


def summed(values: Values, scheme: WeightScheme, leaves: tuple[int, ...]) -> F:
    """Of all tokens in all records, with ten tokens an edge."""
    weights = token_weights(values, scheme, leaves)
    return sum(
        (TOKENS * w for leaf in leaves for w in weights.along(values.outline.path(leaf))), F(0)
    )  # type: ignore[misc]


def test_the_worked_example_has_seventy_tokens_in_a_hundred() -> None:
    values = worked()
    linear = sum(TOKENS * (len(values.outline.path(leaf)) - 1) for leaf in LEAVES)
    assert (TOKENS * (len(values) - 1), linear) == (70, 100)
    assert summed(values, WeightScheme.INV, LEAVES) == 70
    assert summed(values, WeightScheme.OWN, LEAVES) == 70
    assert summed(values, WeightScheme.SUFFIX, LEAVES) == 50
    own = token_weights(values, WeightScheme.OWN)
    assert [own.along([0, A, leaf]) for leaf in (3, 4)] == [[1, 1], [0, 1]]


def test_paths_of_the_worked_example() -> None:
    paths = path_weights(worked())
    assert [paths[leaf] for leaf in LEAVES] == [F(1, 6), F(1, 6), F(1, 6), F(3, 8), F(1, 8)]
    assert sum(paths[leaf] for leaf in LEAVES) == 1
    assert sum(paths[leaf] * RETURNS[leaf] for leaf in LEAVES) == F(11, 24)
    with pytest.raises(ValueError, match="child means"):
        path_weights(worked(F, Estimator.LEAF_MEAN))


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=40), st.randoms(use_true_random=False))
def test_identities(shape: list[int], rng: random.Random) -> None:
    parents = [-1, *(pick % n for n, pick in enumerate(shape, 1))]
    ends = sorted(set(range(len(parents))) - set(parents))
    returns = {n: F(rng.randrange(-3, 4)) for n in ends if rng.random() < 0.8}
    values = tree_values(Outline(parents), returns)
    leaves = tuple(returns)
    if not leaves:
        assert token_weights(values, WeightScheme.PATH).each == [0] * len(parents)
        return
    edges = {node for leaf in leaves for node in values.outline.path(leaf)[1:]}
    assert summed(values, WeightScheme.INV, leaves) == TOKENS * len(edges)
    assert summed(values, WeightScheme.OWN, leaves) == TOKENS * len(edges)
    paths = path_weights(values)
    assert sum(paths[leaf] for leaf in leaves) == 1
    assert sum(paths[leaf] * returns[leaf] for leaf in leaves) == values.value[0]
    frac = token_weights(values, WeightScheme.FRAC)
    assert sum(frac.each[leaf] for leaf in leaves) == 1
    assert sum(frac.each[leaf] * returns[leaf] for leaf in leaves) == F(
        sum(returns.values()), len(leaves)
    )
    for scheme in WeightScheme:
        weights = token_weights(values, scheme, leaves)
        for node in edges:
            copies = [leaf for leaf in leaves if node in values.outline.path(leaf)]
            each = [
                weights.along(values.outline.path(leaf))[values.outline.path(leaf).index(node) - 1]
                for leaf in copies
            ]
            assert sum(each) == weights.total(node)
            assert weights.copies[node] == len(copies)
            exact = {"inv": 1, "own": 1, "path": paths[node], "frac": F(len(copies), len(leaves))}
            assert weights.total(node) == exact.get(scheme, int(len(copies) == 1))


def test_forced_paths_weigh_nothing_in_a_mean() -> None:
    values = tree_values(Outline([-1, 0, 0, 2], forced={2}), {1: F(1), 3: F(1)})
    assert path_weights(values) == [1, 1, 0, 0]
    assert token_weights(values, WeightScheme.PATH).along([0, 2, 3]) == [0, 0]
