"""What happens in a run, told live to whoever follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ramify import compose
from ramify.apps.pipeline.records import RunEvent, StepReport, StepSpec
from ramify.apps.pipeline.report import stamp
from ramify.contracts.context import Clock

_PIECE = 32 * 1024
_PAUSE_SEC = 0.05


class Output:
    """Tells output as it comes: whole lines, safe to show. Of a flood it tells only a part.

    Args:
        tell: is given text, without the last line break.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._loop = tell, asyncio.get_running_loop()
        self._rest = bytearray()
        self._told_at = float("-inf")
        self._later: asyncio.TimerHandle | None = None

    def __call__(self, data: bytes) -> None:
        """Take the next piece; an empty one is the end."""
        self._rest += data
        del self._rest[: -2 * _PIECE]
        if not data:
            self._flush(end=True)
        elif self._loop.time() - self._told_at >= _PAUSE_SEC:
            self._flush(end=False)
        elif self._later is None:
            self._later = self._loop.call_later(_PAUSE_SEC, self._flush)

    def _flush(self, *, end: bool = False) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        stop = len(self._rest) if end else self._rest.rfind(b"\n") + 1
        if not stop and len(self._rest) >= _PIECE:
            stop = len(self._rest)
        if stop:
            text = compose.tail_text(bytes(self._rest[max(0, stop - _PIECE) : stop]))
            del self._rest[:stop]
            self._told_at = self._loop.time()
            self._tell(text)


class Teller:
    """Makes events of one run.

    Args:
        run_id: of the run.
        clock: tells when.
        on_event: is given each.
    """

    def __init__(self, run_id: str, clock: Clock, on_event: Callable[[RunEvent], None]) -> None:
        self._run_id, self._clock, self._on_event = run_id, clock, on_event

    def run_started(self) -> None:
        """The run begins."""
        self._tell(RunEvent("run_started", self._run_id, self._now()))

    def run_ended(self, status: str, text: str) -> None:
        """The run is over; `text` says why it has its status."""
        self._tell(RunEvent("run_ended", self._run_id, self._now(), text=text, status=status))

    def step_started(self, step: StepSpec, number: int) -> None:
        """A step begins; steps count from 1 here."""
        self._tell(RunEvent("step_started", self._run_id, self._now(), step.name, number + 1))

    def step_ended(self, report: StepReport, number: int) -> None:
        """A step is over."""
        self._tell(
            RunEvent(
                "step_ended",
                self._run_id,
                self._now(),
                report.name,
                number + 1,
                text=report.error or "",
                status=report.status,
                exit_code=report.exit_code,
                duration_ms=report.duration_ms,
            )
        )

    def output(self, step: StepSpec, number: int) -> Output:
        """What tells the output of a step, as it comes."""

        def tell(text: str) -> None:
            self._tell(RunEvent("output", self._run_id, self._now(), step.name, number + 1, text))

        return Output(tell)

    def _tell(self, event: RunEvent) -> None:
        self._on_event(event)

    def _now(self) -> str:
        return stamp(self._clock.now())
