"""Where to branch, by a pilot: measure where value is decided and what it costs to get there.

More leaves per step are not more information. Branching pays where variance arises after a long
prefix (or where a root is expensive to set up), and costs where the outcome is decided early. So a
few pilot trees are branched at places that do not depend on outcomes, the variance that arises
between one place and the next is estimated (nested analysis of variance), and the number of nodes
at each level is chosen near N_l ~ sqrt(tau_l^2 / cost_l), the optimum for a fixed budget. The
answer may be independent chains.

The pilot is not lost: its own estimate is unbiased, and joins the others by what it cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod, sqrt
from statistics import fmean, median_low

from ramify.contracts.errors import UsageError
from ramify.kernel.outline import leaf_returns
from ramify.kernel.tree import Tree
from ramify.kernel.value import Values, tree_values

_WIDTHS = (1, 2, 3, 4, 6, 8)
_LEAST_ROOTS = 4
_LEAST_PILOTS = 3
_DOUBT = 0.25
"""Standard errors of its efficiency that a plan must be ahead by. More keeps chains too often where
decisions come late, less is led by noise where they come early (benchmarks/tree_value.py)."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """One pilot tree.

    Attributes:
        values: the tree, valued by child means.
        costs: of each edge (steps, seconds, tokens: the same unit everywhere); 0 where not named.
        places: steps of the agent on the path to each node that branches.
        setup: cost of a root before its first step.
    """

    values: Values
    costs: Mapping[int, float]
    places: Mapping[int, int]
    setup: float = 0.0

    @property
    def cost(self) -> float:
        """What the whole tree cost."""
        return self.setup + sum(self.costs.values())


@dataclass(frozen=True, slots=True)
class Level:
    """What happens between one place where pilots branch and the next.

    Attributes:
        place: steps of the agent up to where it begins (the median); 0 for the trunk.
        variance: of the value, that is decided here (tau^2).
        cost: of one path through it.
    """

    place: int
    variance: float
    cost: float


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """How to spend a budget.

    Attributes:
        roots: independent trees, at least 4.
        branches: (steps of the agent, children), outermost first; none: independent chains.
        efficiency: how many times more chains would cost at equal variance, as expected.
        doubt: its standard error.
        levels: what the pilot showed, from the trunk on.
        why: the same in words.
    """

    roots: int
    branches: tuple[tuple[int, int], ...]
    efficiency: float
    doubt: float
    levels: tuple[Level, ...]
    why: str

    @property
    def chains(self) -> bool:
        """Whether the answer is not to branch."""
        return not self.branches


def pilot(tree: Tree, *, setup_sec: float = 0.0, in_steps: bool = False) -> Pilot:
    """A recorded tree as a pilot.

    Args:
        tree: what was recorded.
        setup_sec: time from the start of the rollout to its first step.
        in_steps: count the agent's steps as costs, instead of seconds (`setup_sec` in steps, too).
    """
    costs: dict[int, float] = {}
    places = {0: 0}
    for node in range(1, len(tree)):
        step = tree.step(node)
        acted = step is not None and step.role == "agent"
        places[node] = places[tree.parent(node) or 0] + acted
        costs[node] = float(acted) if in_steps else (step.duration_sec if step else 0.0)
    return Pilot(tree_values(tree, leaf_returns(tree)), costs, places, setup_sec)


def plan_branches(
    pilots: Sequence[Pilot], *, chains: int = 8, fork_cost: float = 0.0, most_leaves: int = 16
) -> BranchPlan:
    """The plan that is expected to know V(root) best for the cost of so many chains.

    A plan must be better than chains by a part of the standard error of its own efficiency
    (jackknife over the pilots), so that noise alone does not speak for branching.

    Args:
        pilots: at least 3 trees of the same task or family of tasks, branched at the same places.
        chains: the budget, as the number of independent rollouts that it would pay for; at least 4.
        fork_cost: of one child beyond its steps, in the unit of the pilots' costs.
        most_leaves: of one tree.

    Raises:
        UsageError: too few pilots, a budget below 4 chains, or pilots that cost nothing.
    """
    if len(pilots) < _LEAST_PILOTS:
        raise UsageError(f"a plan needs at least {_LEAST_PILOTS} scored pilot trees")
    if chains < _LEAST_ROOTS:
        raise UsageError(f"a plan needs a budget of at least {_LEAST_ROOTS} chains, not {chains}")
    studies = [_study(one) for one in pilots]
    levels = _levels(studies)
    chain_cost = sum(level.cost for level in levels)
    if chain_cost <= 0:
        raise UsageError("the pilots cost nothing; give costs in steps or seconds")
    halves = [_levels(studies[:i] + studies[i + 1 :]) for i in range(len(studies))]
    best, best_lead, best_error = (1,) * (len(levels) - 1), 1.0, 0.0
    for widths in _candidates(len(levels) - 1, most_leaves):
        if _cost(levels, widths, fork_cost) * _LEAST_ROOTS > chains * chain_cost:
            continue
        efficiency = _efficiency(levels, widths, fork_cost)
        error = _jackknife([_efficiency(h, widths, fork_cost) for h in halves])
        if efficiency - _DOUBT * error > best_lead - _DOUBT * best_error:
            best, best_lead, best_error = widths, efficiency, error
    roots = int(chains * chain_cost / _cost(levels, best, fork_cost) + 1e-9)
    return _plan(levels, best, max(roots, _LEAST_ROOTS), best_lead, best_error)


@dataclass(slots=True)
class _Study:
    """What one pilot shows of each level: sums, so that pilots can be put together.

    Attributes:
        root, root_variance: its V(root), and SE^2 of the first place below it.
        freedom, spread, within: of each level, over the nodes that branch: degrees of freedom, sum
            of squares between children, and the children's own SE^2 times degrees of freedom.
        costs, places: of each segment, and of each node that branches, by level.
    """

    root: float
    root_variance: float
    freedom: dict[int, int] = field(default_factory=dict[int, int])
    spread: dict[int, float] = field(default_factory=dict[int, float])
    within: dict[int, float] = field(default_factory=dict[int, float])
    costs: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    places: dict[int, list[int]] = field(default_factory=dict[int, list[int]])


def _study(pilot: Pilot) -> _Study:
    values = pilot.values
    if values.value[0] is None:
        raise UsageError("a pilot tree has no scored leaf; leave it out")
    children = values.outline.children()
    end, cost = _follow(pilot, children, 0)
    study = _Study(float(values.value[0]), _known(values, end), costs={0: [pilot.setup + cost]})
    pending = [(end, 1)]
    while pending:
        node, level = pending.pop()
        draws = [child for child in children[node] if values.sampled[child]]
        if len(draws) < 2:
            continue
        below = [(child, *_follow(pilot, children, child)) for child in draws]
        n = len(draws)
        variance = values.variance[node]
        assert variance is not None
        inner = fmean(_known(values, end) for _, end, _ in below)
        study.freedom[level] = study.freedom.get(level, 0) + n - 1
        study.spread[level] = study.spread.get(level, 0.0) + float(variance) * n * (n - 1)
        study.within[level] = study.within.get(level, 0.0) + inner * (n - 1)
        study.places.setdefault(level, []).append(pilot.places.get(node, 0))
        for child, end, cost in below:
            study.costs.setdefault(level, []).append(cost + pilot.costs.get(child, 0.0))
            pending.append((end, level + 1))
    return study


def _follow(pilot: Pilot, children: Sequence[Sequence[int]], node: int) -> tuple[int, float]:
    """The next node below (or this one) with two or more draws, or the end; and the cost of it.

    Past options that were enumerated there is no single path: they end a segment, and cost all.
    """
    cost = 0.0
    sampled = pilot.values.sampled
    while True:
        draws = [child for child in children[node] if sampled[child]]
        options = pilot.values.options.get(node, {})
        if len(draws) == 1 or len(options) == 1:
            draws = draws or list(options)
            node = draws[0]
            cost += pilot.costs.get(node, 0.0)
            continue
        if not draws:
            below = list(children[node])
            while below:
                child = below.pop()
                cost += pilot.costs.get(child, 0.0)
                below += children[child]
        return node, cost


def _known(values: Values, node: int) -> float:
    """SE^2 of a node; an end, which decides nothing further, has 0."""
    variance = values.variance[node]
    return 0.0 if variance is None else float(variance)


def _levels(studies: Sequence[_Study]) -> tuple[Level, ...]:
    """Variance components and costs, from the trunk on."""
    roots = [study.root for study in studies]
    mean = fmean(roots)
    between = sum((x - mean) ** 2 for x in roots) / max(len(roots) - 1, 1)
    within = fmean(study.root_variance for study in studies)
    found = [Level(0, max(between - within, 0.0), _mean_cost(studies, 0))]
    for level in range(1, 1 + max(max(study.freedom, default=0) for study in studies)):
        freedom = sum(study.freedom.get(level, 0) for study in studies)
        inside = sum(s.spread.get(level, 0.0) - s.within.get(level, 0.0) for s in studies)
        variance = max(inside / freedom, 0.0) if freedom else 0.0
        places = [place for study in studies for place in study.places.get(level, [])]
        place = median_low(places) if places else 0
        found.append(Level(place, variance, _mean_cost(studies, level)))
    return tuple(found)


def _mean_cost(studies: Sequence[_Study], level: int) -> float:
    costs = [cost for study in studies for cost in study.costs.get(level, [])]
    return fmean(costs) if costs else 0.0


def _candidates(levels: int, most_leaves: int) -> Iterator[tuple[int, ...]]:
    """Children at each level, for trees that are not too large."""
    for widths in product(_WIDTHS, repeat=levels):
        if 1 < prod(widths) <= most_leaves:
            yield widths


def _cost(levels: Sequence[Level], widths: Sequence[int], fork_cost: float) -> float:
    """Of one tree."""
    cost, nodes = levels[0].cost, 1
    for level, width in zip(levels[1:], widths, strict=True):
        nodes *= width
        cost += nodes * (level.cost + (fork_cost if width > 1 else 0.0))
    return cost


def _variance(levels: Sequence[Level], widths: Sequence[int]) -> float:
    """Of the value of one tree."""
    variance, nodes = levels[0].variance, 1
    for level, width in zip(levels[1:], widths, strict=False):
        nodes *= width
        variance += level.variance / nodes
    return variance


def _efficiency(levels: Sequence[Level], widths: Sequence[int], fork_cost: float) -> float:
    """Variance times cost of chains, over that of the plan."""
    padded = [*levels, *[Level(0, 0.0, 0.0)] * (len(widths) + 1 - len(levels))]
    alone = sum(level.variance for level in padded) * sum(level.cost for level in padded)
    plan = _variance(padded, widths) * _cost(padded, widths, fork_cost)
    return alone / plan if plan else 1.0


def _jackknife(without_one: Sequence[float]) -> float:
    """Standard error of a figure, from the same with each pilot left out."""
    n, mean = len(without_one), fmean(without_one)
    return sqrt((n - 1) / n * sum((x - mean) ** 2 for x in without_one))


def _plan(
    levels: tuple[Level, ...], widths: Sequence[int], roots: int, efficiency: float, doubt: float
) -> BranchPlan:
    branches = tuple(
        (level.place, width) for level, width in zip(levels[1:], widths, strict=True) if width > 1
    )
    whole = sum(level.variance for level in levels) or 1.0
    cost = sum(level.cost for level in levels)
    shares = "; ".join(
        f"{where} {level.variance / whole:.0%} of the variance arises, "
        f"for {level.cost / cost:.0%} of the cost"
        for where, level in zip(_stretches(levels), levels, strict=True)
    )
    if branches:
        places = ", ".join(f"{width} children after step {place}" for place, width in branches)
        answer = (
            f"{roots} roots with {places}: chains would cost {efficiency:.2f} ± {doubt:.2f} times "
            "as much at equal variance"
        )
    else:
        answer = f"{roots} independent chains: no branching is clearly better"
    return BranchPlan(roots, branches, efficiency, doubt, levels, f"{answer} ({shares})")


def _stretches(levels: Sequence[Level]) -> Iterator[str]:
    """Where each level lies, in words: what is before the first branch belongs to the root."""
    ends = [level.place for level in levels[1:]]
    for n, (level, end) in enumerate(zip(levels, [*ends, None], strict=True)):
        since = "from the start" if n == 0 else f"from step {level.place}"
        if end is None:
            yield f"{since} on"
        elif n == 0 and end == 0:
            yield "before the first step"
        else:
            yield f"{since} up to step {end}"
