"""A Context for tests of one plane: what it records and emits is kept in lists."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from ramify.contracts.config import RolloutConfig
from ramify.contracts.context import Context
from ramify.contracts.events import AnyEvent
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider
from ramify.contracts.task import Task
from ramify.contracts.tree import Step


@dataclass(slots=True)
class FakeRecorder:
    """Keeps what is recorded. Implements `contracts.context.Recorder`."""

    opening: tuple[Message, ...] = ()
    steps: list[Step] = field(default_factory=list[Step])

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        """Keep the opening."""
        self.opening = messages

    async def step(self, step: Step) -> int:
        """Keep a step; ids count from 1."""
        self.steps.append(step)
        return len(self.steps)


@dataclass(slots=True)
class FakeObserver:
    """Keeps events. Implements `contracts.events.Observer`."""

    events: list[AnyEvent] = field(default_factory=list[AnyEvent])

    def emit(self, event: AnyEvent) -> None:
        """Keep an event."""
        self.events.append(event)


@dataclass(slots=True)
class FakeClock:
    """A clock that only `sleep` moves. Implements `contracts.context.Clock`."""

    time: float = 1_000_000.0

    def now(self) -> float:
        """Its time."""
        return self.time

    def monotonic(self) -> float:
        """Its time."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """Move on at once, giving way to others."""
        self.time += seconds
        await asyncio.sleep(0)


@dataclass(slots=True)
class FakeScope:
    """A cancel scope. Implements `contracts.context.CancelScope`."""

    reason: str | None = None
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def cancel(self, reason: str) -> None:
        """Cancel it; the first reason stays."""
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self) -> None:
        """Return when cancelled."""
        await self._event.wait()


def fake_context(
    task: Task,
    *,
    artifacts: Path,
    config: RolloutConfig | None = None,
    sandbox: Sandbox | None = None,
    provider: SandboxProvider | None = None,
    image: SandboxImage | None = None,
) -> Context:
    """A Context of fakes for `task`."""
    return Context(
        task=task,
        config=config or RolloutConfig(),
        rollout_id="fake-rollout",
        clock=FakeClock(),
        rng=random.Random(0),
        cancel=FakeScope(),
        observer=FakeObserver(),
        recorder=FakeRecorder(),
        artifacts=artifacts,
        sandbox=sandbox,
        sandboxes=provider,
        image=image,
    )
