"""What runs one attempt of one rollout in this process."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from ramify import compose
from ramify.contracts.context import CancelScope, Clock, Context
from ramify.contracts.events import Observer
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.task import TaskPackage
from ramify.engine.redact import Redactor
from ramify.engine.store import Store
from ramify.envs.options import PLANNED
from ramify.envs.plan import (
    PlannedTask,
    RunPlan,
)
from ramify.envs.planned import PlannedBranches
from ramify.envs.stages import stages_of
from ramify.kernel.places import Extra
from ramify.kernel.plan import RolloutPlan
from ramify.kernel.policy import BranchPolicy, parse_branch
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.rollout import run_rollout

_VERIFY_SEC = 1800.0
WORLDS = "worlds"
"""Where, below the run directory, worlds keep what outlives a rollout."""


@dataclass(frozen=True, slots=True)
class RolloutWorker:
    """Builds a rollout from a plan and runs it.

    Attributes:
        plan: the job's plan.
        store: where artifacts go.
        observer: sees every event of the rollout.
        clock: time.
        cancel: the job's cancel scope.
        ready: awaited after each step, for backpressure.
        extra_place: waits for leave to run one more path side by side.
        fleets: the services that rollouts share (`compose.fleets`).
        redactor: keeps secrets out of results; events that `observer` gets go through it there.
        planned: decides where rollouts branch, where that is planned.
    """

    plan: RunPlan
    store: Store
    observer: Observer
    clock: Clock
    cancel: CancelScope
    ready: Callable[[], Awaitable[None]]
    extra_place: Extra
    fleets: object
    redactor: Redactor
    planned: PlannedBranches | None = None

    async def __call__(self, item: WorkItem) -> RolloutResult:
        """Run one attempt. Whatever happens in it becomes a result, without secrets.

        Raises StoreError (there is no room for its artifacts), and the cancellation of the task.
        """
        plan, ctx = self.prepare(item)
        if self.planned is None:
            return self.redactor.clean(await run_rollout(plan, ctx))
        policy = await self.planned.policy(item)
        try:
            result = await run_rollout(replace(plan, policy=policy), ctx)
            self.planned.finished(result, plan.recorder.tree)
        finally:
            self.planned.ended(item)
        return self.redactor.clean(result)

    def prepare(self, item: WorkItem) -> tuple[RolloutPlan, Context]:
        """The parts of one attempt; nothing of it runs yet."""
        planned = self.plan.tasks[item.task_id]
        recorder = TreeRecorder(item.rollout_id, self.observer, self.clock, self.ready)
        ctx = Context(
            task=planned.task,
            config=self.plan.options.rollout,
            rollout_id=item.rollout_id,
            clock=self.clock,
            rng=random.Random(item.seed),
            cancel=self.cancel,
            observer=self.observer,
            recorder=recorder,
            artifacts=self.store.rollout_dir(item.rollout_id),
            model=self.plan.model,
            resources=self.plan.options.resources,
            sandboxes=self.plan.provider,
        )
        return self._rollout(item, planned, recorder), ctx

    def _rollout(self, item: WorkItem, planned: PlannedTask, recorder: TreeRecorder) -> RolloutPlan:
        package = planned.task.package
        return RolloutPlan(
            item=item,
            provider=self.plan.provider,
            spec=planned.spec,
            agent=self.plan.agent,
            environment=compose.environment(planned.task, self.store.path / WORLDS, self.fleets),
            stages=stages_of(planned.task, planned.isolation, planned.rewards),
            recorder=recorder,
            reward_strategy=package.reward_strategy if package else "mean",
            collect=compose.artifact_collector(),
            readiness_timeout_sec=compose.readiness_timeout(planned.task),
            verify_timeout_sec=self._verify_timeout(package),
            minimum_reward=package.verifier.reward_range[0] if package else 0.0,
            model=self.plan.model.name if self.plan.model else "",
            policy=self._policy(),
            fidelity=self.plan.options.fidelity,
            keep_worlds=self.plan.options.branch is not None,
            extra_place=self.extra_place,
        )

    def _policy(self) -> BranchPolicy | None:
        branch = self.plan.options.branch
        return parse_branch(branch) if branch not in (None, PLANNED) else None

    def _verify_timeout(self, package: TaskPackage | None) -> float:
        """Twice the tests' own time (once more on an untouched workspace), and room to prepare."""
        if package is None:
            return _VERIFY_SEC
        longest = max(
            [package.verifier.timeout_sec, *(s.verifier.timeout_sec for s in package.steps)]
        )
        own = 2 * longest * self.plan.options.rollout.timeout_multiplier
        return own + package.setup_timeout_sec + _VERIFY_SEC
