"""When to try again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ramify.contracts.errors import UsageError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long, to try again.

    The n-th retry waits up to `base_sec * 2**(n-1)`, at most `cap_sec`. With full jitter
    (`jitter=1.0`) the wait is uniform from 0 to that; with 0.0 it is exactly that.

    Attributes:
        max_retries: retries after the first attempt; 0 for none.
        base_sec, cap_sec: seconds.
        jitter: 0.0 to 1.0, the part of the wait that is random.

    Raises:
        UsageError: a value out of range.
    """

    max_retries: int = 2
    base_sec: float = 1.0
    cap_sec: float = 60.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise UsageError(f"max_retries must be 0 or more, not {self.max_retries}")
        if not 0 <= self.base_sec <= self.cap_sec < math.inf:
            raise UsageError(
                f"need 0 <= base_sec <= cap_sec, not {self.base_sec} and {self.cap_sec}"
            )
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"jitter must be between 0 and 1, not {self.jitter}")

    def allows(self, attempt: int) -> bool:
        """Whether another attempt may follow the failed attempt number `attempt` (from 1)."""
        return attempt <= self.max_retries

    def delay(self, attempt: int, rng: random.Random, error: BaseException | None = None) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1).

        An error with a `retry_after` attribute (finite seconds) is honoured up to `cap_sec`;
        the ordinary wait comes on top, so that callers do not all return in the same moment.
        Never above `2 * cap_sec`.
        """
        ceiling = min(self.cap_sec, self.base_sec * 2.0 ** min(max(attempt - 1, 0), 60))
        backoff = ceiling * (1 - self.jitter) + rng.uniform(0.0, ceiling * self.jitter)
        return backoff + min(_retry_after(error), self.cap_sec)


def _retry_after(error: BaseException | None) -> float:
    value: object = getattr(error, "retry_after", None)
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    return 0.0
