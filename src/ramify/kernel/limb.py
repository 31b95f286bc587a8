"""A path of the tree that is alive: what an agent does on it, where it branches, how it ends.

A rollout begins with one limb. Where its policy says so the limb is cut: its world becomes a
checkpoint, and each child is a limb of its own that goes on from there, side by side with the
others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ramify.contracts.agent import Checkpointable
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.environment import Forkable
from ramify.contracts.errors import RewardFailedError
from ramify.contracts.events import CheckpointEvent, LogEvent, Phase, WorldEvent
from ramify.contracts.inside import WORLD_FILE
from ramify.contracts.metering import metering
from ramify.contracts.plain import encoded
from ramify.contracts.reward import Reward, RewardEvent, VerifyResult, pending_parts
from ramify.contracts.tree import Fidelity, NodeStatus, Outcome, RolloutNode, Step, StepKind
from ramify.kernel.cut import Cut, Standing, World, revive, take_cut, until_healthy
from ramify.kernel.grove import Grove, Leaf
from ramify.kernel.outcome import Verdict, classify
from ramify.kernel.phases import Phases
from ramify.kernel.policy import Fork, Keep, Point
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.stages import Stage, combined, of_step
from ramify.kernel.turn import Turn

_REWARD = "reward"
"""Name of the signal that is a leaf's return."""
_NOT_ACTIONS = ("branch", "task")
"""Roles of steps that no agent took."""


@dataclass(slots=True)
class Limb:
    """One path that is alive. Its world is made from `origin` when it is first needed.

    Attributes:
        grove: what it shares with the others.
        ctx: its context; the recorder in it is `recorder`.
        recorder: where its next step goes.
        phases: times it.
        world: what is alive; None before it is revived, and after it was cut.
        origin: the checkpoint that the world is, or was last, made from.
        standing: how far it has come.
        verdict, verified: how it ended.
        touched: somebody worked in the sandbox besides the agent, so it is not as it was cut.
    """

    grove: Grove
    ctx: Context
    recorder: TreeRecorder
    phases: Phases
    world: World | None = None
    origin: Cut | None = None
    standing: Standing = Standing()
    verdict: Verdict | None = None
    verified: VerifyResult | None = None
    touched: bool = False
    _turn: Turn = field(default_factory=Turn)
    _decided: int = -1

    # Acting

    def point(self) -> Point:
        """Where the path stands."""
        tree = self.recorder.tree
        steps = [tree.step(node) for node in tree.path(self.recorder.current)]
        taken = [step for step in steps if step is not None and step.role not in _NOT_ACTIONS]
        return Point(self.recorder.current, len(taken), self.standing.branches, taken)

    async def begin(self, stage: Stage) -> None:
        """Bring the world to the start of a step, and mark in the tree that it begins here."""
        world = await self.alive()
        assert world.environment is not None
        async with self.phases.during(Phase.PROVISION):
            await world.environment.provision(world.sandbox, self._at(stage))
        async with self.phases.during(Phase.READINESS):
            seconds = self.grove.plan.readiness_timeout_sec
            await until_healthy(world.environment, self.ctx, seconds)
        mark = Step(
            action=f"step {stage.name}",
            kind=StepKind.ENUMERATED,
            prior=1.0,
            role="task",
            started_at=self.ctx.clock.now(),
            info={"step": stage.name},
        )
        self.recorder.mark(mark)

    async def turn(self, stage: Stage, text: str | None = None) -> Fork | Keep | None:
        """Let the agent work until its turn ends (None), or the policy asks for a checkpoint.

        Then the turn waits between two steps, for `cut`. `text`: a prompt other than the stage's.

        Raises: what the agent raises; AgentTimeoutError.
        """
        if (asked := self._decide()) is not None:
            return asked
        self._go_on()
        world = await self.alive()
        seconds = self.seconds_left(stage)
        async with self.phases.during(Phase.EXECUTE):
            clock = self.ctx.clock
            start = clock.monotonic()
            try:
                return await self._until_asked(text or stage.task.instruction, world, seconds)
            finally:
                took, at = clock.monotonic() - start, self.standing
                self.standing = replace(
                    at, spent_sec=at.spent_sec + took, total_sec=at.total_sec + took
                )

    def _go_on(self) -> None:
        """A path that goes on beside children of its own is one more child of that place."""
        if self.recorder.tree.children(self.recorder.current):
            now = self.ctx.clock.now()
            reason = "goes on"
            self.recorder.mark(
                Step(action=reason, role="branch", branch_reason=reason, started_at=now)
            )

    def _decide(self) -> Fork | Keep | None:
        """What the policy wants here; it is asked once for each place."""
        policy = self.grove.plan.policy
        if policy is None or self._decided == self.recorder.current:
            return None
        self._decided = self.recorder.current
        return policy.at(self.point())

    async def _until_asked(self, text: str, world: World, seconds: float) -> Fork | Keep | None:
        session = world.session
        assert session is not None
        if self.standing.turning and isinstance(session, Checkpointable):
            work = session.proceed()
        else:
            work = session.prompt(text)
        self.recorder.pause = self._pause
        self.standing = replace(self.standing, turning=True)
        try:
            asked = await self._turn.until_asked(work, seconds)
        except BaseException:
            await self._stop_turn()
            raise
        if asked is None:
            self.standing = replace(self.standing, turning=False)
            self._turn.ended()
        return asked

    async def _pause(self) -> None:
        """After a step: go on, or wait here for the checkpoint that ends this turn."""
        if (asked := self._decide()) is not None:
            await self._turn.wait(asked)

    async def _stop_turn(self) -> None:
        await self._turn.stop(self.phases, self.world.session if self.world else None)

    def seconds_left(self, stage: Stage | None = None) -> float:
        """Time that the agent has left on this path: for a stage, or for all of them."""
        config = self.ctx.config
        left = float("inf")
        if config.timeout_sec is not None:
            left = config.timeout_sec - self.standing.total_sec
        if stage is None:
            return left
        allowed = stage.agent_timeout_sec * config.timeout_multiplier
        return min(allowed - self.standing.spent_sec, left)

    def blame(self, error: Exception) -> None:
        """Remember the agent's first failure; any other error ends the rollout."""
        verdict = classify(error, self.phases.current)
        if not verdict.outcome.counts:
            raise error
        self.verdict = self.verdict or verdict

    # Branching

    async def alive(self) -> World:
        """The world; made from the checkpoint if there is none."""
        if self.world is None:
            assert self.origin is not None
            plan = self.grove.plan
            async with self.phases.during(Phase.BRANCH):
                made = await revive(self.origin, plan.agent, self.ctx, plan.readiness_timeout_sec)
                self.world, self.ctx = made
            if self.origin.fidelity is Fidelity.FRESH:
                self.standing = replace(self.standing, turning=False)
        return self.world

    async def cut(self) -> Cut:
        """A checkpoint of this path as it stands; a new world is made from it when one is needed.

        Where nothing was done since the last one, that one is the checkpoint.

        Raises: UnsupportedError (it cannot be had at the fidelity that is asked for; the path goes
        on), SandboxError, EnvironmentFailed.
        """
        here = self.recorder.current
        if self.origin is not None and self.origin.node == here and not self.touched:
            return self.origin
        world = await self.alive()
        async with self.phases.during(Phase.BRANCH):
            await self._write_down(world)
            start = self.ctx.clock.monotonic()
            plan = self.grove.plan
            self.origin = cut = await take_cut(world, here, self.standing, plan.fidelity)
            self.grove.cuts.append(cut)
            self.touched = False
            cost = self.ctx.clock.monotonic() - start
            self.recorder.checkpoint(
                CheckpointEvent(
                    self.ctx.rollout_id, self.ctx.clock.now(), here, cut.image.id,
                    cut.image.digest, cost, cut.image.size_bytes, cut.image.live,
                    dict(cut.services),
                )
            )  # fmt: skip
            await self._stop_turn()
            await uninterrupted(self._bury(world))
        return cut

    def child(self, cut: Cut, fork: Fork, index: int) -> Limb:
        """One more path from a checkpoint; `index` counts the children of one branch."""
        recorder = self.recorder.at(cut.node)
        info: dict[str, object] = {"fidelity": cut.fidelity.value, "child": index}
        if cut.services:
            info["services"] = dict(cut.services)
        if cut.why:
            info["why"] = cut.why
        recorder.mark(
            Step(
                action=f"branch {index + 1} of {fork.width}",
                kind=fork.kind,
                role="branch",
                prior=fork.priors[index] if fork.priors else None,
                branch_reason=fork.reason,
                outcome_dependent=fork.outcome_dependent,
                started_at=self.ctx.clock.now(),
                info=info,
            )
        )
        artifacts = self.grove.artifacts / "branches" / str(recorder.current)
        ctx = replace(self.ctx, recorder=recorder, artifacts=artifacts)
        standing = replace(cut.standing, branches=cut.standing.branches + 1)
        child = Limb(self.grove, ctx, recorder, self.phases.fork(), None, cut, standing)
        child._decided = recorder.current
        return child

    async def discard(self, cut: Cut) -> None:
        """Free a checkpoint from which nothing more is made. Idempotent."""
        if cut not in self.grove.cuts:
            return
        self.grove.cuts.remove(cut)
        await self.phases.clean("checkpoint", partial(self.grove.plan.provider.discard, cut.image))

    async def _bury(self, world: World) -> None:
        """Close what a checkpoint spent. The world itself is what its copies are made from."""
        self.world = None
        if world.session is not None:
            await self.phases.clean("session", world.session.aclose)
        await self.phases.clean("sandbox", world.sandbox.teardown)
        self.grove.spent.append(world)

    async def _write_down(self, world: World) -> None:
        """Keep what the world holds at this node, for comparing it with others."""
        if not (self.grove.plan.keep_worlds and isinstance(world.environment, Forkable)):
            return
        node = self.recorder.current
        state = await world.environment.describe()
        place = f"worlds/{self.grove.plan.item.fence}-{node}.json"
        path = self.grove.artifacts / place
        await asyncio.to_thread(_write, path, encoded(state))
        now = self.ctx.clock.now()
        self.ctx.observer.emit(WorldEvent(self.ctx.rollout_id, now, node, place))

    async def _ask(self, world: World, ctx: Context) -> None:
        """Keep what the world answers, for the verifier. Raises EnvironmentFailed (it is dead)."""
        state = await world.environment.query() if world.environment is not None else {}
        if state:
            path = ctx.artifacts / WORLD_FILE
            await asyncio.to_thread(_write, path, encoded(state))

    # Ending

    def _at(self, stage: Stage) -> Context:
        """The context of one stage. Each step of a task keeps its files by itself."""
        if not stage.name:
            return self.ctx
        kept = self.ctx.artifacts / "steps" / stage.name
        return replace(self.ctx, task=stage.task, artifacts=kept)

    async def verify(self, stage: Stage) -> VerifyResult:
        """Score what the agent left of a stage. Raises InvalidRewardError, InfraError, …"""
        plan, world = self.grove.plan, await self.alive()
        self._go_on()
        ctx = self._at(stage)
        async with self.phases.during(Phase.VERIFY):
            await self._write_down(world)
            await self._ask(world, ctx)
            if plan.collect is not None:
                await plan.collect(ctx)
            node = self.recorder.tree.node(self.recorder.current)
            found = await _score(stage.reward, node, ctx, self.grove)
            for event in found.events:
                self.recorder.reward(of_step(stage, event) if stage.name else event)
            lacking = found.reward is None and not pending_parts(found)
            if found.errors or lacking or pending_parts(found):
                self.recorder.reward_parts(found, self.outcome, missing=lacking)
            if lacking:
                scores = (*self.standing.scores, (stage, found))
                self.verified = combined(scores, plan.reward_strategy)
                raise RewardFailedError(_why(found))
            if found.reward is not None and not any(e.name == _REWARD for e in found.events):
                whole = RewardEvent(_REWARD, found.reward)
                self.recorder.reward(of_step(stage, whole) if stage.name else whole)
        at = self.standing
        self.standing = replace(
            at,
            stage=at.stage + 1,
            turning=False,
            spent_sec=0.0,
            scores=(*at.scores, (stage, found)),
        )
        return found

    def conclude(self) -> None:
        """Make one result of all stages; for a task with steps it is a signal of its own."""
        scores = self.standing.scores
        self.verified = combined(scores, self.grove.plan.reward_strategy)
        if scores[0][0].name:
            for event in self.verified.events:
                self.recorder.reward(event)

    def end(self) -> None:
        """Settle the leaf. Idempotent."""
        leaf = Leaf(self.recorder.current, self.verdict, self.verified)
        if leaf.outcome is Outcome.INVALID:
            self.recorder.reward(RewardEvent(_REWARD, self.grove.plan.minimum_reward))
        self.recorder.settle(NodeStatus(leaf.outcome.value))
        self.grove.leaves.append(leaf)
        if self.origin is not None and self.verdict is not None:
            # The result says one error; of a tree, each path may have its own.
            error, ctx = self.verdict.error, self.ctx
            fields = {"node": leaf.node, "code": error.code, "message": error.message}
            event = LogEvent(ctx.rollout_id, ctx.clock.now(), "warning", "a path failed", fields)
            ctx.observer.emit(event)

    @property
    def outcome(self) -> Outcome:
        """How the path ended, once it has."""
        return self.verdict.outcome if self.verdict else Outcome.SCORED

    async def close(self) -> None:
        """Free what is alive, newest first. Idempotent."""
        async with self.phases.during(Phase.TEARDOWN):
            await self._stop_turn()
            world, self.world = self.world, None
            if world is None:
                return
            if world.session is not None:
                await self.phases.clean("session", world.session.aclose)
            if world.environment is not None:
                await self.phases.clean("environment", world.environment.teardown)
            await self.phases.clean("sandbox", world.sandbox.teardown)


async def _score(reward: Reward, node: RolloutNode, ctx: Context, grove: Grove) -> VerifyResult:
    """The score of a node; a reward that says by raising that it failed has no value."""
    with metering() as meter:
        try:
            return await reward.score(node, ctx)
        except RewardFailedError as error:
            return VerifyResult(None, errors={_REWARD: str(error)})
        finally:
            grove.graded += meter.used


def _why(found: VerifyResult) -> str:
    """Why there is no reward, in one line."""
    said = [text if name == _REWARD else f"{name}: {text}" for name, text in found.errors.items()]
    return "; ".join(said) or "the reward could not be computed (the scorer returned None)"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
