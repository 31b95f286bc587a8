"""A rollout driven by hand: prompt, branch, score, go back, in a few lines of Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.agent import Agent
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import UsageError
from ramify.contracts.events import LeaseEvent
from ramify.contracts.reward import Reward, VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxProvider
from ramify.contracts.task import Taskset
from ramify.contracts.tree import RolloutNode, StepKind
from ramify.envs.options import RunOptions
from ramify.envs.run import open_stand
from ramify.kernel.cut import Cut
from ramify.kernel.grow import begin
from ramify.kernel.limb import Limb
from ramify.kernel.outcome import classify
from ramify.kernel.policy import Fork
from ramify.kernel.rollout import bury, result_of, root_limb
from ramify.kernel.tree import Tree

_SURE = 1e-9  # priors may miss 1 by so much


class LiveRollout:
    """One path of a rollout that somebody drives. Make the first one with `open_rollout`.

    Children run side by side as far as their caller lets them; each has a sandbox of its own, made
    when it first does something. Everything is closed with the rollout.
    """

    def __init__(self, limb: Limb, family: list[LiveRollout]) -> None:
        self._limb, self._family = limb, family
        family.append(self)

    @property
    def node(self) -> RolloutNode:
        """Where it stands."""
        return self._limb.recorder.tree.node(self._limb.recorder.current)

    @property
    def tree(self) -> Tree:
        """The whole rollout's tree."""
        return self._limb.recorder.tree

    async def sandbox(self) -> Sandbox:
        """The sandbox of this path, to look into it or to work in it."""
        self._limb.touched = True
        return (await self._limb.alive()).sandbox

    async def prompt(self, text: str | None = None) -> None:
        """Let the agent work on a prompt, by default the task's instruction, until its turn ends.

        In a child of a branch that interrupted a turn, `prompt()` goes on with that turn. Raises
        what the agent raises, AgentTimeoutError included.
        """
        stage = self._limb.grove.plan.stages[0]
        await self._limb.turn(stage, text)

    async def checkpoint(self) -> Cut:
        """This path as it stands, as a value. The path goes on as a copy of it.

        Raises: UnsupportedError (it cannot be had at the fidelity that is asked for).
        """
        return await self._limb.cut()

    async def branch(
        self,
        n: int,
        *,
        reason: str = "branch",
        priors: Sequence[float] | None = None,
        outcome_dependent: bool = False,
    ) -> list[LiveRollout]:
        """Fork into `n` children, each a copy of everything as it stands.

        With `priors` they stand for enumerated options, one number for each. Set
        `outcome_dependent` where results seen so far made you branch here: the value says so.

        Raises: UnsupportedError, UsageError (n below 1, priors that do not fit).
        """
        if n < 1 or (priors is not None and len(priors) != n):
            raise UsageError(f"branch({n}) needs at least one child, and a prior for each or none")
        if priors and not (all(0 <= q <= 1 for q in priors) and sum(priors) <= 1 + _SURE):
            raise UsageError(f"priors {list(priors)}: each is a chance, all add up to 1 at most")
        kind = StepKind.SAMPLED if priors is None else StepKind.ENUMERATED
        return self._children(
            await self._limb.cut(), Fork(n, reason, kind, priors or (), outcome_dependent)
        )

    async def restore(self, checkpoint: Cut, reason: str = "restored") -> LiveRollout:
        """A path that goes on from any checkpoint of this rollout, such as the winner's.

        It is left out of value estimates: somebody chose it.
        """
        [child] = self._children(checkpoint, Fork(1, reason, StepKind.FORCED, (), True))
        return child

    def _children(self, cut: Cut, fork: Fork) -> list[LiveRollout]:
        limbs = [self._limb.child(cut, fork, index) for index in range(fork.width)]
        return [LiveRollout(limb, self._family) for limb in limbs]

    async def score(self) -> VerifyResult:
        """Verify what the agent left, as the end of this path; its sandbox is gone then.

        Raises: InvalidRewardError, InfraError, SandboxError; the leaf says so, too.
        """
        limb = self._limb
        try:
            found = await limb.verify(limb.grove.plan.stages[0])
            limb.conclude()
            return found
        except Exception as error:
            limb.verdict = classify(error, limb.phases.current)
            raise
        finally:
            limb.end()
            await uninterrupted(limb.close())

    async def aclose(self) -> None:
        """End this path without a score. Idempotent."""
        await self._limb.close()

    def settle(self) -> None:
        """A leaf that was never scored was cancelled. Called once the rollout is over."""
        limb = self._limb
        is_leaf = not limb.recorder.tree.children(limb.recorder.current)
        if is_leaf and not any(leaf.node == limb.recorder.current for leaf in limb.grove.leaves):
            stopped = asyncio.CancelledError("never scored")
            limb.verdict = limb.verdict or classify(stopped, limb.phases.current)
            limb.end()


@asynccontextmanager
async def open_rollout(
    task: str | Path | Taskset,
    *,
    agent: str | Agent,
    sandbox: str | SandboxProvider = "local",
    reward: Reward | Callable[..., Any] | None = None,
    options: RunOptions | None = None,
) -> AsyncGenerator[LiveRollout]:
    """One rollout of one task, up to the point where the agent gets its prompt; the rest is yours.

    It is recorded in a run directory like any other, and ends with the block. `options.branch`,
    which says where a rollout branches by itself, has no part here: you decide.

    Raises:
        UsageError: not exactly one task, several steps, or whatever `run` refuses.
    """
    wanted = msgspec.structs.replace(options or RunOptions(), repeats=1)
    async with open_stand(
        task, agent=agent, sandbox=sandbox, reward=reward, options=wanted
    ) as stand:
        item = _only(stand.plan.job.slots, stand.plan.job.item)
        item = msgspec.structs.replace(item, fence=stand.store.next_fence())
        now = stand.clock.now()
        stand.observer.emit(LeaseEvent(item.rollout_id, now, 1, item.fence, item.seed))
        plan, ctx = stand.worker.prepare(item)
        if len(plan.stages) > 1:
            raise UsageError(f"{item.task_id} has several steps; use run()")
        live = plan.provider.capabilities().snapshot == "live"
        spec = msgspec.structs.replace(plan.spec, live=live)
        limb = root_limb(replace(plan, spec=spec, policy=None, keep_worlds=True), ctx)
        family: list[LiveRollout] = []
        try:
            await begin(limb)
            yield LiveRollout(limb, family)
        finally:
            await uninterrupted(_end(limb, family))
            await stand.store.record(stand.worker.redactor.clean(result_of(limb, now)))


def _only(slots: Sequence[tuple[str, int]], make: Callable[[str, int], Any]) -> Any:
    if len(slots) != 1:
        raise UsageError(f"one task is driven by hand, not {len(slots)}; choose one with task_ids")
    return make(*slots[0])


async def _end(limb: Limb, family: Sequence[LiveRollout]) -> None:
    for each in reversed(family):
        await each.aclose()
    for each in family:
        each.settle()
    await limb.close()
    await bury(limb)
