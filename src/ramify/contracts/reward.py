"""How it is scored: Reward on a node, Verifier on a candidate."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.tree import RolloutNode


class Space(StrEnum):
    """Where in the trajectory a signal is read (seed 004, "the five spaces")."""

    OUTPUT = "output"
    """Did it finish the job?"""
    ACTION = "action"
    """Were the actions right, and honest?"""
    REASONING = "reasoning"
    """Is the reasoning sound and tied to action and answer?"""
    MEMORY = "memory"
    """Were memory and skills updated as they should be?"""
    LATENT = "latent"
    """Reserved: with access to activations."""


class Granularity(StrEnum):
    """What a signal is about."""

    TERMINAL = "terminal"
    """The whole trajectory."""
    STEP = "step"
    """One edge."""


class RewardEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One signal: `(space, granularity, value)`, with its name and, for steps, the node.

    Space and granularity may be given as their words; ValueError for a word that is none.
    """

    name: str
    value: float
    space: Space = Space.OUTPUT
    granularity: Granularity = Granularity.TERMINAL
    node: int | None = None

    def __post_init__(self) -> None:
        if type(self.space) is not Space:
            msgspec.structs.force_setattr(self, "space", Space(self.space))
        if type(self.granularity) is not Granularity:
            msgspec.structs.force_setattr(self, "granularity", Granularity(self.granularity))


class VerifyResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The score of a node.

    `reward` is a finite number, or None for "not scored" (infrastructure failed), which is never
    the same as 0. `items` are named parts and metrics, `errors` what went wrong with those that
    have no value, by name. `grader_isolation` says what agent and verifier shared.

    Raises:
        InvalidRewardError: `malformed`, for NaN or an infinity anywhere.
    """

    reward: float | None
    items: dict[str, float] = {}
    events: tuple[RewardEvent, ...] = ()
    space: Space = Space.OUTPUT
    granularity: Granularity = Granularity.TERMINAL
    grader_isolation: str | None = None
    details: dict[str, Any] = {}
    errors: dict[str, str] = {}

    def __post_init__(self) -> None:
        values = [*self.items.items(), *((e.name, e.value) for e in self.events)]
        if self.reward is not None:
            values.append(("reward", self.reward))
        for name, value in values:
            if not math.isfinite(value):
                raise InvalidRewardError("malformed", f"{name} is {value}; it must be finite")


class Reward(Protocol):
    """Scores a node of the tree.

    Guarantees: returns a VerifyResult or raises; never turns a failure into a number.

    Raises:
        InvalidRewardError: the evidence is missing, malformed, out of range or tampered with.
        SandboxError, InfraError: scoring itself failed; the rollout is not scored.
    """

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Score `node`; `ctx` gives the task, the agent's sandbox and the provider."""
        ...


@runtime_checkable
class GroupReward(Reward, Protocol):
    """A Reward of which some parts compare siblings: leaves of the same task.

    `score` leaves those parts out and names them in `details["pending"]`; a reward with pending
    parts is provisional.
    """

    @property
    def compares(self) -> bool:
        """Whether there are such parts at all."""
        ...

    async def score_group(
        self, nodes: Sequence[RolloutNode], contexts: Sequence[Context]
    ) -> Sequence[VerifyResult]:
        """Score all siblings with all parts; one result each, in the same order.

        A part that fails for one of them is in that one's `errors`; it never stops the others.
        """
        ...


def pending_parts(found: VerifyResult) -> tuple[str, ...]:
    """Parts of a score that wait for the siblings (see `GroupReward`)."""
    return tuple(found.details.get("pending", ()))


class RubricEntry(msgspec.Struct, frozen=True):
    """One function of a rubric, as it is described and written down.

    `name` is namespaced and unique (`core.tests`). `weight` 0 makes it a metric. `kind`:
    `function`, or `group` where it compares siblings.
    """

    name: str
    weight: float
    space: Space
    granularity: Granularity
    kind: str
    source: str
    arguments: tuple[str, ...] = ()


class RubricManifest(msgspec.Struct, frozen=True):
    """A compiled rubric, in the order in which its functions are evaluated and added up."""

    name: str
    entries: tuple[RubricEntry, ...]


@runtime_checkable
class Described(Protocol):
    """A Reward that can say what it is made of."""

    def describe(self) -> RubricManifest:
        """What it consists of."""
        ...


Verifier = Callable[..., Any | Awaitable[Any]]
"""A callable on a candidate (seed 001). Its first positional argument is the candidate, the
others are injected by name or type (contracts/calls.py). It returns a possibly richer result, or
raises VerificationRejected (counts, the agent may revise), FatalAgentError (fail now), or
anything else (our failure: does not count as an attempt)."""
