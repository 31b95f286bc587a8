"""Jobs whose agent says a number each time, in sandboxes that are only played."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ramify
from ramify.contracts.agent import AgentCapabilities, AskUserHandler, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import Task
from ramify.contracts.tree import Step
from ramify.testing.fakes import FakeProvider


@dataclass
class _Saying:
    agent: Saying
    ctx: Context
    taken: list[Step] = field(default_factory=list)

    async def prompt(self, text: str) -> StopReason:
        repeat = int(self.ctx.rollout_id.rpartition("-")[2])
        self.agent.asked.append(self.ctx.rollout_id)
        for word in ("so", str(repeat)):
            self.taken.append(Step((Message("assistant", word),), action=f"say {word}"))
            await self.ctx.recorder.step(self.taken[-1])
        if self.agent.fails:
            raise AgentError("it gave up")
        return StopReason.END_TURN

    async def cancel(self) -> None:
        """Says no more anyway."""

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """Asks nothing."""

    @property
    def steps(self) -> Sequence[Step]:
        return self.taken

    async def aclose(self) -> None:
        """Holds nothing."""


@dataclass
class Saying:
    """An agent that says the number of its repeat; `asked` are the rollouts it worked in."""

    asked: list[str] = field(default_factory=list)
    fails: bool = False
    name: str = "saying"

    def capabilities(self) -> AgentCapabilities:
        return AgentCapabilities()

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> _Saying:
        return _Saying(self, ctx)


TASKS = [Task(f"set:{name}", input=f"Say it, {name}.", target="1") for name in ("a", "b")]


def said(completion: Sequence[Message]) -> int:
    """What a conversation ends with."""
    return int(completion[-1].content)


def sandboxes() -> FakeProvider:
    """In which directories can be made, and nothing else is there."""
    provider = FakeProvider()
    provider.on(re.compile("^mkdir -p"), b"")
    return provider


async def play(
    out: Path, reward: Any, agent: Saying | None = None, repeats: int = 3, **options: Any
) -> ramify.JobReport:
    """Run the tasks, each so many times."""
    return await ramify.run(
        ramify.MemoryTaskset("set", TASKS),
        agent=agent or Saying(),
        sandbox=sandboxes(),
        reward=reward,
        options=ramify.RunOptions(out=out, repeats=repeats, **options),
    )
