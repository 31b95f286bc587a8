"""How a rollout grows by itself: each path lives to its end, or to a branch whose children do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import FatalAgentError, InfraError, LimitExceededError
from ramify.contracts.events import Phase
from ramify.contracts.messages import Message
from ramify.kernel.cut import Cut, World, until_healthy
from ramify.kernel.limb import Limb
from ramify.kernel.outcome import classify
from ramify.kernel.phases import is_cancelled
from ramify.kernel.policy import Fork, Keep
from ramify.kernel.stages import Stage, falls_short


async def grow(limb: Limb) -> None:
    """Let a path live to its end, and everything that branches off it. Errors become verdicts.

    Raises only the cancellation of the calling task, after the clean-up.
    """
    fork: Fork | None = None
    try:
        async with limb.grove.places.hold():
            fork = await _live_guarded(limb)
    except asyncio.CancelledError as error:
        if limb.verified is None:
            limb.verdict = limb.verdict or classify(error, limb.phases.current)
        raise
    finally:
        if fork is None:
            limb.end()
    grown = await _chosen(limb)
    if fork is not None and limb.origin is not None:
        grown = [(limb.origin, fork), *grown]
    async with asyncio.TaskGroup() as group:
        for cut, how in grown:
            children = [limb.child(cut, how, index) for index in range(how.width)]
            group.create_task(_grow_children(limb, cut, how, children))


async def _grow_children(limb: Limb, cut: Cut, fork: Fork, children: Sequence[Limb]) -> None:
    """Let children live side by side; their checkpoint ends with them."""
    async with asyncio.TaskGroup() as group:
        for index, child in enumerate(children):
            group.create_task(_grow_child(limb, cut, fork, index, child))
    await limb.discard(cut)


async def _grow_child(limb: Limb, cut: Cut, fork: Fork, index: int, child: Limb) -> None:
    """Let a child live; one that our side failed is made again, and the tree shows both."""
    for _ in range(limb.grove.plan.child_retries):
        await grow(child)
        if child.verdict is None or not child.verdict.error.retryable:
            return
        child = limb.child(cut, fork, index)
    await grow(child)


async def _chosen(limb: Limb) -> list[tuple[Cut, Fork]]:
    """What is branched off checkpoints that this path kept, now that it has ended."""
    grove, policy = limb.grove, limb.grove.plan.policy
    kept, grove.kept = grove.kept, []
    chosen: list[tuple[int, Fork]] = []
    if policy is not None and limb.outcome.counts:
        chosen = list(policy.after([point for point, _ in kept]))
    wanted = {index for index, _ in chosen}
    for index, (_, cut) in enumerate(kept):
        if index not in wanted:
            await limb.discard(cut)
    return [(kept[index][1], fork) for index, fork in chosen]


async def _live_guarded(limb: Limb) -> Fork | None:
    """Live to the end (None) or to a branch, and clean up."""
    try:
        return await _live(limb)
    except asyncio.CancelledError as error:
        if is_cancelled():
            limb.verdict = classify(error, limb.phases.current)
            raise
        stray = InfraError(
            f"a task of the phase {limb.phases.current} was cancelled by its own side"
        )
        limb.verdict = classify(stray, limb.phases.current)
    except Exception as error:
        # The agent's own failure is already in `verdict`; this one outweighs it.
        limb.verdict = classify(error, limb.phases.current)
    finally:
        await uninterrupted(limb.close())
    return None


async def begin(limb: Limb) -> None:
    """Bring a root limb to life: sandbox, world, session. Raises whatever fails.

    The agent's own failure is remembered in its verdict, and it has no session then.
    """
    plan, phases = limb.grove.plan, limb.phases
    # 1. setup: the pristine image exists.
    async with phases.during(Phase.SETUP):
        image = await plan.provider.prepare(plan.spec)
    # 2. start: the sandbox is up.
    async with phases.during(Phase.START):
        sandbox = await plan.provider.create(plan.spec, image)
        limb.world = world = World(sandbox)
    limb.ctx = replace(limb.ctx, sandbox=sandbox, sandboxes=plan.provider, image=image)
    # 3. provision: the world is in place.
    async with phases.during(Phase.PROVISION):
        world.environment = plan.environment
        await plan.environment.provision(sandbox, limb.ctx)
    # 4. readiness: the agent never runs before the world is healthy.
    async with phases.during(Phase.READINESS):
        await until_healthy(plan.environment, limb.ctx, plan.readiness_timeout_sec)
    # 5. connect: one session for all stages.
    async with phases.during(Phase.CONNECT):
        await limb.recorder.prompt((Message("user", limb.ctx.task.instruction),))
        try:
            world.session = await plan.agent.connect(sandbox, limb.ctx)
        except Exception as error:
            limb.blame(error)


async def _live(limb: Limb) -> Fork | None:
    stages = limb.grove.plan.stages
    if limb.origin is None:
        await begin(limb)
    else:
        await limb.alive()
    while limb.standing.stage < len(stages):
        stage = stages[limb.standing.stage]
        goes_on, fork = await _act(limb, stage)
        if fork is not None:
            await limb.cut()
            return fork
        found = await limb.verify(stage)
        if not goes_on or falls_short(stage, found):
            break
    limb.conclude()
    return None


async def _act(limb: Limb, stage: Stage) -> tuple[bool, Fork | None]:
    """Let the agent work on one stage.

    Returns whether it can work on another, and the branch that is asked for, if one is.
    """
    world = await limb.alive()
    if world.session is None:
        return False, None
    if stage.name and not limb.standing.turning:
        await limb.begin(stage)
    while True:
        try:
            asked = await limb.turn(stage)
        except Exception as error:
            limb.blame(error)
            spent = isinstance(error, LimitExceededError | FatalAgentError)
            return not spent and limb.seconds_left() > 0, None
        if not isinstance(asked, Keep):
            return True, asked
        point = limb.point()
        limb.grove.kept.append((point, await limb.cut()))
