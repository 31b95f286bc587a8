"""One rollout made of parts that fail where they are told to, and that say what they did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramify.contracts.agent import AgentCapabilities, AskUserHandler, StopReason
from ramify.contracts.config import RolloutConfig
from ramify.contracts.context import Context
from ramify.contracts.environment import ReadinessProbe
from ramify.contracts.events import OutcomeEvent, Phase, PhaseEvent
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxSpec
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode, Step
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.rollout import RolloutPlan, run_rollout
from ramify.kernel.stages import Stage as KernelStage
from ramify.testing.fakecontext import FakeObserver, fake_context
from ramify.testing.fakes import FakeProvider, FakeSandbox
from ramify.testing.sim import SimClock

ITEM = WorkItem("job", "set:one", 0, 7, "hash")
SPEC = SandboxSpec(host_root=True)
Deed = Callable[["Stage"], Awaitable[None]]


async def until(condition: Callable[[], bool]) -> None:
    """Let the simulation go on until something holds."""
    while not condition():  # noqa: ASYNC110 (any step may bring it about, so each one is watched)
        await asyncio.sleep(0)


@dataclass
class Stage:
    """Where a rollout plays: what goes wrong in which part, and what was done, in order.

    `deeds` is keyed by a phase, or by what is torn down: `session`, `environment`, `sandbox`.
    """

    artifacts: Path
    deeds: dict[str, Deed] = field(default_factory=dict)
    healthy_after: int = 0
    log: list[str] = field(default_factory=list)
    observer: FakeObserver = field(default_factory=FakeObserver)
    scope: Any = None
    agent_ran_at: float | None = None
    healthy_at: float | None = None

    async def do(self, what: str) -> None:
        self.log.append(what)
        if deed := self.deeds.get(what):
            await deed(self)

    async def play(
        self,
        config: RolloutConfig | None = None,
        agent_timeout_sec: float = 50.0,
        stages: Sequence[KernelStage] = (),
        **options: Any,
    ) -> RolloutResult:
        clock = SimClock()
        recorder = TreeRecorder(ITEM.rollout_id, self.observer, clock)
        fake = fake_context(Task("set:one", input="Do it."), artifacts=self.artifacts)
        self.scope = fake.cancel
        ctx = Context(
            task=fake.task,
            config=config or RolloutConfig(),
            rollout_id=ITEM.rollout_id,
            clock=clock,
            rng=fake.rng,
            cancel=fake.cancel,
            observer=self.observer,
            recorder=recorder,
            artifacts=self.artifacts,
        )
        plan = RolloutPlan(
            item=ITEM,
            provider=StagedProvider(self),
            spec=SPEC,
            agent=StagedAgent(self),
            environment=StagedWorld(self),
            stages=stages or [KernelStage(fake.task, StagedReward(self), agent_timeout_sec)],
            recorder=recorder,
            **{"readiness_timeout_sec": 20.0, **options},
        )
        return await run_rollout(plan, ctx)

    @property
    def begun(self) -> list[Phase]:
        """Phases in the order in which they began."""
        return [e.phase for e in self._phases() if e.duration_sec is None]

    @property
    def ended(self) -> list[Phase]:
        return [e.phase for e in self._phases() if e.duration_sec is not None]

    @property
    def outcomes(self) -> list[OutcomeEvent]:
        return [e for e in self.observer.events if isinstance(e, OutcomeEvent)]

    @property
    def freed(self) -> list[str]:
        return [what for what in self.log if what in ("session", "environment", "sandbox")]

    def _phases(self) -> list[PhaseEvent]:
        return [e for e in self.observer.events if isinstance(e, PhaseEvent)]


class StagedProvider(FakeProvider):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        await self.stage.do(Phase.SETUP)
        return await super().prepare(spec)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> FakeSandbox:
        await self.stage.do(Phase.START)
        sandbox = await super().create(spec, image)
        own = sandbox.teardown

        async def teardown() -> None:
            await self.stage.do("sandbox")
            await own()

        sandbox.teardown = teardown  # type: ignore[method-assign]  (to see the order)
        return sandbox


@dataclass
class StagedWorld:
    stage: Stage
    asked: int = 0

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        await self.stage.do(Phase.PROVISION)

    async def readiness(self) -> ReadinessProbe:
        await self.stage.do(Phase.READINESS)
        self.asked += 1
        now = asyncio.get_running_loop().time()
        healthy = self.asked > self.stage.healthy_after
        if healthy:
            self.stage.healthy_at = now
        return ReadinessProbe(healthy, now, "" if healthy else "not yet", retry_in_sec=2.0)

    async def query(self) -> dict[str, Any]:
        return {}

    async def teardown(self) -> None:
        await self.stage.do("environment")


@dataclass
class StagedSession:
    stage: Stage
    ctx: Context
    taken: list[Step] = field(default_factory=list)

    async def prompt(self, text: str) -> StopReason:
        self.stage.agent_ran_at = asyncio.get_running_loop().time()
        self.taken.append(Step((Message("assistant", "done"),), action="work"))
        await self.ctx.recorder.step(self.taken[-1])
        await self.stage.do(Phase.EXECUTE)
        return StopReason.END_TURN

    async def cancel(self) -> None:
        self.stage.log.append("turn cancelled")

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """Asks nothing."""

    @property
    def steps(self) -> Sequence[Step]:
        return self.taken

    async def aclose(self) -> None:
        await self.stage.do("session")


@dataclass
class StagedAgent:
    stage: Stage
    name: str = "staged"

    def capabilities(self) -> AgentCapabilities:
        return AgentCapabilities()

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> StagedSession:
        await self.stage.do(Phase.CONNECT)
        return StagedSession(self.stage, ctx)


@dataclass
class StagedReward:
    stage: Stage

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        await self.stage.do(Phase.VERIFY)
        event = RewardEvent("reward", 0.75)
        return VerifyResult(0.75, {"parts": 3.0}, (event,), grader_isolation="outputs")
