"""What judges cost is counted where the policy's cost is, and apart from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded_parts import play as play_all

from ramify import JobReport, Judge, JudgeReward, Rubric
from ramify.contracts.errors import ModelRefusedError, UsageError
from ramify.contracts.messages import Message, Usage
from ramify.contracts.metering import charge, metering
from ramify.contracts.model import Model
from ramify.envs.rescore import score_records
from ramify.planes.reward.judge_cache import MemoryVerdicts
from ramify.testing.scripted_model import Reply, ScriptedModel, Seen

ONE = Usage(100, 10, calls=1, cost_usd=0.5)


async def play(out: Path, reward: Any, **options: Any) -> JobReport:
    """Run one task."""
    return await play_all(out, reward, task_ids=("set:a",), **options)


def judge_model(**how: Any) -> ScriptedModel:
    """Gives every answer the highest mark; each call costs the same."""

    def say(seen: Seen) -> Reply:
        system = next((m.content for m in seen.messages if m.role == "system"), "")
        nonce = system.partition("with the nonce ")[2].partition(":")[0]
        verdicts = [{"criterion": "verdict", "reason": "good", "mark": 10}]
        return Reply(json.dumps({"nonce": nonce, "verdicts": verdicts}), usage=ONE)

    return ScriptedModel(say, name="scripted/judge", **how)


def free_of_charge(completion: Sequence[Message]) -> float:
    return float(len(completion))


def judged(model: Model, **how: Any) -> Rubric:
    return Rubric([JudgeReward(Judge(model, "Good?", **how))], name="core")


async def test_each_rollout_has_its_own_and_the_job_all(tmp_path: Path) -> None:
    report = await play(tmp_path, judged(judge_model()), repeats=3)
    assert [result.grading for result in report.results] == [ONE] * 3
    assert [result.cost_usd for result in report.results] == [0.5] * 3
    assert report.summary.grading == ONE + ONE + ONE
    assert report.summary.usage == Usage()
    assert "grading" in json.loads(msgspec.json.encode(report.results[0]))


async def test_a_verdict_that_is_known_costs_nothing(tmp_path: Path) -> None:
    async def asks(completion: Sequence[Message], judge: Judge) -> float:
        return (await judge.assess({"answer": completion[0].content})).score

    judge = Judge(judge_model(), "Good?", cache=MemoryVerdicts())
    report = await play(tmp_path, Rubric([asks], objects={"judge": judge}), repeats=3)
    assert report.summary.grading == ONE
    assert sorted(result.grading.calls for result in report.results) == [0, 0, 1]


async def test_a_verdict_that_cannot_be_used_costs_too(tmp_path: Path) -> None:
    model = ScriptedModel(lambda seen: Reply("no", usage=ONE), name="scripted/judge")
    report = await play(tmp_path, judged(model), repeats=1)
    assert report.results[0].reward is None
    assert report.summary.grading.calls == len(model.calls) == 6


async def test_what_siblings_are_compared_by_is_counted_once(tmp_path: Path) -> None:
    judge = Judge(judge_model(), "Good?")

    async def best(completions: Sequence[Sequence[Message]]) -> list[float]:
        asked = [await judge.assess({"answer": str(each)}) for each in completions]
        return [verdict.score for verdict in asked]

    reward = Rubric([best, JudgeReward(judge, show="conversation")])
    report = await play(tmp_path, reward, repeats=3)
    assert not any(result.pending for result in report.results)
    calls = {result.repeat: result.grading.calls for result in report.results}
    # Alone: one each. Together: three for the group function, and each once more.
    assert calls[0] > calls[1] == calls[2] == 1
    assert report.summary.grading.calls == sum(calls.values())


async def test_the_job_stops_when_judges_have_spent_it(tmp_path: Path) -> None:
    report = await play(tmp_path, judged(judge_model()), repeats=9, max_cost_usd=1.2, concurrency=1)
    assert 3 <= report.summary.finished < 9
    assert report.summary.grading.cost_usd == 0.5 * report.summary.finished


async def test_a_judge_without_prices_cannot_be_limited(tmp_path: Path) -> None:
    model = ScriptedModel(
        lambda seen: Reply("no", usage=Usage(1, 1, calls=1)), name="scripted/judge"
    )
    with pytest.raises(UsageError, match=r"what the judge costs is not known.*-J input_price"):
        await play(tmp_path, judged(model), repeats=1, max_cost_usd=1.0)


async def test_scoring_again_counts_what_it_costs_itself(tmp_path: Path) -> None:
    report = await play(tmp_path, judged(judge_model()), repeats=2)
    again = await score_records(report.path, judged(judge_model(), name="twice"))
    assert again.report.summary.grading == ONE + ONE
    free = await score_records(report.path, Rubric([free_of_charge]))
    assert free.report.summary.grading == Usage()


async def test_a_failed_call_costs_nothing_and_the_meter_stays_sound(tmp_path: Path) -> None:
    model = judge_model(failures=[ModelRefusedError("no")])
    report = await play(tmp_path, judged(model), repeats=2, concurrency=1)
    assert [result.grading.calls for result in report.results] == [0, 1]
    with metering() as outer:
        with metering() as inner:
            charge(ONE)
        assert (outer.used, inner.used) == (Usage(), ONE)
    charge(ONE)  # nobody measures
