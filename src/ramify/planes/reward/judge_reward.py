"""A judge's verdict as the reward of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import UsageError
from ramify.contracts.reward import Granularity, RewardEvent, Space, VerifyResult
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.judge_verdict import Assessor, Verdict
from ramify.planes.reward.transcript import final_answer, written

Shown = Literal["answer", "conversation"]


class JudgeReward:
    """Lets a judge say how good the answer of a rollout is. Implements `Reward`.

    The judge is shown the task, its target as the reference where there is one, and the policy's
    last words, or the whole conversation since the task was given.

    Args:
        judge: a Judge, a JudgePanel, or one of them calibrated.
        show: what of the rollout is judged.
        space: what the signal is about.
        reference: whether the task's target is shown.
    """

    def __init__(
        self,
        judge: Assessor,
        *,
        show: Shown = "answer",
        space: Space = Space.OUTPUT,
        reference: bool = True,
    ) -> None:
        self._judge, self._show, self._space, self._reference = judge, show, space, reference

    @property
    def name(self) -> str:
        """The judge's name."""
        return self._judge.name

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Ask the judge.

        Raises: RewardFailedError and InvalidRewardError as the judge does, UsageError (it would
        ask the policy that is judged).
        """
        refuse_policy(self._judge, ctx)
        completion = node.messages[len(node.path[0].messages) :]
        work = final_answer(completion) if self._show == "answer" else written(completion)
        material = {**task_material(ctx.task, reference=self._reference), self._show: work}
        return as_result(await self._judge.assess(material), self._space)


def task_material(task: Task, *, reference: bool = True) -> dict[str, str]:
    """What a judge is shown of a task: `task`, and its target as `reference`."""
    material = {"task": task.instruction}
    target: object = task.target
    if reference and target is not None:
        material["reference"] = (
            target if isinstance(target, str) else msgspec.json.encode(target).decode()
        )
    return material


def refuse_policy(judge: Assessor, ctx: Context) -> None:
    """Raise UsageError where a judge would ask the policy that is judged, without leave."""
    if ctx.model is not None and judge.asks(ctx.model):
        raise UsageError(
            f"{judge.name} would let the policy {ctx.model.name} judge itself; give the judge a "
            "model of its own, or say may_be_policy=True"
        )


def as_result(
    verdict: Verdict, space: Space, granularity: Granularity = Granularity.TERMINAL
) -> VerifyResult:
    """A verdict as the score of a node, its criteria and its cost as metrics."""
    items: Mapping[str, float] = {
        **verdict.criteria,
        "judge_calls": float(verdict.calls),
        "judge_tokens": float(verdict.usage.input_tokens + verdict.usage.output_tokens),
        **({"agreement": verdict.agreement} if verdict.agreement is not None else {}),
    }
    return VerifyResult(
        reward=verdict.score,
        items=dict(items),
        events=(RewardEvent(verdict.judge or "judge", verdict.score, space, granularity),),
        space=space,
        granularity=granularity,
        grader_isolation="host",
        details={"verdict": verdict.details()},
    )
