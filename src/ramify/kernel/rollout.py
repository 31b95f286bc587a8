"""One rollout, from a work item to a result.

setup → start → provision → readiness → connect → execute → verify → teardown (seed 004).

A task of several steps goes through provision, readiness, execute and verify once more for each of
them, in the same sandbox and the same session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from ramify.contracts.agent import Agent, Session
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.environment import Environment
from ramify.contracts.errors import (
    AgentTimeoutError,
    EnvironmentFailed,
    FatalAgentError,
    InfraError,
    LimitExceededError,
)
from ramify.contracts.events import LogEvent, OutcomeEvent, Phase, PhaseEvent
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxProvider, SandboxSpec
from ramify.contracts.tree import NodeStatus, Outcome, Step, StepKind
from ramify.kernel.outcome import Verdict, classify
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.stages import Stage, combined, falls_short, of_step
from ramify.kernel.trajectory import trajectory, trajectory_hash

_Action = Callable[[], Awaitable[None]]

_BACKSTOP_SEC = {
    Phase.SETUP: 7200.0,
    Phase.START: 600.0,
    Phase.PROVISION: 7200.0,
    Phase.CONNECT: 600.0,
}
"""How long a phase may take at the very most. Providers keep shorter deadlines of their own; this
one is for a part that keeps none."""

_CLEANUP_SEC = 60.0
"""How long one clean-up action may take before it is reported and left to the sweeper."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What one rollout is made of.

    Attributes:
        item: identity, seed and lease.
        provider, spec: where it runs.
        agent: who acts.
        environment: the world.
        stages: the prompts, at least one; their names tell steps of a task apart.
        recorder: grows the tree; the same object that the context carries.
        reward_strategy: how the rewards of several stages become one (`stages.combined`).
        collect: keeps what is to be kept of each stage, before it is scored.
        readiness_timeout_sec: time for the phase `readiness`.
        verify_timeout_sec: time for verifying one stage, at the very most: the verifier's own
            limit comes first, this one is for a reward that keeps none.
        minimum_reward: what an `invalid` outcome counts as.
        model: name of the policy, for the record.
    """

    item: WorkItem
    provider: SandboxProvider
    spec: SandboxSpec
    agent: Agent
    environment: Environment
    stages: Sequence[Stage]
    recorder: TreeRecorder
    reward_strategy: Literal["mean", "final"] = "mean"
    collect: Callable[[Context], Awaitable[None]] | None = None
    readiness_timeout_sec: float = 120.0
    verify_timeout_sec: float = 7200.0
    minimum_reward: float = 0.0
    model: str = ""


async def run_rollout(plan: RolloutPlan, ctx: Context) -> RolloutResult:
    """Run one rollout to its single outcome.

    Every error becomes an outcome; only the cancellation of the calling task is raised, after
    the clean-up. `ctx.cancel` ends the rollout with the outcome `cancelled`.
    """
    run = _Rollout(plan, ctx, started_at=ctx.clock.now())
    async with asyncio.TaskGroup() as group:
        phases = group.create_task(run.phases(), name=f"rollout-{ctx.rollout_id}")
        watcher = group.create_task(run.cancel_with(phases))
        await asyncio.wait([phases])
        watcher.cancel()
    return run.result()


def _is_cancelled() -> bool:
    """Whether somebody asked the current task to stop; False for a part's own stray error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(slots=True)
class _Rollout:
    """State and control flow of one rollout. Single-use."""

    plan: RolloutPlan
    ctx: Context
    started_at: float
    phase: Phase = Phase.SETUP
    timings: dict[str, float] = field(default_factory=dict[str, float])
    verdict: Verdict | None = None
    verified: VerifyResult | None = None
    scores: list[tuple[Stage, VerifyResult]] = field(
        default_factory=list[tuple[Stage, VerifyResult]]
    )
    deadline: float = float("inf")
    cleanups: list[tuple[str, _Action]] = field(default_factory=list[tuple[str, "_Action"]])

    async def cancel_with(self, phases: asyncio.Task[None]) -> None:
        """Turn the cancel scope's signal into the cancellation of the running phases."""
        await self.ctx.cancel.wait()
        if self.phase is not Phase.TEARDOWN:
            phases.cancel()

    async def phases(self) -> None:
        """The lifecycle. What was acquired is freed in reverse order, whatever happens."""
        try:
            await self._live()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                self.verdict = classify(error, self.phase)
                raise
            stray = InfraError(f"a task of the phase {self.phase} was cancelled by its own side")
            self.verdict = classify(stray, self.phase)
        except Exception as error:
            # The agent's own failure is already in `verdict`; this one outweighs it.
            self.verdict = classify(error, self.phase)
        finally:
            await uninterrupted(self._teardown())

    async def _live(self) -> None:
        plan = self.plan
        # 1. setup: the pristine image exists.
        async with self._in(Phase.SETUP):
            image = await plan.provider.prepare(plan.spec)
        # 2. start: the sandbox is up.
        async with self._in(Phase.START):
            sandbox = await plan.provider.create(plan.spec, image)
            self.cleanups.append(("sandbox", sandbox.teardown))
        self.ctx = replace(self.ctx, sandbox=sandbox, sandboxes=plan.provider, image=image)
        # 3. provision: the world is in place.
        async with self._in(Phase.PROVISION):
            self.cleanups.append(("environment", plan.environment.teardown))
            await plan.environment.provision(sandbox, self.ctx)
        # 4. readiness: the agent never runs before the world is healthy.
        async with self._in(Phase.READINESS):
            await self._readiness()
        # 5. connect: one session for all stages.
        session = await self._connect(sandbox)
        for stage in plan.stages:
            # 6. execute: the tree grows. The agent's failure is not the end.
            ctx = self._at(stage)
            goes_on = await self._act(stage, ctx, session)
            # 7. verify: what the agent left is scored as it stands.
            async with self._in(Phase.VERIFY):
                found = await self._verify(stage, ctx)
            if not goes_on or falls_short(stage, found):
                break
        self._conclude()

    async def _teardown(self) -> None:
        # 8. teardown: newest first; one failing action leaves the others alone.
        async with self._in(Phase.TEARDOWN):
            for what, action in reversed(self.cleanups):
                await self._clean(what, action)

    def _at(self, stage: Stage) -> Context:
        """The context of one stage. Each step of a task keeps its files by itself."""
        if not stage.name:
            return self.ctx
        kept = self.ctx.artifacts / "steps" / stage.name
        return replace(self.ctx, task=stage.task, artifacts=kept)

    def _blame(self, error: Exception) -> None:
        """Remember the agent's first failure; any other error ends the rollout."""
        verdict = classify(error, self.phase)
        if not verdict.outcome.counts:
            raise error
        self.verdict = self.verdict or verdict

    async def _connect(self, sandbox: Sandbox) -> Session | None:
        async with self._in(Phase.CONNECT):
            await self.ctx.recorder.prompt((Message("user", self.ctx.task.instruction),))
            try:
                session = await self.plan.agent.connect(sandbox, self.ctx)
            except Exception as error:
                self._blame(error)
                return None
            self.cleanups.append(("session", session.aclose))
        if self.ctx.config.timeout_sec is not None:
            self.deadline = self.ctx.clock.monotonic() + self.ctx.config.timeout_sec
        return session

    async def _act(self, stage: Stage, ctx: Context, session: Session | None) -> bool:
        """Let the agent work on one stage; returns whether it can work on another."""
        if session is None:
            return False
        if stage.name:
            await self._begin(stage, ctx)
        async with self._in(Phase.EXECUTE):
            try:
                await self._prompt(stage, session)
            except Exception as error:
                self._blame(error)
                spent = isinstance(error, LimitExceededError | FatalAgentError)
                return not spent and self.ctx.clock.monotonic() < self.deadline
        return True

    async def _begin(self, stage: Stage, ctx: Context) -> None:
        """Bring the world to the start of a step, and mark in the tree that it begins here."""
        async with self._in(Phase.PROVISION):
            assert ctx.sandbox is not None
            await self.plan.environment.provision(ctx.sandbox, ctx)
        async with self._in(Phase.READINESS):
            await self._readiness()
        mark = Step(
            action=f"step {stage.name}",
            kind=StepKind.ENUMERATED,
            prior=1.0,
            role="task",
            started_at=self.ctx.clock.now(),
            info={"step": stage.name},
        )
        await self.ctx.recorder.step(mark)

    async def _prompt(self, stage: Stage, session: Session) -> None:
        left = self.deadline - self.ctx.clock.monotonic()
        seconds = min(stage.agent_timeout_sec * self.ctx.config.timeout_multiplier, left)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                await session.prompt(stage.task.instruction)
        except TimeoutError:
            if not scope.expired():
                raise
            await self._clean("turn", session.cancel)
            raise AgentTimeoutError(f"the agent did not finish within {seconds:g} s") from None

    async def _readiness(self) -> None:
        seconds = self.plan.readiness_timeout_sec
        detail = "no answer"
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                while not (probe := await self.plan.environment.readiness()).healthy:
                    detail = probe.detail or detail
                    await self.ctx.clock.sleep(probe.retry_in_sec)
        except TimeoutError:
            if not scope.expired():
                raise
            raise EnvironmentFailed(
                f"the world was not healthy within {seconds:g} s: {detail}"
            ) from None

    async def _verify(self, stage: Stage, ctx: Context) -> VerifyResult:
        if self.plan.collect is not None:
            await self.plan.collect(ctx)
        recorder = self.plan.recorder
        found = await stage.reward.score(recorder.tree.node(recorder.current), ctx)
        for event in found.events:
            recorder.reward(of_step(stage, event) if stage.name else event)
        if found.reward is None:
            raise InfraError("the reward could not be computed (the scorer returned None)")
        self.scores.append((stage, found))
        return found

    def _conclude(self) -> None:
        """Make one result of all stages; for a task with steps it is a signal of its own."""
        self.verified = combined(self.scores, self.plan.reward_strategy)
        if self.scores[0][0].name:
            for event in self.verified.events:
                self.plan.recorder.reward(event)

    @asynccontextmanager
    async def _in(self, phase: Phase) -> AsyncGenerator[None]:
        self.phase = phase
        clock, observer, rollout = self.ctx.clock, self.ctx.observer, self.ctx.rollout_id
        observer.emit(PhaseEvent(rollout, clock.now(), phase))
        start = clock.monotonic()
        limits = {**_BACKSTOP_SEC, Phase.VERIFY: self.plan.verify_timeout_sec}
        scope = asyncio.timeout(limits.get(phase))
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise InfraError(f"{phase} did not end within {limits[phase]:g} s") from None
        finally:
            took = clock.monotonic() - start
            self.timings[phase.value] = self.timings.get(phase.value, 0.0) + took
            observer.emit(PhaseEvent(rollout, clock.now(), phase, took))

    async def _clean(self, what: str, action: _Action) -> None:
        """Run one clean-up action; a failure is reported, and left to the provider's sweep."""
        try:
            async with asyncio.timeout(_CLEANUP_SEC):
                await action()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            fields = {"what": what, "error": f"{type(error).__name__}: {error}"}
            now = self.ctx.clock.now()
            event = LogEvent(self.ctx.rollout_id, now, "error", "clean-up failed", fields)
            self.ctx.observer.emit(event)

    def result(self) -> RolloutResult:
        """The record of what happened; settles the leaf and emits the outcome."""
        plan, tree = self.plan, self.plan.recorder.tree
        if self.verdict is None and self.verified is None:
            # Cancelled before its first step, so that no phase could say so.
            self.verdict = classify(asyncio.CancelledError("before it began"), self.phase)
        outcome = self.verdict.outcome if self.verdict else Outcome.SCORED
        reward = None
        if outcome is Outcome.INVALID:
            reward = plan.minimum_reward
        elif outcome.counts and self.verified is not None:
            reward = self.verified.reward
        plan.recorder.settle(NodeStatus(outcome.value))
        clock, item = self.ctx.clock, plan.item
        self.ctx.observer.emit(
            OutcomeEvent(self.ctx.rollout_id, clock.now(), outcome, reward, item.attempt)
        )
        return RolloutResult(
            rollout_id=item.rollout_id,
            job_id=item.job_id,
            task_id=item.task_id,
            repeat=item.repeat,
            attempt=item.attempt,
            fence=item.fence,
            outcome=outcome,
            config_hash=item.config_hash,
            seed=item.seed,
            reward=reward,
            invalid_reason=self.verdict.reason if self.verdict else None,
            error=self.verdict.error if self.verdict else None,
            grader_isolation=self.verified.grader_isolation if self.verified else None,
            items=self.verified.items if self.verified else {},
            timings={phase: round(seconds, 6) for phase, seconds in self.timings.items()},
            usage=trajectory(tree, plan.recorder.current).usage,
            agent=plan.agent.name,
            model=plan.model,
            sandbox=plan.provider.name,
            steps=len(tree) - 1,
            started_at=self.started_at,
            finished_at=clock.now(),
            trajectory_hash=trajectory_hash(tree),
        )
