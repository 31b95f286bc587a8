"""Rollouts that branch, in virtual time and many schedules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from branch_parts import PathReward, Play, WalkAgent, WalkWorld

from ramify.contracts.context import Context
from ramify.contracts.errors import EnvironmentFailed, InvalidRewardError, SandboxStartError
from ramify.contracts.events import CheckpointEvent, LogEvent, WorldEvent
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Fidelity, NodeStatus, Outcome
from ramify.kernel.outline import leaf_returns
from ramify.kernel.policy import BranchPolicy, parse_branch
from ramify.kernel.tree import tree_from_events
from ramify.testing.sim import simulate

SEEDS = range(6)


def numbered(memory: str, ctx: Context) -> str:
    """Each path writes the number of its branch, so that paths differ."""
    return ctx.artifacts.name[-1] if "branches" in str(ctx.artifacts) else "t"


def make(
    tmp_path: Path, branch: str | BranchPolicy | None, length: int = 4, live: bool = True
) -> Play:
    policy = parse_branch(branch) if isinstance(branch, str) else branch
    agent = WalkAgent(length, numbered)
    return Play(tmp_path, agent, PathReward(lambda path: float(len(set(path)))), policy, live)


def play(it: Play, seed: int, **options: object) -> RolloutResult:
    result = simulate(lambda: it.run(**options), seed=seed)
    assert isinstance(result, RolloutResult)
    return result


def nothing_left(it: Play) -> None:
    assert not it.provider.alive, "every sandbox is torn down"
    assert not it.provider.images, "every checkpoint is discarded"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("live", [True, False])
def test_a_group_shares_its_prefix(tmp_path: Path, seed: int, live: bool) -> None:
    it = make(tmp_path, "group:3@step:2", live=live)
    result = play(it, seed)
    assert (result.outcome, result.leaves, result.dropped) == (Outcome.SCORED, 3, 0)
    assert len(it.leaf_paths) == 3
    assert all(path.startswith("tt") and len(path) == 4 for path in it.leaf_paths)
    assert it.agent.connected == 1, "children get the session, not a new one"
    assert result.steps == 2 + 3 + 3 * 2, "the shared prefix is there once"
    assert result.reward == 2.0
    (checkpoint,) = [e for e in it.observer.events if isinstance(e, CheckpointEvent)]
    assert (checkpoint.node, checkpoint.live) == (2, live)
    assert it.tree.state(2) == checkpoint.snapshot
    for child in it.tree.children(2):
        step = it.tree.step(child)
        assert step is not None
        assert step.branch_reason == "group@2"
        assert step.info["fidelity"] == "live"
        assert step.info["services"] == {"mail": "live" if live else "restart"}
    assert all(it.tree.status(leaf) is NodeStatus.SCORED for leaf in it.tree.leaves())
    nothing_left(it)


@pytest.mark.parametrize("seed", SEEDS)
def test_branches_nest_and_each_child_sees_its_own_world(tmp_path: Path, seed: int) -> None:
    it = make(tmp_path, "depth:1x2,2x2,3x2")
    result = play(it, seed)
    assert result.leaves == 8
    assert it.world.log.count("quiesce live=True") == 1 + 2 + 4
    assert sorted(it.reward.seen) == it.leaf_paths
    rebuilt = tree_from_events(it.observer.events)
    assert [rebuilt.parent(n) for n in range(len(rebuilt))] == [
        it.tree.parent(n) for n in range(len(it.tree))
    ]
    assert len([e for e in it.observer.events if isinstance(e, WorldEvent)]) == 7 + 8
    nothing_left(it)


def test_the_hash_of_a_tree_does_not_depend_on_the_schedule(tmp_path: Path) -> None:
    def same(memory: str, ctx: Context) -> str:
        return "x"

    hashes: set[str] = set()
    for seed in SEEDS:
        it = make(tmp_path / str(seed), "depth:1x2,2x3")
        it.agent.decide = same
        hashes.add(play(it, seed).trajectory_hash)
    assert len(hashes) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_values_of_places_along_one_path(tmp_path: Path, seed: int) -> None:
    it = make(tmp_path, "values:3x2", length=6)
    result = play(it, seed)
    assert result.leaves == 1 + 3 * 2
    branched = [n for n in range(len(it.tree)) if len(it.tree.children(n)) > 1]
    assert len(branched) == 3
    assert all(len(it.tree.children(n)) == 3 for n in branched), "the first path counts, too"
    nothing_left(it)


def test_a_branch_before_the_first_step(tmp_path: Path) -> None:
    it = make(tmp_path, "group:4@step:0", length=2)
    result = play(it, 1)
    assert result.leaves == 4
    assert it.provider.made[0].frozen
    assert len(it.provider.made) == 5
    nothing_left(it)


def test_a_path_that_ends_before_the_branch_is_a_chain(tmp_path: Path) -> None:
    it = make(tmp_path, "group:4@step:9", length=2)
    result = play(it, 1)
    assert (result.leaves, result.reward_se, result.outcome) == (1, None, Outcome.SCORED)
    nothing_left(it)


def test_values_are_child_means_with_errors_between_children(tmp_path: Path) -> None:
    it = make(tmp_path, "group:3@step:0", length=2)
    rewards = iter([1.0, 0.0, 1.0])
    it.reward.worth = lambda path: next(rewards)
    result = play(it, 0)
    assert result.reward == pytest.approx(2 / 3, abs=1e-12)
    assert result.reward_se == pytest.approx(float(Fraction(1, 3)), abs=1e-12)
    assert not result.biased


@pytest.mark.parametrize("seed", SEEDS)
def test_a_child_that_the_world_fails_is_made_again(tmp_path: Path, seed: int) -> None:
    it = make(tmp_path, "group:3@step:2")
    it.world.fail_forks = [EnvironmentFailed("mail did not start")]
    result = play(it, seed)
    assert (result.outcome, result.leaves, result.dropped) == (Outcome.SCORED, 4, 1)
    failed = [n for n in it.tree.leaves() if it.tree.status(n) is NodeStatus.ENV_ERROR]
    assert len(failed) == 1, "the tree shows it, and the value leaves it out"
    (said,) = [e for e in it.observer.events if isinstance(e, LogEvent)]
    assert said.fields["node"] == failed[0]
    assert "mail did not start" in said.fields["message"]
    assert result.reward == 2.0
    nothing_left(it)


def test_children_that_fail_for_good_are_left_out_and_counted(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2")
    it.reward.fail = [SandboxStartError("no room")] * 2
    result = play(it, 3)
    assert result.dropped == 2
    assert result.outcome is Outcome.SCORED
    assert result.reward is not None


def test_all_children_fail(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2")
    it.reward.fail = [SandboxStartError("no room")] * 9
    result = play(it, 3)
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)
    assert result.error is not None
    assert result.error.retryable
    nothing_left(it)


def test_wrecked_evidence_counts_as_the_minimum(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2")
    it.reward.fail = [InvalidRewardError("missing", "no reward file")]
    result = play(it, 3, minimum_reward=-1.0)
    assert (result.reward, result.dropped) == ((2.0 - 1.0) / 2, 0)
    assert sorted(leaf_returns(it.tree).values()) == [-1.0, 2.0], "the tree says the same"


def test_a_service_that_would_lose_its_memory_refuses_by_name(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2", live=False)
    it.world.refuses = "calendar"
    result = play(it, 0)
    assert result.outcome is Outcome.INFRA_ERROR
    assert result.error is not None
    assert "calendar" in result.error.message
    assert not result.error.retryable
    nothing_left(it)


def test_never_a_silent_downgrade(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2", live=False)
    it.agent.needs_processes = True
    result = play(it, 0)
    assert result.error is not None
    assert "`fresh`" in result.error.message
    nothing_left(it)


def test_a_fresh_session_where_the_caller_allows_it(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2", live=False, length=3)
    it.agent.needs_processes = True

    def restart(memory: str, ctx: Context) -> str:
        return "t"

    it.agent.decide = restart
    it.reward.worth = lambda path: 1.0
    result = play(it, 0, fidelity=Fidelity.FRESH)
    # A fresh session does not know what the file holds; this agent takes that for a broken world.
    assert it.agent.connected == 3
    assert result.leaves >= 2


def test_a_refused_live_checkpoint_falls_back_and_says_so(tmp_path: Path) -> None:
    it = make(tmp_path, "group:2@step:2")

    async def program(sandbox: object, call: object, process: object) -> int:
        await asyncio.sleep(1e9)
        return 0

    it.provider.on_spawn("daemon", program)
    original = it.world.provision

    async def provision(sandbox, ctx):  # type: ignore[no-untyped-def]
        await original(sandbox, ctx)
        await sandbox.spawn("daemon")

    it.world.provision = provision  # type: ignore[method-assign]
    result = play(it, 0)
    assert result.outcome is Outcome.SCORED
    assert it.world.log.count("resume") == 1
    step = it.tree.step(it.tree.children(2)[0])
    assert step is not None
    assert "cannot be captured" in str(step.info["why"])
    nothing_left(it)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("after", [0.5, 1.5, 2.0, 2.5, 3.5])
def test_a_cancelled_rollout_leaves_nothing(tmp_path: Path, seed: int, after: float) -> None:
    it = make(tmp_path, "depth:1x2,2x2")

    async def main() -> RolloutResult:
        running = asyncio.ensure_future(it.run())
        await asyncio.sleep(after)
        it.scope.cancel("enough")
        return await running

    result = simulate(main, seed=seed)
    assert result.outcome is Outcome.CANCELLED
    assert result.reward is None
    nothing_left(it)


@pytest.mark.parametrize("seed", SEEDS)
def test_children_share_the_places_of_the_job(tmp_path: Path, seed: int) -> None:
    it = make(tmp_path, "group:6@step:1", length=3)
    most = 0

    async def main() -> RolloutResult:
        nonlocal most
        limit = asyncio.Semaphore(1)

        @asynccontextmanager
        async def extra() -> AsyncGenerator[None]:
            async with limit:
                yield

        running = asyncio.ensure_future(it.run(extra_place=extra))
        while not running.done():
            most = max(most, sum(not s.frozen for s in it.provider.alive.values()))
            await asyncio.sleep(0.05)
        return running.result()

    result = simulate(main, seed=seed)
    assert result.leaves == 6
    assert most == 2, "its own place and one more"
    nothing_left(it)


@pytest.mark.parametrize(
    "text", ["group:1@step:2", "group:x@step:2", "depth:", "values:0x2", "entropy:2", "nonsense"]
)
def test_a_bad_policy_is_refused(text: str) -> None:
    from ramify.contracts.errors import UsageError

    with pytest.raises(UsageError, match="branch"):
        parse_branch(text)


def test_world_is_unused_without_a_policy(tmp_path: Path) -> None:
    it = make(tmp_path, None)
    it.world = WalkWorld()
    result = play(it, 0)
    assert result.leaves == 1
    assert it.world.log == ["provision", "teardown"]


def test_a_step_recorded_while_its_turn_is_stopped_does_not_branch(tmp_path: Path) -> None:
    """An agent that records what it was stopped in must not wait for a checkpoint then."""
    it = make(tmp_path, "group:2@step:1")
    it.agent.step_sec = 1e6
    it.agent.last_words = True
    result = play(it, 0)
    assert (result.outcome, result.leaves) == (Outcome.AGENT_TIMEOUT, 1)
    nothing_left(it)
