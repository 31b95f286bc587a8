"""An agent whose session can be copied, and a world that says what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from ramify.contracts.agent import AgentCapabilities, AskUserHandler, StopReason
from ramify.contracts.context import Context
from ramify.contracts.environment import ReadinessProbe, WorldState
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxSpec
from ramify.contracts.task import Task
from ramify.contracts.tree import Fidelity, RolloutNode, Step
from ramify.kernel.plan import RolloutPlan
from ramify.kernel.policy import BranchPolicy
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.rollout import run_rollout
from ramify.kernel.stages import Stage
from ramify.kernel.tree import Tree
from ramify.testing.fakecontext import FakeObserver, fake_context
from ramify.testing.fakes import FAKE_CAPABILITIES, FakeProvider, FakeSandbox
from ramify.testing.sim import SimClock

ITEM = WorkItem("job", "set:one", 0, 7, "hash")
PATH = "/app/path"
Decide = Callable[[str, Context], str]


def read_path(sandbox: Sandbox) -> str:
    assert isinstance(sandbox, FakeSandbox)
    return sandbox.files.read(PATH).decode()


@dataclass(frozen=True)
class WalkState:
    done: int
    memory: str
    agent: WalkAgent
    turning: bool

    def fidelity(self, live: bool) -> Fidelity:
        return Fidelity.LIVE if live or not self.agent.needs_processes else Fidelity.FRESH

    async def restore(self, sandbox: Sandbox, ctx: Context) -> WalkSession:
        return WalkSession(self.agent, sandbox, ctx, self.done, self.memory, self.turning)


@dataclass
class WalkSession:
    """Takes `length` steps; each appends a letter to a file and to its own memory."""

    agent: WalkAgent
    sandbox: Sandbox
    ctx: Context
    done: int = 0
    memory: str = ""
    turning: bool = False
    _steps: list[Step] = field(default_factory=list[Step])

    async def prompt(self, text: str) -> StopReason:
        self.turning = True
        return await self.proceed()

    async def proceed(self) -> StopReason:
        if not self.turning:
            return StopReason.END_TURN
        while self.done < self.agent.length:
            assert isinstance(self.sandbox, FakeSandbox)
            try:
                await asyncio.sleep(self.agent.step_sec)
            except asyncio.CancelledError:
                if self.agent.last_words:
                    await self.ctx.recorder.step(Step(action="stopped"))
                raise
            letter = self.agent.decide(self.memory, self.ctx)
            assert read_path(self.sandbox) == self.memory, "file and memory are of one moment"
            self.sandbox.files.write(PATH, self.memory + letter)
            self.memory += letter
            self.done += 1
            await self.ctx.recorder.step(Step((Message("assistant", letter),), action=letter))
        self.turning = False
        return StopReason.END_TURN

    def checkpoint(self) -> WalkState:
        return WalkState(self.done, self.memory, self.agent, self.turning)

    async def cancel(self) -> None:
        return

    def on_ask_user(self, handler: AskUserHandler) -> None:
        return

    @property
    def steps(self) -> Sequence[Step]:
        return tuple(self._steps)

    async def aclose(self) -> None:
        self.agent.closed += 1


@dataclass
class WalkAgent:
    length: int
    decide: Decide
    step_sec: float = 1.0
    needs_processes: bool = False
    last_words: bool = False
    connected: int = 0
    closed: int = 0
    name: str = "walk"

    def capabilities(self) -> AgentCapabilities:
        return AgentCapabilities()

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> WalkSession:
        self.connected += 1
        return WalkSession(self, sandbox, ctx)


@dataclass
class WalkWorld:
    """Counts what is asked of it; `refuses` makes `quiesce` refuse without live processes."""

    log: list[str] = field(default_factory=list[str])
    refuses: str = ""
    fail_forks: list[Exception] = field(default_factory=list[Exception])
    sandbox: Sandbox | None = None

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        self.sandbox = sandbox
        self.log.append("provision")

    async def readiness(self) -> ReadinessProbe:
        return ReadinessProbe(True, asyncio.get_running_loop().time())

    async def query(self) -> dict[str, Any]:
        return {}

    async def teardown(self) -> None:
        self.log.append("teardown")

    async def quiesce(self, live: bool) -> Mapping[str, str]:
        self.log.append(f"quiesce live={live}")
        if self.refuses and not live:
            raise UnsupportedError(f"the service {self.refuses} would lose its memory")
        return {"mail": "live" if live else "restart"}

    async def resume(self) -> None:
        self.log.append("resume")

    async def fork(self, sandbox: Sandbox, ctx: Context) -> WalkWorld:
        await asyncio.sleep(0)
        if self.fail_forks:
            raise self.fail_forks.pop()
        self.log.append("fork")
        return replace(self, sandbox=sandbox)

    async def describe(self) -> WorldState:
        assert self.sandbox is not None
        return WorldState({"files": {PATH: read_path(self.sandbox)}})


@dataclass
class PathReward:
    """Scores the file by a function of its letters."""

    worth: Callable[[str], float]
    fail: list[Exception] = field(default_factory=list[Exception])
    seen: list[str] = field(default_factory=list[str])

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        assert ctx.sandbox is not None
        if self.fail:
            raise self.fail.pop()
        path = read_path(ctx.sandbox)
        self.seen.append(path)
        said = "".join(m.content for m in node.messages if m.role == "assistant")
        assert said == path, "the tree tells what happened to the file"
        reward = self.worth(path)
        return VerifyResult(reward, events=(RewardEvent("reward", reward),))


@dataclass
class Play:
    """One rollout that branches, in virtual time."""

    artifacts: Path
    agent: WalkAgent
    reward: PathReward
    policy: BranchPolicy | None
    live: bool = True
    world: WalkWorld = field(default_factory=WalkWorld)
    observer: FakeObserver = field(default_factory=FakeObserver)
    tree: Tree = field(default_factory=Tree)
    provider: FakeProvider = field(init=False)
    scope: Any = None

    def __post_init__(self) -> None:
        snapshot = "live" if self.live else "freeze"
        self.provider = FakeProvider(changed(FAKE_CAPABILITIES, snapshot=snapshot))
        self.provider.pristine.write(PATH, "")

    async def run(self, **options: Any) -> RolloutResult:
        clock = SimClock()
        recorder = TreeRecorder(ITEM.rollout_id, self.observer, clock, tree=self.tree)
        fake = fake_context(Task("set:one", input="Walk."), artifacts=self.artifacts)
        self.scope = fake.cancel
        ctx = replace(fake, clock=clock, observer=self.observer, recorder=recorder)
        plan = RolloutPlan(
            item=ITEM,
            provider=self.provider,
            spec=SandboxSpec(host_root=True, live=self.live),
            agent=self.agent,
            environment=self.world,
            stages=[Stage(fake.task, self.reward, 100.0)],
            recorder=recorder,
            policy=self.policy,
            keep_worlds=self.policy is not None,
            **options,
        )
        return await run_rollout(plan, ctx)

    @property
    def leaf_paths(self) -> list[str]:
        """What was walked on the way to each leaf, sorted."""
        nodes = [self.tree.node(leaf) for leaf in self.tree.leaves()]
        return sorted(
            "".join(m.content for m in node.messages if m.role == "assistant") for node in nodes
        )
