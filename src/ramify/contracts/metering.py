"""What models cost that others ask on a rollout's behalf: judges, and agents that grade.

Whoever scores a rollout opens a meter; whatever is asked meanwhile, in tasks and threads of that
work too, is charged to it. So a judge's cost reaches the rollout however deep in a rubric it sits.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ramify.contracts.messages import Usage


@dataclass(slots=True)
class Meter:
    """What was charged so far."""

    used: Usage = Usage()


_open: ContextVar[Meter | None] = ContextVar("ramify_meter", default=None)


@contextmanager
def metering() -> Generator[Meter]:
    """Measure what is charged in this block, and in the tasks and threads that it starts."""
    meter = Meter()
    token = _open.set(meter)
    try:
        yield meter
    finally:
        _open.reset(token)


def charge(used: Usage) -> None:
    """Charge calls of a model to the meter of the work at hand; no effect where nobody measures."""
    meter = _open.get()
    if meter is not None:
        meter.used += used
