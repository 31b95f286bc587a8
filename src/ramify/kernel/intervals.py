"""How far estimates may be from the truth: intervals and standard errors.

For k successes in n independent attempts there is Wilson's interval; one from the central limit
theorem does not hold below about a hundred (arXiv:2503.01747). For values of trees there is
Student's t over the draws that the estimate is a mean of. For jobs, errors are clustered by task,
and two jobs on the same tasks are compared by pairs (Miller, arXiv:2411.00640).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf, isfinite, sqrt
from statistics import NormalDist

from ramify.contracts.errors import InvalidRewardError
from ramify.kernel.student import t_quantile
from ramify.kernel.value import Values


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and what is known of it.

    Attributes:
        mean: the estimate.
        se: its standard error; None where it cannot be known.
        n: observations.
        dof: degrees of freedom of the error.
    """

    mean: float
    se: float | None
    n: int
    dof: float = inf

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The interval that covers the truth with this chance; None where there is no error."""
        if self.se is None:
            return None
        half = _quantile(level, self.dof) * self.se
        return self.mean - half, self.mean + half


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a chance (Wilson 1927).

    Raises:
        ValueError: not 0 <= successes <= n, or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes among {n} attempts")
    z = _quantile(level, inf)
    share, z2 = successes / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == n else middle + half


def value_interval(
    values: Values, node: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of V of a node: V ± t SE; None where SE is not known.

    t has n - 1 degrees of freedom over n sampled children; over enumerated options as many as
    Welch and Satterthwaite give for the sum of q^2 SE^2.
    """
    value, variance = values.value[node], values.variance[node]
    if value is None or variance is None:
        return None
    estimate = Mean(float(value), sqrt(variance), values.count[node], _dof(values, node))
    return estimate.interval(level)


def _dof(values: Values, node: int) -> float:
    """Degrees of freedom of SE^2 at a node."""
    parts: list[tuple[float, int]] = []
    pending = [(node, 1.0)]
    while pending:
        node, scale = pending.pop()
        if node not in values.options:
            variance = values.variance[node]
            assert variance is not None
            parts.append((scale * float(variance), values.count[node] - 1))
            continue
        for child, share in values.options[node].items():
            pending.append((child, scale * float(share * values.discount) ** 2))
    whole = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / dof for variance, dof in parts)
    return whole**2 / spread if spread else min(dof for _, dof in parts)


def mean_of(scores: Sequence[float]) -> Mean:
    """Mean of independent scores. Raises InvalidRewardError for NaN, ValueError for none at all."""
    _check(scores)
    n, mean = len(scores), sum(scores) / len(scores)
    if n < 2:
        return Mean(mean, None, n, 0)
    return Mean(mean, sqrt(sum((x - mean) ** 2 for x in scores) / (n - 1) / n), n, n - 1)


def clustered_mean(clusters: Sequence[Sequence[float]]) -> Mean:
    """Mean of scores that belong together in clusters, such as repeats of one task.

    SE^2 = G/(G-1) sum over clusters of (sum of (x - mean))^2 / n^2, with G clusters: Miller's
    formula with the usual correction for few clusters.
    """
    scores = list(chain.from_iterable(clusters))
    _check(scores)
    n, groups = len(scores), sum(1 for cluster in clusters if cluster)
    mean = sum(scores) / n
    if groups < 2:
        return Mean(mean, None, n, 0)
    spread = sum(sum(x - mean for x in cluster) ** 2 for cluster in clusters)
    return Mean(mean, sqrt(spread * groups / (groups - 1)) / n, n, groups - 1)


def paired_difference(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> Mean:
    """Mean of `second` less `first` over the tasks that both have scores of, task by task.

    Each task counts once, by the mean of its scores, so that what tasks differ in cancels out.

    Raises:
        ValueError: they have no task in common.
    """
    tasks = [task for task in first if first[task] and second.get(task)]
    if not tasks:
        raise ValueError("nothing to compare: the two have no scored task in common")
    return mean_of([mean_of(second[task]).mean - mean_of(first[task]).mean for task in tasks])


def _check(scores: Sequence[float]) -> None:
    if not scores:
        raise ValueError("no scores: nothing to take the mean of")
    bad = next((x for x in scores if not isfinite(x)), None)
    if bad is not None:
        raise InvalidRewardError("malformed", f"a score is {bad}; it must be finite")


def _quantile(level: float, dof: float) -> float:
    """Half the width, in standard errors, of an interval with this chance."""
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}; it must be between 0 and 1")
    upper = (1 + level) / 2
    return NormalDist().inv_cdf(upper) if dof == inf else t_quantile(upper, dof)
