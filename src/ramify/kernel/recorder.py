"""Grows the tree and tells the observer, in one place, so the two cannot disagree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ramify.contracts.context import Clock
from ramify.contracts.events import (
    CheckpointEvent,
    NodeEvent,
    Observer,
    RewardGiven,
    RewardParts,
    StatusEvent,
)
from ramify.contracts.messages import Message
from ramify.contracts.reward import RewardEvent, VerifyResult, pending_parts
from ramify.contracts.tree import NodeStatus, Outcome, Step
from ramify.kernel.tree import Tree


async def _no_wait() -> None:
    """No backpressure."""


@dataclass(slots=True)
class TreeRecorder:
    """Implements `contracts.context.Recorder` over one tree.

    Attributes:
        rollout_id: the rollout that owns the tree.
        observer: gets one event for each change.
        clock: stamps events.
        ready: awaited after each step; returns when the store has caught up.
        tree: what is grown.
        current: id of the node that the next step is appended to.
        pause: awaited after each step that `step` records; where a branch begins, it does not
            return.
    """

    rollout_id: str
    observer: Observer
    clock: Clock
    ready: Callable[[], Awaitable[None]] = _no_wait
    tree: Tree = field(default_factory=Tree)
    current: int = 0
    pause: Callable[[], Awaitable[None]] = _no_wait

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        """Record what opens the conversation, as the root."""
        self.tree.opening = messages
        self.observer.emit(NodeEvent(self.rollout_id, self.clock.now(), 0, -1, None, messages))
        await self.ready()

    async def step(self, step: Step) -> int:
        """Append a step below the current node and move there."""
        self.mark(step)
        await self.ready()
        await self.pause()
        return self.current

    def mark(self, step: Step) -> None:
        """Append a step that is nobody's action, such as the start of a part of a task."""
        parent = self.current
        self.current = self.tree.add(parent, step)
        self.observer.emit(NodeEvent(self.rollout_id, self.clock.now(), self.current, parent, step))

    def at(self, node: int) -> TreeRecorder:
        """Another recorder of the same tree, which goes on from `node`."""
        return replace(self, current=node, pause=_no_wait)

    def settle(self, status: NodeStatus) -> None:
        """Settle the current node."""
        self.tree.settle(self.current, status)
        now = self.clock.now()
        self.observer.emit(StatusEvent(self.rollout_id, now, self.current, status))

    def checkpoint(self, event: CheckpointEvent) -> None:
        """Attach a snapshot of the world to its node."""
        self.tree.set_state(event.node, event.snapshot)
        self.observer.emit(event)

    def reward_parts(self, found: VerifyResult, outcome: Outcome, *, missing: bool) -> None:
        """Say what there is of the current node's reward, which is not whole."""
        self.observer.emit(
            RewardParts(
                rollout_id=self.rollout_id,
                ts=self.clock.now(),
                node=self.current,
                outcome=outcome,
                items=found.items,
                errors=found.errors,
                pending=pending_parts(found),
                missing=missing,
            )
        )

    def reward(self, event: RewardEvent) -> None:
        """Attach a signal to its node, or to the current one."""
        node = self.current if event.node is None else event.node
        self.tree.reward(node, event)
        self.observer.emit(
            RewardGiven(
                self.rollout_id,
                self.clock.now(),
                node,
                event.name,
                event.value,
                event.space.value,
                event.granularity.value,
            )  # fmt: skip
        )
