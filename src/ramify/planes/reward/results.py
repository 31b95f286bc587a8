"""What a function of a rubric came to, and what the rubric makes of all of them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any, cast

import msgspec

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reward import Granularity, RewardEvent, RubricEntry, VerifyResult
from ramify.contracts.task import IsolationLevel
from ramify.planes.reward.threads import Returned

HOST = "host"
"""`grader_isolation` of what ran in our own process: it shares nothing with the agent."""

_MAX_MESSAGE = 1000


class NotANumberError(TypeError):
    """A function returned something that is no finite number."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one function came to on one node: a value, or `raised`.

    `items`, `details` and `errors` are named within the function.
    """

    value: float | None
    events: tuple[RewardEvent, ...] = ()
    items: Mapping[str, float] = field(default_factory=dict[str, float])
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    errors: Mapping[str, str] = field(default_factory=dict[str, str])
    isolation: str | None = HOST
    raised: BaseException | None = None

    @property
    def message(self) -> str:
        """Why there is no value."""
        if self.raised is None:
            return "; ".join(self.errors.values()) or "it says that it could not score"
        return explained(self.raised)


def read_score(entry: RubricEntry, returned: Returned, node: int) -> Score:
    """What a function returned for a node, as a Score; anything but a score is an error in it."""
    if returned.raised is not None:
        return Score(None, raised=returned.raised)
    value = returned.value
    if isinstance(value, VerifyResult):
        return Score(
            None if value.reward is None else float(value.reward),
            value.events,
            value.items,
            value.details,
            value.errors,
            value.grader_isolation,
        )
    events = _events(value)
    if events is not None:
        numbers = [number for event in events if (number := _finite(event.value)) is not None]
        if not events or len(numbers) < len(events):
            why = "no event at all" if not events else "an event whose value is not finite"
            return Score(None, raised=NotANumberError(f"it returned {why}"))
        return Score(math.fsum(numbers) / len(numbers), events)
    if (number := _finite(value)) is None:
        return Score(None, raised=NotANumberError(
            f"it returned {reprlib.repr(value)}; it must return a finite number, a VerifyResult or "
            "RewardEvents"
        ))  # fmt: skip
    at = node if entry.granularity is Granularity.STEP else None
    event = RewardEvent(entry.name, number, entry.space, entry.granularity, at)
    return Score(number, (event,))


def explained(error: BaseException) -> str:
    """An error as one text that can be written down."""
    try:
        text = str(error)
    except Exception:  # another's class; that it cannot say what is wrong must not hide that it is
        text = "(it cannot say what is wrong)"
    return f"{type(error).__name__}: {text}"[:_MAX_MESSAGE].encode(errors="replace").decode()


def combine(
    scores: Sequence[tuple[RubricEntry, Score]],
    pending: Sequence[str] = (),
    own: Mapping[str, str] = MappingProxyType({}),
) -> VerifyResult:
    """One result of all functions, in their order. Names within a function follow its own.

    `own`: function → what it calls itself, where that is not how the rubric calls it.
    The reward is the weighted sum, and None where a function of non-zero weight has no value.
    """
    items: dict[str, float] = {}
    events: list[RewardEvent] = []
    details: dict[str, Any] = {}
    errors: dict[str, str] = {}
    terms: list[float] = []
    for entry, score in scores:
        if score.value is None:
            errors[entry.name] = score.message
        else:
            items[entry.name] = score.value
            terms.append(entry.weight * score.value if entry.weight else 0.0)
        items.update({f"{entry.name}.{key}": number for key, number in score.items.items()})
        errors.update({f"{entry.name}.{key}": text for key, text in score.errors.items()})
        events += _renamed(score.events, entry.name, own.get(entry.name, ""))
        if score.details:
            details[entry.name] = dict(score.details)
    failed = any(entry.weight and score.value is None for entry, score in scores)
    reward = None if failed else added(terms)
    if reward is None and not failed:
        errors["reward"] = "the weighted sum is too large for a finite number"
    if pending:
        details["pending"] = list(pending)
    return VerifyResult(
        reward=reward,
        items=items,
        events=tuple(events),
        grader_isolation=_weakest([score.isolation for _, score in scores]),
        details=details,
        errors=errors,
    )


def merge(results: Sequence[VerifyResult]) -> VerifyResult:
    """One result of several rubrics', in their order; None as soon as one is not scored."""
    rewards = [result.reward for result in results]
    details: dict[str, Any] = {}
    pending: list[str] = []
    for result in results:
        pending += result.details.get("pending", [])
        details.update({k: v for k, v in result.details.items() if k != "pending"})
    errors = {name: text for result in results for name, text in result.errors.items()}
    numbers = [reward for reward in rewards if reward is not None]
    total = added(numbers) if len(numbers) == len(rewards) else None
    if total is None and len(numbers) == len(rewards):
        errors["reward"] = "the sum is too large for a finite number"
    return VerifyResult(
        reward=total,
        items={name: value for result in results for name, value in result.items.items()},
        events=tuple(event for result in results for event in result.events),
        grader_isolation=_weakest([result.grader_isolation for result in results]),
        details=details | ({"pending": pending} if pending else {}),
        errors=errors,
    )


def added(terms: Sequence[float]) -> float | None:
    """The exact sum, whatever the order; None where that is no finite number."""
    if not all(math.isfinite(term) for term in terms):
        return None
    try:
        return math.fsum(terms)
    except OverflowError:
        return None


def raise_invalid(scores: Sequence[tuple[RubricEntry, Score]]) -> None:
    """Raise what the first function of non-zero weight said about evidence that is invalid."""
    for entry, score in scores:
        if entry.weight and isinstance(score.raised, InvalidRewardError):
            raise score.raised


def _finite(value: object) -> float | None:
    """The number that this is; None where it is none, a bool, or no finite one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an int or a fraction that no float can hold
        return None
    return number if math.isfinite(number) else None


def _events(value: object) -> tuple[RewardEvent, ...] | None:
    if isinstance(value, RewardEvent):
        return (value,)
    if not isinstance(value, list | tuple):
        return None
    found = cast(Sequence[object], value)
    events = tuple(event for event in found if isinstance(event, RewardEvent))
    return events if len(events) == len(found) else None


def _renamed(events: Sequence[RewardEvent], function: str, own: str) -> list[RewardEvent]:
    """The signals of a function under its name in the rubric, which each of them has once."""
    return [
        msgspec.structs.replace(event, name=_within(function, own, event.name)) for event in events
    ]


def _within(function: str, own: str, name: str) -> str:
    for prefix in (function, function.rpartition(".")[2], own):
        if prefix and (name == prefix or name.startswith(f"{prefix}.")):
            return function + name.removeprefix(prefix)
    return f"{function}.{name}"


def _weakest(levels: Sequence[str | None]) -> str | None:
    """What shares most with the agent; a word that is not ours counts as most of all."""
    order = [HOST, *IsolationLevel]
    known = [level for level in levels if level is not None]
    return max(known, key=lambda w: order.index(w) if w in order else len(order), default=None)
