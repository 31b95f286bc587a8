"""One rollout's life, whatever goes wrong in which phase, in virtual time and many schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from lifecycle_parts import Deed, Stage, until

from ramify.contracts.config import RolloutConfig
from ramify.contracts.errors import (
    AgentError,
    AgentTimeoutError,
    EnvironmentFailed,
    InvalidRewardError,
    SandboxLostError,
    SandboxStartError,
)
from ramify.contracts.events import LogEvent, NodeEvent, Phase
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import VerifyResult
from ramify.contracts.tree import NodeStatus, Outcome
from ramify.kernel.tree import tree_from_events
from ramify.testing.sim import simulate

PHASES = [phase for phase in Phase if phase is not Phase.BRANCH]
LIVE = PHASES[:-1]
SEEDS = range(8)
FREED_AFTER = {
    Phase.SETUP: [],
    Phase.START: [],
    Phase.PROVISION: ["environment", "sandbox"],
    Phase.READINESS: ["environment", "sandbox"],
    Phase.CONNECT: ["environment", "sandbox"],
    Phase.EXECUTE: ["session", "environment", "sandbox"],
    Phase.VERIFY: ["session", "environment", "sandbox"],
}
"""What stands, and so is torn down, when a phase is where it goes wrong."""


def raising(error: BaseException) -> Deed:
    async def deed(stage: Stage) -> None:
        await asyncio.sleep(0)
        raise error

    return deed


async def hang(stage: Stage) -> None:
    await asyncio.sleep(1e6)


async def call_it_off(stage: Stage) -> None:
    stage.scope.cancel("enough")
    await asyncio.sleep(1e6)


def played(
    tmp_path: Path,
    deeds: dict[str, Deed],
    seed: int = 0,
    config: RolloutConfig | None = None,
    stage: Stage | None = None,
    **options: float,
) -> tuple[Stage, RolloutResult]:
    stage = stage or Stage(tmp_path)
    stage.deeds = deeds
    result = simulate(lambda: stage.play(config, **options), seed)
    return stage, result


def check_end(stage: Stage, result: RolloutResult, failed: Phase) -> None:
    """What holds however a rollout ended."""
    assert [e.outcome for e in stage.outcomes] == [result.outcome], "exactly one outcome"
    assert stage.outcomes[0].reward == result.reward
    assert stage.freed == FREED_AFTER[failed], "newest first, each once"
    expected = PHASES[: PHASES.index(failed) + 1]
    assert stage.begun == [*expected, Phase.TEARDOWN]
    assert sorted(stage.ended) == sorted(stage.begun)
    leaf = list(tree_from_events(stage.observer.events).leaves())[-1]
    status = tree_from_events(stage.observer.events).status(leaf)
    assert status == NodeStatus(result.outcome.value), "the same word on the leaf"


@pytest.mark.parametrize("seed", SEEDS)
def test_all_goes_well(tmp_path: Path, seed: int) -> None:
    stage, result = played(tmp_path, {}, seed)
    assert (result.outcome, result.reward, result.error) == (Outcome.SCORED, 0.75, None)
    assert stage.begun == PHASES
    assert stage.freed == ["session", "environment", "sandbox"]
    assert result.items == {"parts": 3.0}
    assert result.grader_isolation == "outputs"
    assert set(result.timings) == {phase.value for phase in PHASES}
    check_end(stage, result, Phase.VERIFY)


OURS = {
    Phase.SETUP: Outcome.INFRA_ERROR,
    Phase.START: Outcome.INFRA_ERROR,
    Phase.PROVISION: Outcome.ENV_ERROR,
    Phase.READINESS: Outcome.ENV_ERROR,
    Phase.CONNECT: Outcome.INFRA_ERROR,
    Phase.EXECUTE: Outcome.INFRA_ERROR,
    Phase.VERIFY: Outcome.INFRA_ERROR,
}
"""What an unexpected error means: never the agent's 0."""


@pytest.mark.parametrize("make", [RuntimeError, TimeoutError, SandboxLostError])
@pytest.mark.parametrize("phase", LIVE)
def test_an_error_of_ours(tmp_path: Path, phase: Phase, make: Callable[[str], Exception]) -> None:
    for seed in SEEDS:
        stage, result = played(tmp_path, {phase: raising(make("it broke"))}, seed)
        lost = make is SandboxLostError
        assert result.outcome is (Outcome.INFRA_ERROR if lost else OURS[phase])
        assert result.reward is None, "not scored is not 0"
        assert result.error is not None
        assert result.error.phase == phase
        assert "it broke" in result.error.message
        check_end(stage, result, phase)


@pytest.mark.parametrize("phase", LIVE)
def test_cancelled_by_the_scope(tmp_path: Path, phase: Phase) -> None:
    for seed in SEEDS:
        stage, result = played(tmp_path, {phase: call_it_off}, seed)
        assert (result.outcome, result.reward) == (Outcome.CANCELLED, None)
        check_end(stage, result, phase)


@pytest.mark.parametrize("phase", LIVE)
def test_cancelled_as_a_task(tmp_path: Path, phase: Phase) -> None:
    """Whoever cancels the task gets its cancellation back, after the clean-up."""

    async def main(stage: Stage) -> None:
        task = asyncio.create_task(stage.play())
        await until(lambda: phase in stage.log)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for seed in SEEDS:
        stage = Stage(tmp_path, {phase: hang})
        simulate(lambda stage=stage: main(stage), seed)
        assert stage.freed == FREED_AFTER[phase]
        assert stage.outcomes == [], "an outcome is the job's to decide when it is torn down"


@pytest.mark.parametrize("phase", LIVE)
def test_a_stray_cancellation_is_ours(tmp_path: Path, phase: Phase) -> None:
    """A part whose own inner task was cancelled has failed; nobody asked the rollout to stop."""
    stage, result = played(tmp_path, {phase: raising(asyncio.CancelledError())})
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)
    check_end(stage, result, phase)


@pytest.mark.parametrize("seed", SEEDS)
def test_cancelled_before_it_began(tmp_path: Path, seed: int) -> None:
    async def main() -> tuple[Stage, RolloutResult]:
        stage = Stage(tmp_path)

        async def cancel_at_once() -> None:
            await until(lambda: stage.scope is not None)
            stage.scope.cancel("early")

        async with asyncio.TaskGroup() as group:
            playing = group.create_task(stage.play())
            group.create_task(cancel_at_once())
        return stage, playing.result()

    stage, result = simulate(main, seed)
    assert [e.outcome for e in stage.outcomes] == [result.outcome]
    if result.outcome is Outcome.SCORED:
        assert result.reward == 0.75
    else:
        assert (result.outcome, result.reward) == (Outcome.CANCELLED, None)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_agents_time_runs_out_and_it_is_verified_as_it_stands(
    tmp_path: Path, seed: int
) -> None:
    stage, result = played(tmp_path, {Phase.EXECUTE: hang}, seed, agent_timeout_sec=30.0)
    assert (result.outcome, result.reward) == (Outcome.AGENT_TIMEOUT, 0.75)
    assert "turn cancelled" in stage.log
    assert result.timings["execute"] == pytest.approx(30.0)
    assert stage.begun == PHASES
    assert result.error is not None
    assert "30 s" in result.error.message


def test_the_shorter_of_two_time_limits_binds(tmp_path: Path) -> None:
    config = RolloutConfig(timeout_sec=9.0, timeout_multiplier=2.0)
    _, result = played(tmp_path, {Phase.EXECUTE: hang}, 0, config, agent_timeout_sec=30.0)
    assert result.timings["execute"] == pytest.approx(9.0)
    config = RolloutConfig(timeout_multiplier=2.0)
    _, result = played(tmp_path, {Phase.EXECUTE: hang}, 0, config, agent_timeout_sec=30.0)
    assert result.timings["execute"] == pytest.approx(60.0)


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.EXECUTE])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (AgentError("gave up"), Outcome.AGENT_ERROR),
        (AgentTimeoutError("too slow"), Outcome.AGENT_TIMEOUT),
    ],
)
def test_the_agents_own_failure_is_scored(
    tmp_path: Path, phase: Phase, error: AgentError, outcome: Outcome
) -> None:
    for seed in SEEDS:
        stage, result = played(tmp_path, {phase: raising(error)}, seed)
        assert (result.outcome, result.reward) == (outcome, 0.75)
        assert Phase.VERIFY in stage.begun
        assert result.error is not None
        assert result.error.phase == phase


def test_a_sandbox_that_dies_under_the_agent_outweighs_the_agents_failure(tmp_path: Path) -> None:
    deeds = {
        Phase.EXECUTE: raising(AgentError("odd")),
        Phase.VERIFY: raising(SandboxLostError("gone")),
    }
    _, result = played(tmp_path, deeds)
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)


@pytest.mark.parametrize("reason", ["tampered", "missing", "malformed", "range", "no_evidence"])
@pytest.mark.parametrize("minimum", [0.0, -1.0])
def test_broken_evidence_is_worth_the_minimum(tmp_path: Path, reason: str, minimum: float) -> None:
    deeds = {Phase.VERIFY: raising(InvalidRewardError(reason, "the agent was here"))}
    stage, result = played(tmp_path, deeds, minimum_reward=minimum)
    assert (result.outcome, result.reward) == (Outcome.INVALID, minimum)
    assert result.invalid_reason == reason
    check_end(stage, result, Phase.VERIFY)


def test_a_reward_of_none_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lifecycle_parts import StagedReward

    async def nothing(self: StagedReward, node: object, ctx: object) -> VerifyResult:
        return VerifyResult(None)

    monkeypatch.setattr(StagedReward, "score", nothing)
    _, result = played(tmp_path, {})
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_agent_waits_until_the_world_is_healthy(tmp_path: Path, seed: int) -> None:
    stage, result = played(tmp_path, {}, seed, stage=Stage(tmp_path, healthy_after=4))
    assert result.outcome is Outcome.SCORED
    assert stage.healthy_at == pytest.approx(8.0)
    assert stage.agent_ran_at is not None
    assert stage.healthy_at is not None
    assert stage.agent_ran_at >= stage.healthy_at
    first_step = next(e for e in stage.observer.events if isinstance(e, NodeEvent) and e.step)
    ready = [e for e in stage.observer.events if getattr(e, "phase", None) is Phase.READINESS][-1]
    assert first_step.ts >= ready.ts


def test_a_world_that_never_gets_healthy(tmp_path: Path) -> None:
    stage, result = played(tmp_path, {}, stage=Stage(tmp_path, healthy_after=10**6))
    assert result.outcome is Outcome.ENV_ERROR
    assert result.error is not None
    assert "20 s" in result.error.message
    assert "not yet" in result.error.message
    assert stage.agent_ran_at is None
    check_end(stage, result, Phase.READINESS)


@pytest.mark.parametrize(
    "phase", [Phase.SETUP, Phase.START, Phase.PROVISION, Phase.CONNECT, Phase.VERIFY]
)
def test_a_part_that_keeps_no_deadline_does_not_hold_the_rollout(
    tmp_path: Path, phase: Phase
) -> None:
    stage, result = played(tmp_path, {phase: hang})
    assert result.outcome is Outcome.INFRA_ERROR
    assert result.error is not None
    assert f"{phase.value} did not end within" in result.error.message
    check_end(stage, result, phase)


def test_a_healthcheck_that_hangs(tmp_path: Path) -> None:
    stage, result = played(tmp_path, {Phase.READINESS: hang})
    assert result.outcome is Outcome.ENV_ERROR
    check_end(stage, result, Phase.READINESS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", ["session", "environment", "sandbox"])
@pytest.mark.parametrize(
    "deed",
    [raising(RuntimeError("stuck")), raising(asyncio.CancelledError()), hang],
    ids=["error", "stray cancellation", "hangs"],
)
def test_one_failing_clean_up_leaves_the_others_alone(
    tmp_path: Path, part: str, deed: Deed, seed: int
) -> None:
    stage, result = played(tmp_path, {part: deed}, seed)
    assert (result.outcome, result.reward) == (Outcome.SCORED, 0.75)
    assert stage.freed == ["session", "environment", "sandbox"]
    reports = [e for e in stage.observer.events if isinstance(e, LogEvent)]
    assert [report.fields["what"] for report in reports] == [part]


@pytest.mark.parametrize("phase", LIVE)
def test_clean_up_fails_after_a_failure(tmp_path: Path, phase: Phase) -> None:
    deeds = {phase: raising(SandboxStartError("first")), "environment": raising(OSError("second"))}
    stage, result = played(tmp_path, deeds)
    assert result.error is not None
    assert result.error.message == "first"
    check_end(stage, result, phase)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", ["session", "environment", "sandbox"])
def test_clean_up_goes_to_its_end_when_cancelled(tmp_path: Path, part: str, seed: int) -> None:
    """What was scored stays scored: a cancellation in teardown comes too late."""

    async def slow(stage: Stage) -> None:
        stage.scope.cancel("late")
        await asyncio.sleep(3)
        stage.log.append(f"{part} done")

    stage, result = played(tmp_path, {part: slow}, seed)
    assert (result.outcome, result.reward) == (Outcome.SCORED, 0.75)
    assert f"{part} done" in stage.log
    assert stage.freed == ["session", "environment", "sandbox"]


@pytest.mark.parametrize("seed", SEEDS)
def test_task_cancelled_in_teardown_ends_it_all_the_same(tmp_path: Path, seed: int) -> None:
    async def main() -> Stage:
        async def slow(stage: Stage) -> None:
            await asyncio.sleep(3)
            stage.log.append("done")

        stage = Stage(tmp_path, {"environment": slow})
        task = asyncio.create_task(stage.play())
        await until(lambda: "environment" in stage.log)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await task
        return stage

    stage = simulate(main, seed)
    assert "done" in stage.log
    assert stage.freed == ["session", "environment", "sandbox"]


def test_an_environment_error_while_the_agent_works(tmp_path: Path) -> None:
    stage, result = played(tmp_path, {Phase.EXECUTE: raising(EnvironmentFailed("db died"))})
    assert (result.outcome, result.reward) == (Outcome.ENV_ERROR, None)
    assert result.error is not None
    assert result.error.retryable
    check_end(stage, result, Phase.EXECUTE)
