"""What branching is worth: the value of a task, and of states along one path, per step of work.

    python benchmarks/tree_value.py [TREES]

A toy world with the truth known exactly: 64 steps, of which 6 are critical (one point each, right
with chance 0.6), 2 are heavy `ask_user` steps (three points each, chance 0.5) and 6 are distractors
that the policy is most unsure of and that decide nothing; 7 points of 12 are a success. Points are
made early, evenly, or late.

1. The value of the task. Efficiency: variance times cost of independent chains, over that of a
   plan; above 1 the plan needs fewer steps for the same certainty. `setup 64`: a root costs 64
   steps before its first. The planner's row counts its pilot (12 trees that branch at `ask_user`),
   in jobs of 512 chains' worth of steps; every step counts the same in the estimate.
2. The value of 8 states along one path, 24 rollouts each (as VinePPO needs them): each rollout
   replayed from the root, against branches from snapshots whose leaves also serve the states above
   them (BLUE).
3. The CPU time to value a tree of a million nodes of several shapes (V and SE of each, best of 5),
   and the time with the advantage of each beside it.

Goals: planner at least 0.95 where points are made early, 1.5 late, 1 evenly; 8 states at least 2.2
times fewer steps than replay at equal variance (evenly, and over the three); a million nodes in at
most 1 s.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from time import process_time

from ramify.kernel.credit import node_advantages
from ramify.kernel.outline import Number, Outline
from ramify.kernel.planner import Pilot, plan_branches
from ramify.kernel.value import Estimator, tree_values

HORIZON, NEED = 64, 7
CRITICAL, HEAVY = (1, 0.6), (3, 0.5)  # points, chance
SETUPS = (0, 64)
PILOTS, GROUP, JOB = 12, 8, 512
STATES, ROLLOUTS = 8, 24
MILLION = 1_000_000
EVERY = ((2, 1), (5, 1), (64, 1), (4, 8), (8, 64))  # children, steps
Plan = tuple[tuple[int, int], ...]
"""(step, children), outermost first."""


@dataclass(frozen=True)
class World:
    """When what happens. A state is (time, points)."""

    critical: tuple[int, ...]
    heavy: tuple[int, ...]
    distractors: tuple[int, ...]

    @property
    def decisions(self) -> list[tuple[int, int, float]]:
        return _decisions(self)

    def play(self, points: int, start: int, end: int, rng: random.Random) -> int:
        """Points at time `end` of somebody who has `points` at `start`."""
        for time, worth, chance in self.decisions:
            if start <= time < end and rng.random() < chance:
                points += worth
        return points

    def truth(self, time: int, points: int) -> float:
        """The exact value of a state."""
        return _truth(self, sum(t < time for t, _, _ in self.decisions), points)


@cache
def _decisions(world: World) -> list[tuple[int, int, float]]:
    found = [(t, *CRITICAL) for t in world.critical] + [(t, *HEAVY) for t in world.heavy]
    return sorted(found)


@cache
def _truth(world: World, made: int, points: int) -> float:
    if made == len(world.decisions):
        return float(points >= NEED)
    _, worth, chance = world.decisions[made]
    right, wrong = _truth(world, made + 1, points + worth), _truth(world, made + 1, points)
    return chance * right + (1 - chance) * wrong


WORLDS = {
    "early": World((2, 5, 8, 12, 16, 20), (4, 10), (6, 14, 25, 36, 47, 58)),
    "even": World((5, 15, 26, 36, 47, 58), (21, 42), (3, 13, 24, 34, 45, 55)),
    "late": World((38, 42, 46, 50, 54, 60), (44, 52), (3, 13, 24, 35, 48, 57)),
}


def plans(world: World) -> dict[str, Plan]:
    """Fixed plans; each decides without looking at outcomes."""
    return {
        "ask_user x2": tuple((time, 2) for time in world.heavy),
        "depth 1/2, 3/4": ((HORIZON // 2, 2), (3 * HORIZON // 4, 2)),
        "entropy x3": tuple((time, 2) for time in world.distractors[1::2]),
    }


def grow(world: World, plan: Plan, rng: random.Random, setup: float = 0.0) -> Pilot:
    """One tree by a plan: a node at each place where it branches, and its leaves."""
    parents, costs, places, returns = [-1], dict[int, float](), {0: 0}, dict[int, Number]()
    stack = [(0, 0, 0, 0)]
    while stack:
        node, time, points, level = stack.pop()
        until = plan[level][0] if level < len(plan) else HORIZON
        for _ in range(plan[level - 1][1] if level else 1):
            child = len(parents)
            parents.append(node)
            costs[child], places[child] = until - time, until
            score = world.play(points, time, until, rng)
            if until == HORIZON:
                returns[child] = float(score >= NEED)
            else:
                stack.append((child, until, score, level + 1))
    return Pilot(tree_values(Outline(parents), returns), costs, places, setup)


@dataclass(frozen=True)
class Measured:
    """Of one tree: mean squared error of its value, cost, leaves."""

    error: float
    cost: float
    leaves: float

    def efficiency(self, chains: Measured) -> float:
        return chains.error * chains.cost / (self.error * self.cost)


def measure(world: World, plan: Plan, trees: int, setup: float, seed: int = 1) -> Measured:
    rng = random.Random(f"{seed} {plan} {world}")
    truth = world.truth(0, 0)
    grown = [grow(world, plan, rng, setup) for _ in range(trees)]
    return Measured(
        fmean((root(tree) - truth) ** 2 for tree in grown),
        fmean(tree.cost for tree in grown),
        fmean(tree.values.leaves[0] for tree in grown),
    )


def root(tree: Pilot) -> float:
    value = tree.values.value[0]
    assert value is not None
    return float(value)


def chains_of(world: World, setup: float) -> Measured:
    """A chain's error is known exactly: it succeeds or not."""
    truth = world.truth(0, 0)
    return Measured(truth * (1 - truth), HORIZON + setup, 1.0)


def planned(world: World, trees: int, setup: float) -> tuple[float, Counter[str]]:
    """Efficiency of whole jobs that begin with a pilot, and what was chosen how often.

    The main part of a job is a mean over independent trees, unbiased whatever the pilot showed, so
    its error is that of a tree of the chosen plan (measured as for fixed plans) over their number.
    """
    rng = random.Random(f"planner {setup} {world}")
    chains, truth = chains_of(world, setup), world.truth(0, 0)
    budget = JOB * chains.cost
    place = plans(world)["ask_user x2"]
    chosen: Counter[str] = Counter()
    known: dict[Plan, Measured] = {(): chains}
    errors: list[float] = []
    for _ in range(max(trees // 10, 50)):
        pilots = [grow(world, place, rng, setup) for _ in range(PILOTS)]
        plan = plan_branches(pilots, chains=GROUP)
        chosen[str(plan.branches) if plan.branches else "chains"] += 1
        if plan.branches not in known:
            known[plan.branches] = measure(world, plan.branches, trees, setup)
        main, spent = known[plan.branches], sum(tree.cost for tree in pilots)
        share = spent / budget
        off = fmean(root(tree) for tree in pilots) - truth
        rest = main.error * main.cost / (budget - spent)
        errors.append((share * off) ** 2 + (1 - share) ** 2 * rest)
    return chains.error / JOB / fmean(errors), chosen


def states(world: World, paths: int) -> dict[str, float]:
    """How many times fewer steps the values of 8 states take than by replay."""
    rng = random.Random(f"states {world}")
    times = [HORIZON * i // STATES for i in range(STATES)]
    replayed, errors = list[float](), {e: list[float]() for e in Estimator}
    for _ in range(paths):
        parents, returns, points = [-1], dict[int, Number](), [0]
        for start, end in zip(times, [*times[1:], HORIZON], strict=True):
            points.append(world.play(points[-1], start, end, rng))
            parents.append(len(parents) - 1)
        returns[STATES] = float(points[-1] >= NEED)
        for node, (time, score) in enumerate(zip(times, points, strict=False)):
            for _ in range(ROLLOUTS):
                returns[len(parents)] = float(world.play(score, time, HORIZON, rng) >= NEED)
                parents.append(node)
        truths = [world.truth(t, p) for t, p in zip(times, points, strict=False)]
        replayed.append(fmean(v * (1 - v) / ROLLOUTS for v in truths))
        for estimator, found in errors.items():
            value = tree_values(Outline(parents), returns, estimator=estimator).value
            found.append(fmean((float(v or 0) - t) ** 2 for v, t in zip(value, truths)))  # noqa: B905  # states come first
    replay_cost = HORIZON * ROLLOUTS * STATES
    branch_cost = HORIZON + ROLLOUTS * sum(HORIZON - time for time in times)
    return {
        "snapshots alone": replay_cost / branch_cost,
        **{
            f"and {estimator}": fmean(replayed) * replay_cost / (fmean(found) * branch_cost)
            for estimator, found in errors.items()
        },
    }


def regular(children: int, length: int) -> list[int]:
    """Parents of a million nodes whose paths branch every `length` steps."""
    parents, heads = [-1], [0]
    while len(parents) < MILLION:
        below: list[int] = []
        for head in heads:
            for _ in range(children):
                end = head
                for _ in range(length):
                    if len(parents) < MILLION:
                        parents.append(end)
                        end = len(parents) - 1
                below.append(end)
        heads = below
    return parents


def anywhere() -> list[int]:
    """Parents of a million nodes, each drawn from all nodes before it: memory in no order."""
    rng = random.Random(4)
    return [-1, *(rng.randrange(node) for node in range(1, MILLION))]


def valued(parents: list[int]) -> tuple[float, float]:
    """CPU seconds to value a tree, and to have the advantages as well."""
    inner = set(parents)
    returns = {n: float(n % 3 == 0) for n in range(len(parents)) if n not in inner}
    began = process_time()
    values = tree_values(Outline(parents), returns)
    between = process_time()
    node_advantages(values)
    return between - began, process_time() - began


def main(trees: int) -> int:
    goals: dict[str, bool] = {}
    print(f"Value of the task: efficiency against chains ({trees} trees each)")
    print(f"{'points':<8}{'plan':<30}{'leaves/step':>12}{'setup 0':>9}{'setup 64':>10}")
    for name, world in WORLDS.items():
        alone = [chains_of(world, setup) for setup in SETUPS]
        for title, plan in plans(world).items():
            found = [measure(world, plan, trees, setup) for setup in SETUPS]
            rate = found[0].leaves / found[0].cost * HORIZON
            ratios = [m.efficiency(c) for m, c in zip(found, alone, strict=True)]
            print(f"{name:<8}{title:<30}{rate:11.2f}x{ratios[0]:9.2f}{ratios[1]:10.2f}")
        both = [planned(world, trees, setup) for setup in SETUPS]
        row = f"{name:<8}{'planner, with its pilot':<30}"
        print(f"{row}{'':>12}{both[0][0]:9.2f}{both[1][0]:10.2f}")
        for setup, (_, chosen) in zip(SETUPS, both, strict=True):
            often = ", ".join(f"{n}x {what}" for what, n in chosen.most_common(3))
            print(f"{'':<8}  setup {setup} chose {often}")
        least = {"early": 0.95, "even": 1.0, "late": 1.5}[name]
        goals[f"planner >= {least} of chains, {name}"] = both[0][0] >= least
    print(f"\nValue of {STATES} states along one path, {ROLLOUTS} rollouts each: times fewer steps")
    least_steps: list[float] = []
    for name, world in WORLDS.items():
        found = states(world, max(trees // 4, 20))
        print(f"{name:<8}" + "".join(f"{what} {ratio:.2f}  " for what, ratio in found.items()))
        least_steps.append(found["and blue"])
        if name == "even":
            goals["8 states >= 2.2 times fewer steps than replay, even"] = found["and blue"] >= 2.2
    goals["8 states >= 2.2 times fewer steps, on average"] = fmean(least_steps) >= 2.2
    print("\nA million nodes: V and SE")
    for name, parents in (
        *(
            (f"{many} children every {length} steps", regular(many, length))
            for many, length in EVERY
        ),
        ("a random parent each", anywhere()),
    ):
        seconds, whole = map(min, zip(*(valued(parents) for _ in range(5)), strict=True))
        goals[f"a million nodes <= 1 s, {name}"] = seconds <= 1
        met = "met" if seconds <= 1 else "missed"
        print(f"{name}: {seconds:.2f} s (goal 1 s: {met}), with advantages {whole:.2f} s")
    for goal, held in goals.items():
        print(f"{'held  ' if held else 'MISSED'}  {goal}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 6000))
