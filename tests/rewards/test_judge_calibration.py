"""Calibration: how far a judge agrees with people, and its marks corrected by that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify import LabelledExample, Scale, Verdict, calibrate
from ramify.contracts.errors import ConfigError, RewardFailedError
from ramify.contracts.model import Model
from ramify.planes.reward.judge_curve import Curve, Fit, fitted


class Told:
    """A judge that gives the score that the material names. Implements `Assessor`."""

    name = "told"

    def asks(self, model: Model | None) -> bool:
        return False

    async def assess(self, material: Mapping[str, str]) -> Verdict:
        if material["answer"] == "?":
            raise RewardFailedError("told could not say")
        score = float(material["answer"])
        return Verdict(score, {"verdict": score})


def examples(pairs: Sequence[tuple[float, float | str]]) -> list[LabelledExample]:
    """(people's score, judge's score) of each."""
    return [LabelledExample({"answer": str(its)}, theirs) for theirs, its in pairs]


# 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: the textbook's kappa of 0.4.
TEXTBOOK = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15


async def test_agreement_beyond_chance() -> None:
    found = await calibrate(Told(), examples(TEXTBOOK))
    assert found.confusion == ((15, 10), (5, 20))
    assert found.exact == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.weighted_kappa == pytest.approx(0.4)
    assert found.bias == pytest.approx(0.1)
    assert found.error == pytest.approx(0.3)
    table = found.table()
    for text in ("50 examples, 0 without", "70.0%", "0.400", "+0.100", "15 10", "5 20"):
        assert text in table


async def test_chance_perfection_and_monotony() -> None:
    perfect = await calibrate(Told(), examples([(0.0, 0.0), (1.0, 1.0)]))
    assert perfect.kappa == 1.0
    chance = await calibrate(Told(), examples([(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]))
    assert chance.kappa == 0.0
    same = await calibrate(Told(), examples([(1.0, 1.0), (1.0, 1.0)]))
    assert same.kappa is None
    assert "undefined" in same.table()


async def test_squared_distances_weigh_on_a_longer_scale() -> None:
    near = await calibrate(
        Told(), examples([(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]), scale=Scale(0, 2)
    )
    assert near.kappa is not None
    assert near.weighted_kappa is not None
    assert near.weighted_kappa > near.kappa


async def test_what_got_no_verdict_is_named() -> None:
    found = await calibrate(Told(), examples([(1.0, 1.0), (1.0, "?"), (0.0, 0.0)]))
    assert found.failed == {1: "told could not say"}
    assert len(found.scores) == 2
    assert "example 1: told could not say" in found.table()
    with pytest.raises(RewardFailedError, match="cannot be calibrated: told could not say"):
        await calibrate(Told(), examples([(1.0, "?"), (0.0, "?")]))


@pytest.mark.parametrize("fit", ["linear", "isotonic"])
async def test_a_lenient_judge_is_corrected(fit: Fit) -> None:
    pairs = [(score, 0.5 + score / 2) for score in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    found = await calibrate(Told(), examples(pairs), fit=fit)
    assert found.bias == pytest.approx(0.25)
    assert found.fitted_error is not None
    assert found.fitted_error < found.error
    verdict = await found.applied(Told()).assess({"answer": "0.8"})
    assert verdict.score == pytest.approx(0.6)
    assert verdict.uncalibrated == 0.8
    assert verdict.criteria == {"verdict": 0.8}


async def test_without_a_fit_nothing_is_corrected() -> None:
    found = await calibrate(Told(), examples(TEXTBOOK))
    assert found.fitted_error is None
    assert (await found.applied(Told()).assess({"answer": "0.3"})).score == pytest.approx(0.3)


@pytest.mark.parametrize("given_", [[], [(1.0, 1.0)], [(1.0, 1.0), (1.5, 1.0)]])
async def test_examples_that_do_not_do(given_: list[tuple[float, float | str]]) -> None:
    with pytest.raises(ConfigError, match="two or more examples"):
        await calibrate(Told(), examples(given_))


SHARES = st.floats(0, 1)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=30), SHARES, SHARES)
def test_an_isotonic_curve_never_falls_and_stays_within(
    pairs: list[tuple[float, float]], a: float, b: float
) -> None:
    curve = fitted("isotonic", pairs)
    low, high = curve(min(a, b)), curve(max(a, b))
    assert 0.0 <= low <= high + 1e-9
    assert high <= 1.0


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=30), SHARES)
def test_a_linear_curve_is_no_worse_than_the_mean(
    pairs: list[tuple[float, float]], score: float
) -> None:
    curve = fitted("linear", pairs)
    assert 0.0 <= curve(score) <= 1.0
    mean = sum(y for _, y in pairs) / len(pairs)
    after = sum((curve(x) - y) ** 2 for x, y in pairs)
    assert after <= sum((mean - y) ** 2 for _, y in pairs) + 1e-9


def test_pools_of_what_falls() -> None:
    curve = fitted("isotonic", [(0.1, 0.0), (0.4, 0.8), (0.6, 0.4), (0.9, 1.0)])
    assert isinstance(curve, Curve)
    assert [x for x, _ in curve.knots] == [0.1, 0.4, 0.6, 0.9]
    assert [y for _, y in curve.knots] == pytest.approx([0.0, 0.6, 0.6, 1.0])
    assert curve(0.25) == pytest.approx(0.3)
