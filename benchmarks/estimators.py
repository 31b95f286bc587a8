"""Do estimates on trees mean what they say? Bias and coverage, against truths known exactly.

    python benchmarks/estimators.py [TREES]

1. Coverage of 95 % intervals, each beside the naive one: V of a tree (t over its children, against
   treating all leaves as independent), a share of few attempts (Wilson, against the central limit
   theorem), the mean of a job (clustered by task, against all rollouts as independent), and the
   difference of two jobs (by pairs, against unpaired).
2. pass@2 and pass^2 of a task from 3 independent trees of 2 leaves, beside Chen's formula on the
   leaves.
3. What comes of branching by outcome: a second child only after a failure.

Goals: intervals cover 93 to 97 %; pass@2 and pass^2 within 4 standard errors; what is biased says
so.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from math import sqrt
from statistics import fmean, stdev

from ramify.kernel.intervals import (
    Clustered,
    Mean,
    mean_of,
    paired_difference,
    value_interval,
    wilson,
)
from ramify.kernel.outline import Number, Outline
from ramify.kernel.passk import pass_at_k, pass_hat_k, tree_pass_at_k, tree_pass_hat_k
from ramify.kernel.value import Values, mean_value, tree_values

Interval = tuple[float, float] | None
Both = tuple[Interval, Interval]
"""Ours, and the naive one."""


def tree_of(rng: random.Random, children: int, leaves: int) -> Values:
    """A root with mean 0; noise between children 1, between leaves 1."""
    parents, returns = [-1], dict[int, Number]()
    for _ in range(children):
        parents.append(0)
        child, level = len(parents) - 1, rng.gauss(0, 1)
        for _ in range(leaves):
            parents.append(child)
            returns[len(parents) - 1] = rng.gauss(level, 1)
    return tree_values(Outline(parents), returns)


def tree_value(rng: random.Random) -> Both:
    tree = tree_of(rng, 8, 3)
    leaves = [
        float(v) for v, n in zip(tree.value, tree.count, strict=True) if v is not None and not n
    ]
    return value_interval(tree), mean_of(leaves).interval()


def share(rng: random.Random) -> Both:
    n, p = 20, 0.2
    successes = sum(rng.random() < p for _ in range(n))
    low, high = wilson(successes, n)
    found = successes / n
    half = 1.96 * sqrt(found * (1 - found) / n)
    return (low - p, high - p), (found - half - p, found + half - p)


def job(rng: random.Random) -> Both:
    tasks = [[task + rng.gauss(0, 1) for _ in range(4)] for task in _tasks(rng, 24)]
    clustered = Clustered()
    for number, task in enumerate(tasks):
        for score in task:
            clustered.add(str(number), score)
    found = clustered.estimate()
    whole = mean_of([x for task in tasks for x in task])
    return found.interval() if found else None, whole.interval()


def difference(rng: random.Random) -> Both:
    tasks = _tasks(rng, 24)
    jobs = [{str(n): [x + rng.gauss(0, 0.3)] for n, x in enumerate(tasks)} for _ in range(2)]
    apart = [mean_of([scores[0] for scores in one.values()]) for one in jobs]
    error = sqrt(sum((one.se or 0) ** 2 for one in apart))
    naive = Mean(apart[1].mean - apart[0].mean, error, len(tasks))
    return paired_difference(*jobs).interval(), naive.interval()


def _tasks(rng: random.Random, count: int) -> list[float]:
    return [rng.gauss(0, 1) for _ in range(count)]


INTERVALS: dict[str, Callable[[random.Random], Both]] = {
    "V of a tree, 8 children x 3": tree_value,
    "share of 20 attempts": share,
    "mean of 24 tasks x 4": job,
    "difference on 24 tasks": difference,
}


def coverage(name: str, rounds: int) -> tuple[float, float, float]:
    """Of ours and of the naive interval (the truth is 0), and their ratio of widths."""
    rng = random.Random(name)
    found = [INTERVALS[name](rng) for _ in range(rounds)]
    covers = [
        fmean(one is not None and one[0] <= 0 <= one[1] for one in kind)
        for kind in zip(*found, strict=True)
    ]
    widths = [fmean(one[1] - one[0] for one in kind if one) for kind in zip(*found, strict=True)]
    return covers[0], covers[1], widths[0] / widths[1]


def attempts(rounds: int) -> dict[str, tuple[float, float, float, float]]:
    """Truth, ours, its standard error, and Chen's formula on leaves as if independent."""
    rng = random.Random("pass")
    found: dict[str, tuple[list[float], list[float]]] = {"pass@2": ([], []), "pass^2": ([], [])}
    for _ in range(rounds):
        trees: list[list[int]] = []
        for _ in range(3):  # a first draw makes the rest easy (0.8) or hard (0.2)
            chance = 0.8 if rng.random() < 0.5 else 0.2
            trees.append([int(rng.random() < chance) for _ in range(2)])
        values = [sum(leaves) / 2 for leaves in trees]
        right = sum(map(sum, trees))
        found["pass@2"][0].append(float(tree_pass_at_k(values, 2)))
        found["pass@2"][1].append(float(pass_at_k(6, right, 2)))
        found["pass^2"][0].append(float(tree_pass_hat_k(values, 2)))
        found["pass^2"][1].append(float(pass_hat_k(6, right, 2)))
    truths = {"pass@2": 0.75, "pass^2": 0.25}
    return {
        name: (truths[name], fmean(ours), stdev(ours) / sqrt(rounds), fmean(chen))
        for name, (ours, chen) in found.items()
    }


def second_chances(rounds: int) -> tuple[float, bool]:
    """Mean value of a fair coin whose failures get a second child, and whether that is flagged."""
    rng = random.Random("second")
    trees: list[Values] = []
    for _ in range(rounds):
        draws = [float(rng.random() < 0.5)]
        if not draws[0]:
            draws.append(float(rng.random() < 0.5))
        shape = Outline([-1] + [0] * len(draws), outcome_dependent=set(range(1, len(draws) + 1)))
        trees.append(tree_values(shape, dict(enumerate(draws, 1))))
    found = mean_value(trees)
    return float(found.value or 0), found.biased


def main(rounds: int) -> int:
    goals: dict[str, bool] = {}
    print(f"{'95 % intervals':<30}{'covers':>8}{'naive':>8}{'width / naive':>15}")
    for name in INTERVALS:
        ours, naive, width = coverage(name, rounds)
        print(f"{name:<30}{ours:8.3f}{naive:8.3f}{width:15.2f}")
        goals[f"{name}: 93 to 97 %"] = 0.93 <= ours <= 0.97
    print(f"\n{'':<30}{'truth':>8}{'trees':>8}{'Chen on leaves':>15}")
    for name, (truth, ours, error, chen) in attempts(rounds).items():
        print(f"{name:<30}{truth:8.3f}{ours:8.3f}{chen:15.3f}")
        goals[f"{name} unbiased"] = abs(ours - truth) <= 4 * error
    value, biased = second_chances(rounds)
    print(
        f"\na second child only after a failure: {value:.3f} for a fair coin (5/8 in expectation)"
    )
    goals["and it says that it is biased"] = biased
    for goal, held in goals.items():
        print(f"{'held  ' if held else 'MISSED'}  {goal}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000))
