"""What a plane is given to work with, explicitly. Nothing is forwarded behind its back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ramify.contracts.config import RolloutConfig
from ramify.contracts.events import Observer
from ramify.contracts.messages import Message
from ramify.contracts.model import Model
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider
from ramify.contracts.task import Task
from ramify.contracts.tree import Step


class Clock(Protocol):
    """Time, injected, so that a simulation can own it."""

    def now(self) -> float:
        """Wall-clock seconds since the epoch, UTC. For records, never for deadlines."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that only goes forward, the event loop's own."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class CancelScope(Protocol):
    """Whether, and why, the work should stop."""

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        ...

    @property
    def reason(self) -> str | None:
        """Why, in a few words."""
        ...

    def cancel(self, reason: str) -> None:
        """Ask everything in this scope to stop. Idempotent; the first reason stays."""
        ...

    async def wait(self) -> None:
        """Return when cancelled."""
        ...


class Recorder(Protocol):
    """How a plane adds to the rollout's tree, live."""

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        """Record what opens the conversation, before the first step.

        An agent that opens it otherwise (with a system message) gives the whole opening again:
        the last one holds.
        """
        ...

    async def step(self, step: Step) -> int:
        """Append a step below the current node; returns the new node's id.

        Waits while the store is behind (backpressure). Raises StoreError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Everything one rollout hands to the planes.

    Attributes:
        task: the problem.
        config: limits and sampling.
        rollout_id: unique within the job.
        clock, rng: time and randomness; nothing else may be used for either.
        cancel: the rollout's cancel scope.
        observer: where events go.
        recorder: adds steps to the tree.
        artifacts: a host directory of this rollout that is kept; nothing inside a sandbox can
            write to it directly.
        model: the policy's endpoint, if the run has one.
        resources: objects the caller registered, by name.
        sandbox: the rollout's sandbox, from phase `start` on.
        sandboxes: the provider that made it.
        image: the pristine image it was made from.
    """

    task: Task
    config: RolloutConfig
    rollout_id: str
    clock: Clock
    rng: random.Random
    cancel: CancelScope
    observer: Observer
    recorder: Recorder
    artifacts: Path
    model: Model | None = None
    resources: Mapping[str, object] = field(default_factory=dict[str, object])
    sandbox: Sandbox | None = None
    sandboxes: SandboxProvider | None = None
    image: SandboxImage | None = None

    @property
    def workdir(self) -> str:
        """The work directory inside: the task's, else the image's, else `/app`."""
        package = self.task.package
        declared = package.sandbox.workdir if package else None
        return declared or (self.image.workdir if self.image else None) or "/app"
