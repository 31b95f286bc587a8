"""One rollout as a tree of states: nodes, the steps between them, and how a rollout ends."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from ramify.contracts.messages import Message, TokenSpan, Usage


class Outcome(StrEnum):
    """How a rollout ended: exactly one per rollout, the same word on its leaf (DESIGN.md §6)."""

    SCORED = "scored"
    """Verified; the reward counts."""
    AGENT_ERROR = "agent_error"
    """The agent failed; verified and scored as it stands."""
    AGENT_TIMEOUT = "agent_timeout"
    """The agent ran out of time; verified and scored as it stands."""
    ENV_ERROR = "env_error"
    """The world failed. Never scored, retried by policy, counted."""
    INFRA_ERROR = "infra_error"
    """The machine or our side failed. Never scored, retried by policy, counted."""
    INVALID = "invalid"
    """The evidence cannot be trusted; counts as the task's minimum reward."""
    CANCELLED = "cancelled"
    """Stopped by the caller. Never scored; runs again when the job is resumed."""

    @property
    def counts(self) -> bool:
        """Whether the reward enters means and groups."""
        return self in _COUNTED

    @property
    def final(self) -> bool:
        """Whether a resumed job leaves it alone: what was never scored runs again."""
        return self.counts


_COUNTED = frozenset({Outcome.SCORED, Outcome.AGENT_ERROR, Outcome.AGENT_TIMEOUT, Outcome.INVALID})


class NodeStatus(StrEnum):
    """What is known about a node: still growing, an inner state, or one of the outcomes."""

    OPEN = "open"
    INNER = "inner"
    SCORED = "scored"
    AGENT_ERROR = "agent_error"
    AGENT_TIMEOUT = "agent_timeout"
    ENV_ERROR = "env_error"
    INFRA_ERROR = "infra_error"
    INVALID = "invalid"
    CANCELLED = "cancelled"


class StepKind(StrEnum):
    """Why this continuation exists, which decides whether it may enter a value estimate."""

    SAMPLED = "sampled"
    """Drawn from the policy."""
    ENUMERATED = "enumerated"
    """One of a finite set of options, each with a prior."""
    FORCED = "forced"
    """Chosen by somebody; left out of value estimates."""


class Fidelity(StrEnum):
    """What a child of a branch got of the agent's session, from most to least."""

    LIVE = "live"
    """The same processes with the same memory and open connections."""
    RESUMED = "resumed"
    """A copy of the agent's own session store, loaded again at a turn boundary."""
    REPLAYED = "replayed"
    """Started again, and given the recorded model answers up to the branch point."""
    FRESH = "fresh"
    """A new session that knows nothing of what was said before."""

    def reaches(self, minimum: Fidelity) -> bool:
        """Whether this is at least as much as `minimum`."""
        rungs = list(Fidelity)
        return rungs.index(self) <= rungs.index(minimum)


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One edge: reason → act → observe.

    A child of a branch begins with a step of role `branch` that adds no message: it carries
    `branch_reason`, and in `info` the `fidelity` of the session and of each service.

    `messages` is what this step adds to the conversation (never the prefix). `action` names what
    was done, for people. `prior` is needed for enumerated steps, `logprob` is the behaviour
    policy's. Times are seconds; `started_at` is UTC since the epoch.
    """

    messages: tuple[Message, ...] = ()
    action: str = ""
    kind: StepKind = StepKind.SAMPLED
    role: str = "agent"
    skills: tuple[str, ...] = ()
    prior: float | None = None
    logprob: float | None = None
    branch_reason: str | None = None
    outcome_dependent: bool = False
    usage: Usage | None = None
    tokens: TokenSpan | None = None
    started_at: float = 0.0
    duration_sec: float = 0.0
    info: dict[str, Any] = {}


class RolloutNode(Protocol):
    """A state in the tree, seen with its context. A reward is given one of these."""

    @property
    def id(self) -> int:
        """Append-ordered: a parent's id is smaller than its children's."""
        ...

    @property
    def depth(self) -> int:
        """Number of steps from the root."""
        ...

    @property
    def status(self) -> NodeStatus:
        """What is known about it."""
        ...

    @property
    def step(self) -> Step | None:
        """The step that led here; None at the root."""
        ...

    @property
    def path(self) -> Sequence[RolloutNode]:
        """Root to this node, both included."""
        ...

    @property
    def subtree(self) -> Sequence[RolloutNode]:
        """This node and all below it, in id order."""
        ...

    @property
    def messages(self) -> Sequence[Message]:
        """The whole conversation up to here."""
        ...

    @property
    def state(self) -> str | None:
        """Reference to the snapshot of the world at this node, if there is one."""
        ...
