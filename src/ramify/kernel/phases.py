"""Phases of a rollout: named, timed, bounded; and clean-up that nothing stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ramify.contracts.context import Clock
from ramify.contracts.errors import InfraError
from ramify.contracts.events import LogEvent, Observer, Phase, PhaseEvent

Action = Callable[[], Awaitable[None]]

_BACKSTOP_SEC = {
    Phase.SETUP: 7200.0,
    Phase.START: 600.0,
    Phase.PROVISION: 7200.0,
    Phase.CONNECT: 600.0,
    Phase.BRANCH: 3600.0,
}
"""How long a phase may take at the very most. Providers keep shorter deadlines of their own; this
one is for a part that keeps none."""

_CLEANUP_SEC = 60.0
"""How long one clean-up action may take before it is reported and left to the sweeper."""


def is_cancelled() -> bool:
    """Whether somebody asked the current task to stop; False for a part's own stray error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(slots=True)
class Phases:
    """Where one path of a rollout stands, and how long each phase took over all paths.

    Attributes:
        rollout_id, clock, observer: whose, when, and who is told.
        limits: seconds of phases that are bounded otherwise than by default.
        timings: seconds by phase, shared by all paths of the rollout.
        current: the phase that runs, or ran last.
    """

    rollout_id: str
    clock: Clock
    observer: Observer
    limits: Mapping[Phase, float]
    timings: dict[str, float] = field(default_factory=dict[str, float])
    current: Phase = Phase.SETUP

    def fork(self) -> Phases:
        """Of another path of the same rollout."""
        return Phases(
            self.rollout_id, self.clock, self.observer, self.limits, self.timings, self.current
        )

    @asynccontextmanager
    async def during(self, phase: Phase) -> AsyncGenerator[None]:
        """Time the body as `phase`. Raises InfraError when it takes longer than it may."""
        self.current = phase
        self.observer.emit(PhaseEvent(self.rollout_id, self.clock.now(), phase))
        start = self.clock.monotonic()
        limit = self.limits.get(phase, _BACKSTOP_SEC.get(phase))
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise InfraError(f"{phase} did not end within {limit:g} s") from None
        finally:
            took = self.clock.monotonic() - start
            self.timings[phase.value] = self.timings.get(phase.value, 0.0) + took
            self.observer.emit(PhaseEvent(self.rollout_id, self.clock.now(), phase, took))

    async def clean(self, what: str, action: Action) -> None:
        """Run one clean-up action; a failure is reported, and left to the provider's sweep."""
        try:
            async with asyncio.timeout(_CLEANUP_SEC):
                await action()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            fields = {"what": what, "error": f"{type(error).__name__}: {error}"}
            now = self.clock.now()
            self.observer.emit(LogEvent(self.rollout_id, now, "error", "clean-up failed", fields))
