"""Tasks of several steps: one session, one sandbox, a score for each step and one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lifecycle_parts import Deed, Stage

from ramify.contracts.context import Context
from ramify.contracts.errors import (
    AgentError,
    EnvironmentFailed,
    InvalidRewardError,
    LimitExceededError,
)
from ramify.contracts.events import NodeEvent, Phase, RewardGiven
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.task import Task
from ramify.contracts.tree import Outcome, RolloutNode, StepKind
from ramify.kernel.stages import Stage as KernelStage
from ramify.testing.sim import simulate


@dataclass
class Marks:
    """Gives each stage the next of some results."""

    results: list[VerifyResult | Exception]
    seen: list[tuple[str, Path, int]] = field(default_factory=list)

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        self.seen.append((ctx.task.instruction, ctx.artifacts, node.id))
        found = self.results[len(self.seen) - 1]
        if isinstance(found, Exception):
            raise found
        return found


def mark(reward: float, isolation: str = "outputs", **items: float) -> VerifyResult:
    return VerifyResult(reward, items, (RewardEvent("reward", reward),), grader_isolation=isolation)


def play(
    tmp_path: Path,
    results: Sequence[VerifyResult | Exception],
    bounds: Sequence[dict[str, float]] = (),
    deeds: dict[str, Deed] | None = None,
    strategy: str = "mean",
) -> tuple[Stage, RolloutResult, Marks]:
    marks = Marks(list(results))
    stages = [
        KernelStage(
            Task("set:one", input=f"Do {index}."),
            marks,
            50.0,
            f"s{index}",
            dict(enumerate(bounds)).get(index, {}),
        )
        for index in range(len(results))
    ]
    stage = Stage(tmp_path, deeds=deeds or {})
    result = simulate(lambda: stage.play(stages=stages, reward_strategy=strategy), 0)
    return stage, result, marks


def test_steps_share_sandbox_and_session_and_are_scored_by_themselves(tmp_path: Path) -> None:
    stage, result, marks = play(tmp_path, [mark(1.0, part=2), mark(0.5, "live"), mark(0.0)])
    assert (result.outcome, result.reward) == (Outcome.SCORED, 0.5)
    assert result.grader_isolation == "live", "the weakest of all"
    assert result.items["s0.reward"] == 1.0
    assert result.items["s0.part"] == 2.0
    assert result.items["part"] == pytest.approx(2 / 3)
    again = [Phase.PROVISION, Phase.READINESS, Phase.EXECUTE, Phase.VERIFY]
    first = [Phase.SETUP, Phase.START, Phase.PROVISION, Phase.READINESS, Phase.CONNECT]
    assert stage.begun == [*first, *again, *again, *again, Phase.TEARDOWN]
    assert [seen[:2] for seen in marks.seen] == [
        (f"Do {index}.", tmp_path / "steps" / f"s{index}") for index in range(3)
    ]


def test_the_tree_shows_where_a_step_begins_and_what_it_was_worth(tmp_path: Path) -> None:
    stage, result, marks = play(tmp_path, [mark(1.0), mark(0.5)])
    nodes = [event for event in stage.observer.events if isinstance(event, NodeEvent)]
    edges = [event.step for event in nodes if event.step is not None]
    assert [edge.action for edge in edges] == ["step s0", "work", "step s1", "work"]
    assert [edge.info for edge in edges if edge.role == "task"] == [{"step": "s0"}, {"step": "s1"}]
    assert edges[0].kind is StepKind.ENUMERATED
    assert edges[0].prior == 1.0
    given = [event for event in stage.observer.events if isinstance(event, RewardGiven)]
    assert [(e.node, e.name, e.value, e.granularity) for e in given] == [
        (marks.seen[0][2], "s0.reward", 1.0, "step"),
        (marks.seen[1][2], "s1.reward", 0.5, "step"),
        (marks.seen[1][2], "reward", 0.75, "terminal"),
    ]
    assert result.steps == 4


def test_final_counts_the_last_step_that_was_reached(tmp_path: Path) -> None:
    _, result, _ = play(tmp_path, [mark(1.0), mark(0.25)], strategy="final")
    assert result.reward == 0.25


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        ({"reward": 0.5}, 2),
        ({"reward": 0.6}, 1),
        ({"part": 1.0}, 2),
        ({"part": 1.5}, 1),
        ({"other": 0.0}, 1),
        ({}, 2),
    ],
)
def test_a_bound_that_is_not_reached_leaves_out_the_rest(
    tmp_path: Path, bound: dict[str, float], reached: int
) -> None:
    _, result, marks = play(tmp_path, [mark(0.5, part=1), mark(1.0)], [bound])
    assert len(marks.seen) == reached
    assert result.reward == (0.75 if reached == 2 else 0.5)
    assert result.outcome is Outcome.SCORED


def in_turn(turn: int, error: Exception) -> Deed:
    count = 0

    async def deed(stage: Stage) -> None:
        nonlocal count
        count += 1
        if count == turn:
            raise error

    return deed


@pytest.mark.parametrize(
    ("error", "reached"), [(AgentError("no"), 3), (LimitExceededError("turns", "spent"), 2)]
)
def test_the_agents_failure_in_a_step_is_scored_and_stays_the_outcome(
    tmp_path: Path, error: Exception, reached: int
) -> None:
    deeds = {Phase.EXECUTE: in_turn(2, error)}
    _, result, marks = play(tmp_path, [mark(1.0), mark(0.0), mark(1.0)], deeds=deeds)
    assert result.outcome is Outcome.AGENT_ERROR
    assert len(marks.seen) == reached
    assert result.reward == pytest.approx(2 / 3 if reached == 3 else 0.5)


def test_a_step_that_cannot_be_set_up_is_the_worlds_failure(tmp_path: Path) -> None:
    deeds = {Phase.PROVISION: in_turn(3, EnvironmentFailed("no"))}
    stage, result, _ = play(tmp_path, [mark(1.0), mark(1.0)], deeds=deeds)
    assert (result.outcome, result.reward) == (Outcome.ENV_ERROR, None)
    assert stage.freed == ["session", "environment", "sandbox"]


def test_broken_evidence_of_one_step_is_worth_the_minimum(tmp_path: Path) -> None:
    _, result, _ = play(tmp_path, [mark(1.0), InvalidRewardError("tampered", "x"), mark(1.0)])
    assert (result.outcome, result.reward) == (Outcome.INVALID, 0.0)


def test_what_is_kept_is_kept_before_each_score(tmp_path: Path) -> None:
    kept: list[str] = []

    async def collect(ctx: Context) -> None:
        kept.append(ctx.artifacts.name)

    marks = Marks([mark(1.0), mark(1.0)])
    task = Task("set:one", input="Do it.")
    stages = [KernelStage(task, marks, 50.0, name) for name in ("a", "b")]
    simulate(lambda: Stage(tmp_path).play(stages=stages, collect=collect), 0)
    assert kept == ["a", "b"]
