"""Observers: where events go besides the store."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ramify.contracts.events import (
    AnyEvent,
    LogEvent,
    MetricEvent,
    Observer,
    OutcomeEvent,
    PhaseEvent,
)
from ramify.engine.redact import Redactor

_LOGGER = logging.getLogger("ramify")
_LOGGER.addHandler(logging.NullHandler())  # a library leaves it to the program what is shown
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+%,-]+")


class FanOut:
    """Gives every event to several observers, in their order.

    An observer that raises, against its contract, does not keep the others from the event; its
    first failure is logged to `ramify`.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._failed: set[int] = set()

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        for index, observer in enumerate(self._observers):
            try:
                observer.emit(event)
            except Exception:  # one observer's bug must not disturb a rollout or the others
                if index not in self._failed:
                    self._failed.add(index)
                    _LOGGER.exception("observer %s failed", type(observer).__name__)


class RedactingObserver:
    """Passes events on without secrets."""

    def __init__(self, inner: Observer, redactor: Redactor) -> None:
        self._inner, self._redactor = inner, redactor

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        self._inner.emit(self._redactor.clean(event))


class LoggingObserver:
    """Writes LogEvents to the standard logger `ramify` as one line of `key=value`.

    Values with spaces, quotes or control characters are quoted as JSON, so that a hostile text
    cannot forge a line or a field. An unknown level counts as info.
    """

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        if not isinstance(event, LogEvent):
            return
        level = _LEVELS.get(event.level.lower(), logging.INFO)
        if not _LOGGER.isEnabledFor(level):
            return
        fields = {"rollout": event.rollout_id, **event.fields}
        pairs = " ".join(f"{_quoted(key)}={_quoted(value)}" for key, value in fields.items())
        message = event.message if event.message.isprintable() else json.dumps(event.message)
        _LOGGER.log(level, "%s %s", message, pairs)


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


@dataclass(slots=True)
class Summary:
    """What was measured under one name. `unit` is spelled out: seconds, bytes, count."""

    unit: str
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN before the first value."""
        return self.total / self.count if self.count else math.nan


class Metrics:
    """Adds up measurements by name, over all rollouts.

    MetricEvents count under their own name, phases as `phase.<name>` (seconds), outcomes as
    `outcome.<name>` (count). A name that comes with two units is kept apart as `name (unit)`.
    """

    def __init__(self) -> None:
        self._summaries: dict[str, Summary] = {}

    def emit(self, event: AnyEvent) -> None:
        """Take one event."""
        if isinstance(event, MetricEvent):
            self._add(event.name, event.value, event.unit)
        elif isinstance(event, PhaseEvent) and event.duration_sec is not None:
            self._add(f"phase.{event.phase.value}", event.duration_sec, "seconds")
        elif isinstance(event, OutcomeEvent):
            self._add(f"outcome.{event.outcome.value}", 1.0, "count")

    def report(self) -> dict[str, Summary]:
        """Everything so far, by name."""
        return dict(sorted(self._summaries.items()))

    def _add(self, name: str, value: float, unit: str) -> None:
        summary = self._summaries.setdefault(name, Summary(unit))
        if summary.unit != unit:
            summary = self._summaries.setdefault(f"{name} ({unit})", Summary(unit))
        summary.count += 1
        summary.total += value
        summary.least = min(summary.least, value)
        summary.most = max(summary.most, value)
