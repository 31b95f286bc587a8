"""How far estimates may be from the truth: intervals and standard errors.

For k successes in n independent attempts there is Wilson's interval; one from the central limit
theorem does not hold below about a hundred (arXiv:2503.01747). For values of trees there is
Student's t over the draws that the estimate is a mean of. For jobs, errors are clustered by task,
and two jobs on the same tasks are compared by pairs (Miller, arXiv:2411.00640).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, isfinite, isqrt, sqrt
from statistics import NormalDist

from ramify.contracts.errors import InvalidRewardError
from ramify.kernel.exact import UNITS, units
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


class Clustered:
    """Scores that belong together in clusters, such as repeats of one task, added up as they come.

    Sums are exact: neither the order nor what was taken back leaves a trace in the estimate. Every
    call takes the same time, however many scores there are.
    """

    def __init__(self) -> None:
        self._clusters: dict[str, tuple[int, int]] = {}  # how many scores n_g, and their sum S_g
        self._n = 0
        self._sum = 0  # in `units`, as all sums here are; those of squares in units of units
        self._squares = 0  # of scores
        self._sizes = 0  # sum of n_g^2 over clusters, and so on:
        self._mixed = 0  # n_g S_g
        self._between = 0  # S_g^2

    def add(self, cluster: str, score: float) -> None:
        """One more score. Raises InvalidRewardError (NaN, infinite); it is not counted then."""
        _check([score])
        self._change(cluster, 1, units(score))

    def remove(self, cluster: str, score: float) -> None:
        """Take back a score that was added."""
        self._change(cluster, -1, -units(score))

    def estimate(self) -> Mean | None:
        """The mean of all scores; None where there is none.

        SE^2 = G/(G-1) sum over clusters of (sum of (x - mean))^2 / n^2, with G clusters: Miller's
        formula with the usual correction for few clusters. The scores of a single cluster count as
        clusters of their own. With one score per cluster this is s^2/n. Below two it is not known.
        """
        if not self._n:
            return None
        n, whole, groups = self._n, self._sum, len(self._clusters)
        if groups == 1:
            groups, spread = n, n * (n * self._squares - whole**2)
        else:  # of (n S_g - n_g S)^2
            spread = n**2 * self._between - 2 * n * whole * self._mixed + whole**2 * self._sizes
        mean = whole / (n * UNITS)
        if groups < 2:
            return Mean(mean, None, n, 0)
        variance = Fraction(spread * groups, (groups - 1) * (n * n * UNITS) ** 2)
        return Mean(mean, _root(variance), n, groups - 1)

    def _change(self, cluster: str, count: int, score: int) -> None:
        size, whole = self._clusters.get(cluster, (0, 0))
        after = size + count, whole + score
        self._n += count
        self._sum += score
        self._squares += count * score**2
        self._sizes += after[0] ** 2 - size**2
        self._mixed += after[0] * after[1] - size * whole
        self._between += after[1] ** 2 - whole**2
        if after[0]:
            self._clusters[cluster] = after
        else:
            del self._clusters[cluster]


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


def _root(square: Fraction) -> float:
    """The square root; the square itself may be too large for a float, or too small."""
    bits = square.denominator.bit_length() - square.numerator.bit_length()
    scale = Fraction(2) ** (64 + bits // 2)
    return float(isqrt(int(square * scale**2)) / scale)


def _quantile(level: float, dof: float) -> float:
    """Half the width, in standard errors, of an interval with this chance."""
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}; it must be between 0 and 1")
    upper = (1 + level) / 2
    return NormalDist().inv_cdf(upper) if dof == inf else t_quantile(upper, dof)
