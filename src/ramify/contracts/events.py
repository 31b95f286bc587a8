"""What happens, as it happens: one record per event, in a fixed order per rollout.

Events of one rollout arrive in the order in which they happened. Events of different rollouts
interleave freely. The store writes exactly these records (DESIGN.md §6).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

import msgspec

from ramify.contracts.messages import Message
from ramify.contracts.tree import NodeStatus, Outcome, Step


class Phase(StrEnum):
    """Phases of a rollout, in order (seed 004, "Rollout lifecycle").

    `branch` is a checkpoint and the start of what goes on from it; it interrupts `execute`.
    """

    SETUP = "setup"
    START = "start"
    PROVISION = "provision"
    READINESS = "readiness"
    CONNECT = "connect"
    EXECUTE = "execute"
    BRANCH = "branch"
    VERIFY = "verify"
    TEARDOWN = "teardown"


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """Base: which rollout, and when (UTC seconds since the epoch)."""

    rollout_id: str
    ts: float


class LeaseEvent(Event, frozen=True, tag="lease"):
    """An attempt at a rollout begins. Only a result with the newest fence counts."""

    attempt: int
    fence: int
    seed: int


class PhaseEvent(Event, frozen=True, tag="phase"):
    """A phase begins (`duration_sec` None) or has ended."""

    phase: Phase
    duration_sec: float | None = None


class NodeEvent(Event, frozen=True, tag="node"):
    """A node is added: the step from its parent, never the prefix.

    The root has parent -1, no step, and the messages that open the conversation.
    """

    node: int
    parent: int
    step: Step | None = None
    messages: tuple[Message, ...] = ()


class StatusEvent(Event, frozen=True, tag="status"):
    """A node's status is settled."""

    node: int
    status: NodeStatus


class RewardGiven(Event, frozen=True, tag="reward"):
    """A signal on a node."""

    node: int
    name: str
    value: float
    space: str
    granularity: str


class RewardParts(Event, frozen=True, tag="reward_parts", kw_only=True):
    """What was found of a leaf's reward, part by part, where parts of it are still to come.

    `items` are those that were computed, `errors` those that failed, `pending` those that wait for
    the siblings. `missing`: without what failed there is no reward at all, so the leaf is not
    scored; `outcome` is what it is once it has one.
    """

    node: int
    outcome: Outcome
    items: dict[str, float] = {}
    errors: dict[str, str] = {}
    pending: tuple[str, ...] = ()
    missing: bool = False


class CheckpointEvent(Event, frozen=True, tag="checkpoint"):
    """A snapshot was taken at a node. `cost_sec` is what it took, `size_bytes` what it added.

    `live`: it holds processes. `services`: how each comes through (`Forkable.quiesce`).
    """

    node: int
    snapshot: str
    digest: str
    cost_sec: float
    size_bytes: int = -1
    live: bool = False
    services: dict[str, str] = {}


class WorldEvent(Event, frozen=True, tag="world"):
    """What the world held at a node was written down: `place` names the artifact, a WorldState."""

    node: int
    place: str


class LogEvent(Event, frozen=True, tag="log"):
    """A structured log line. Values are redacted before they come here."""

    level: str
    message: str
    fields: dict[str, Any] = {}


class MetricEvent(Event, frozen=True, tag="metric"):
    """A measurement. `unit` is spelled out: seconds, bytes, count."""

    name: str
    value: float
    unit: str


class OutcomeEvent(Event, frozen=True, tag="outcome"):
    """The rollout ended; the whole result stands in results.jsonl."""

    outcome: Outcome
    reward: float | None
    attempt: int


AnyEvent = (
    LeaseEvent
    | PhaseEvent
    | NodeEvent
    | StatusEvent
    | RewardGiven
    | RewardParts
    | CheckpointEvent
    | WorldEvent
    | LogEvent
    | MetricEvent
    | OutcomeEvent
)


class Observer(Protocol):
    """Sees every event. Must return at once and must not raise."""

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        ...
