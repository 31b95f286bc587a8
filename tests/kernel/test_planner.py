"""The planner: right components, right answers where they are clear, and refusals."""

from __future__ import annotations

import random

import pytest

from ramify.contracts.errors import UsageError
from ramify.contracts.messages import Message
from ramify.contracts.reward import RewardEvent
from ramify.contracts.tree import NodeStatus, Step, StepKind
from ramify.kernel.outline import Outline
from ramify.kernel.planner import Pilot, pilot, plan_branches
from ramify.kernel.tree import Tree
from ramify.kernel.value import tree_values


def grown(
    rng: random.Random,
    spread: tuple[float, ...],
    steps: tuple[int, ...],
    width: int,
    setup: float = 0,
) -> Pilot:
    """A tree whose levels add noise of these standard deviations, at these costs."""
    parents, costs, places, returns = [-1], dict[int, float](), {0: 0}, dict[int, float]()
    stack = [(0, 0, 0.0)]
    while stack:
        node, level, value = stack.pop()
        for _ in range(width if level else 1):
            child, reached = len(parents), value + rng.gauss(0, spread[level])
            parents.append(node)
            costs[child], places[child] = steps[level], places[node] + steps[level]
            if level + 1 < len(spread):
                stack.append((child, level + 1, reached))
            else:
                returns[child] = reached
    return Pilot(tree_values(Outline(parents), returns), costs, places, setup)


def test_components_of_variance_and_costs_are_found() -> None:
    rng = random.Random(3)
    pilots = [grown(rng, (1.0, 2.0, 0.5), (10, 20, 30), 3, setup=5) for _ in range(600)]
    plan = plan_branches(pilots)
    assert [level.place for level in plan.levels] == [0, 10, 30]
    assert [level.cost for level in plan.levels] == [15, 20, 30]
    assert [level.variance for level in plan.levels] == pytest.approx([1, 4, 0.25], rel=0.15)
    assert pilots[0].cost == 5 + 10 + 3 * 20 + 9 * 30


def test_it_branches_late_where_value_is_decided_late() -> None:
    rng = random.Random(5)
    plan = plan_branches([grown(rng, (0.1, 1.0), (90, 10), 4) for _ in range(8)])
    assert not plan.chains
    assert plan.efficiency > 2
    [(place, width)] = plan.branches
    assert place == 90
    assert width >= 3
    assert plan.roots >= 4
    assert f"{width} children after step 90" in plan.why
    assert "from the start up to step 90 " in plan.why
    assert "from step 90 on " in plan.why


def test_what_is_before_the_first_step_is_told_apart() -> None:
    rng = random.Random(5)
    plan = plan_branches([grown(rng, (0.5, 1.0, 0.5), (0, 10, 20), 3) for _ in range(8)])
    assert [level.place for level in plan.levels] == [0, 0, 10]
    told = plan.why[plan.why.rindex("(") :]
    assert told.startswith("(before the first step ")
    assert "; from step 0 up to step 10 " in told
    assert "; from step 10 on " in told


@pytest.mark.parametrize("seed", range(5))
def test_it_answers_chains_where_value_is_decided_early(seed: int) -> None:
    rng = random.Random(seed)
    plan = plan_branches([grown(rng, (1.0, 0.1), (10, 90), 2) for _ in range(8)], chains=16)
    assert plan.chains
    assert (plan.roots, plan.efficiency) == (16, 1.0)
    assert "16 independent chains" in plan.why


def test_a_dear_root_and_a_cheap_fork_speak_for_branching_and_a_dear_fork_against() -> None:
    def pilots(setup: float) -> list[Pilot]:
        rng = random.Random(7)
        return [grown(rng, (0.7, 0.7), (10, 10), 2, setup) for _ in range(30)]

    assert plan_branches(pilots(0)).chains
    assert not plan_branches(pilots(200)).chains
    assert plan_branches(pilots(20), fork_cost=100).chains


def test_nothing_varies_and_nothing_to_branch() -> None:
    rng = random.Random(1)
    assert plan_branches([grown(rng, (0, 0), (10, 10), 2) for _ in range(4)]).chains
    assert plan_branches([grown(rng, (1,), (10,), 1) for _ in range(4)]).chains


def test_the_budget_holds_and_four_roots_stay() -> None:
    rng = random.Random(2)
    for chains in (4, 8, 40):
        plan = plan_branches(
            [grown(rng, (0.1, 1, 1), (30, 5, 5), 3) for _ in range(10)], chains=chains
        )
        spent, nodes = plan.levels[0].cost, 1
        widths = dict(plan.branches)
        for level in plan.levels[1:]:
            nodes *= widths.get(level.place, 1)
            spent += nodes * level.cost
        assert plan.roots >= 4
        assert plan.roots * spent <= chains * 40 + 1e-6


def test_refusals() -> None:
    rng = random.Random(2)
    some = [grown(rng, (1, 1), (1, 1), 2) for _ in range(3)]
    with pytest.raises(UsageError, match="at least 3"):
        plan_branches(some[:2])
    with pytest.raises(UsageError, match="at least 4 chains"):
        plan_branches(some, chains=3)
    with pytest.raises(UsageError, match="cost nothing"):
        plan_branches([grown(rng, (1, 1), (0, 0), 2) for _ in range(3)])
    unscored = Pilot(tree_values(Outline([-1, 0]), {}), {}, {0: 0})
    with pytest.raises(UsageError, match="no scored leaf"):
        plan_branches([*some, unscored])


def test_a_recorded_tree_as_a_pilot() -> None:
    """A stage mark on the trunk and the marks that begin branches are no steps of the agent."""

    def recorded(rewards: tuple[float, float]) -> Tree:
        tree = Tree((Message("user", "go"),))
        at = tree.add(0, Step(kind=StepKind.ENUMERATED, prior=1.0, role="task"))
        for _ in range(3):
            at = tree.add(at, Step((Message("assistant", "x"),), duration_sec=2.0))
        for reward in rewards:
            leaf = tree.add(at, Step(role="branch", branch_reason="pilot"))
            leaf = tree.add(leaf, Step((Message("assistant", "y"),), duration_sec=1.0))
            tree.settle(leaf, NodeStatus.SCORED)
            tree.reward(leaf, RewardEvent("reward", reward))
        return tree

    pairs = ((0.0, 1.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    seconds = plan_branches([pilot(recorded(p), setup_sec=10.0) for p in pairs])
    assert [(level.place, level.cost) for level in seconds.levels] == [(0, 16.0), (3, 1.0)]
    assert seconds.branches[0][0] == 3
    steps = plan_branches([pilot(recorded(p), in_steps=True) for p in pairs])
    assert [level.cost for level in steps.levels] == [3.0, 1.0]
