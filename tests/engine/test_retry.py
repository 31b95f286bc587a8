import random

import pytest

from ramify.contracts.errors import ModelError, UsageError
from ramify.engine.retry import RetryPolicy


def test_waits_grow_up_to_the_cap_with_full_jitter() -> None:
    policy = RetryPolicy(max_retries=3, base_sec=1, cap_sec=8)
    rng = random.Random(1)
    for attempt, ceiling in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (5000, 8)):
        delays = [policy.delay(attempt, rng) for _ in range(500)]
        assert 0 <= min(delays) < ceiling * 0.1
        assert ceiling * 0.9 < max(delays) <= ceiling
    assert [policy.allows(attempt) for attempt in (1, 3, 4)] == [True, True, False]
    assert not RetryPolicy(max_retries=0).allows(1)
    fixed = RetryPolicy(base_sec=1, cap_sec=8, jitter=0)
    assert [fixed.delay(n, rng) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 8, 8]
    assert policy.delay(3, random.Random(9)) == policy.delay(3, random.Random(9))


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        (5, 5, 6),
        (5.5, 5.5, 6.5),
        (1e12, 60, 61),  # absurd: bounded
        (float("inf"), 0, 1),
        (float("nan"), 0, 1),
        (-3, 0, 1),
        ("soon", 0, 1),
        (None, 0, 1),
    ],
)
def test_retry_after_is_honoured_within_bounds(
    retry_after: object, least: float, most: float
) -> None:
    class BusyError(ModelError):
        pass

    error = BusyError("429")
    error.retry_after = retry_after  # type: ignore[attr-defined]
    rng = random.Random(2)
    delays = {RetryPolicy().delay(1, rng, error) for _ in range(100)}
    assert all(least <= delay <= most for delay in delays)
    assert len(delays) > 50, "callers do not all return in the same moment"


@pytest.mark.parametrize(
    "bad",
    [
        {"max_retries": -1},
        {"base_sec": -1},
        {"base_sec": 5, "cap_sec": 1},
        {"cap_sec": float("inf")},
        {"jitter": 1.5},
    ],
)
def test_a_senseless_policy_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RetryPolicy(**bad)  # type: ignore[arg-type]
