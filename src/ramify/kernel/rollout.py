"""One rollout, from a work item to a result.

setup → start → provision → readiness → connect → execute → verify → teardown (seed 004), where
`execute` may be a tree: see `limb` and `grow`.

A task of several steps goes through provision, readiness, execute and verify once more for each of
them, in the same sandbox and the same session.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.events import OutcomeEvent, Phase
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import pending_parts
from ramify.kernel.grove import Grove
from ramify.kernel.grow import grow
from ramify.kernel.limb import Limb
from ramify.kernel.outcome import classify
from ramify.kernel.phases import Phases
from ramify.kernel.places import Places
from ramify.kernel.plan import RolloutPlan
from ramify.kernel.total import total
from ramify.kernel.trajectory import trajectory_hash, tree_usage


async def run_rollout(plan: RolloutPlan, ctx: Context) -> RolloutResult:
    """Run one rollout to its single outcome.

    Every error becomes an outcome; only the cancellation of the calling task is raised, after
    the clean-up. `ctx.cancel` ends the rollout with the outcome `cancelled`.
    """
    run = _Rollout(plan, root_limb(plan, ctx), started_at=ctx.clock.now())
    async with asyncio.TaskGroup() as group:
        phases = group.create_task(run.phases(), name=f"rollout-{ctx.rollout_id}")
        watcher = group.create_task(run.cancel_with(phases))
        await asyncio.wait([phases])
        watcher.cancel()
    return result_of(run.limb, run.started_at)


def root_limb(plan: RolloutPlan, ctx: Context) -> Limb:
    """The path that a rollout begins with; nothing of it is alive yet."""
    limits = {Phase.VERIFY: plan.verify_timeout_sec}
    phases = Phases(ctx.rollout_id, ctx.clock, ctx.observer, limits)
    grove = Grove(plan, Places(plan.extra_place), ctx.artifacts)
    return Limb(grove, ctx, plan.recorder, phases)


async def bury(limb: Limb) -> None:
    """Close the worlds that became checkpoints, and free what is left of those."""
    grove = limb.grove
    for cut in list(grove.cuts):
        await limb.discard(cut)
    for world in reversed(grove.spent):
        if world.environment is not None:
            await limb.phases.clean("environment", world.environment.teardown)


@dataclass(slots=True)
class _Rollout:
    """State and control flow of one rollout. Single-use."""

    plan: RolloutPlan
    limb: Limb
    started_at: float

    async def cancel_with(self, phases: asyncio.Task[None]) -> None:
        """Turn the cancel scope's signal into the cancellation of the running phases."""
        await self.limb.ctx.cancel.wait()
        # What a rollout without branches has come to is not taken back while it cleans up.
        if self.limb.phases.current is not Phase.TEARDOWN or self.limb.grove.spent:
            phases.cancel()

    async def phases(self) -> None:
        """The lifecycle. What was acquired is freed in reverse order, whatever happens."""
        try:
            await grow(self.limb)
        finally:
            await uninterrupted(bury(self.limb))


def result_of(limb: Limb, started_at: float) -> RolloutResult:
    """The record of what became of a root limb and all that branched off; emits the outcome."""
    plan = limb.grove.plan
    tree = plan.recorder.tree
    if not limb.grove.leaves:
        # Cancelled before its first step, so that no phase could say so.
        limb.verdict = classify(asyncio.CancelledError("before it began"), limb.phases.current)
        limb.end()
    found = total(tree, limb.grove.leaves, plan.minimum_reward)
    clock, item, verified = limb.ctx.clock, plan.item, found.verified
    limb.ctx.observer.emit(
        OutcomeEvent(limb.ctx.rollout_id, clock.now(), found.outcome, found.reward, item.attempt)
    )
    return RolloutResult(
        rollout_id=item.rollout_id,
        job_id=item.job_id,
        task_id=item.task_id,
        repeat=item.repeat,
        attempt=item.attempt,
        fence=item.fence,
        outcome=found.outcome,
        config_hash=item.config_hash,
        seed=item.seed,
        reward=found.reward,
        invalid_reason=found.verdict.reason if found.verdict else None,
        error=found.verdict.error if found.verdict else None,
        grader_isolation=verified.grader_isolation if verified else None,
        items=verified.items if verified else {},
        timings={name: round(seconds, 6) for name, seconds in limb.phases.timings.items()},
        usage=tree_usage(tree),
        grading=limb.grove.graded,
        agent=plan.agent.name,
        model=plan.model,
        sandbox=plan.provider.name,
        steps=len(tree) - 1,
        started_at=started_at,
        finished_at=clock.now(),
        trajectory_hash=trajectory_hash(tree),
        leaves=len(limb.grove.leaves),
        reward_se=found.se,
        biased=found.biased,
        dropped=found.dropped,
        reward_errors=verified.errors if verified else {},
        pending=pending_parts(verified) if verified else (),
    )
