"""What happens in a run, told live to whoever follows it."""

from __future__ import annotations

from collections.abc import Callable

from ramify import compose
from ramify.apps.pipeline.records import RunEvent, StepReport, StepSpec
from ramify.apps.pipeline.report import stamp
from ramify.contracts.context import Clock

_PIECE = 32 * 1024


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

    def output(self, step: StepSpec, number: int) -> Callable[[bytes], None]:
        """What tells the output of a step: whole lines, safe to show, as they come.

        A flood is told in part: of each piece that comes at once, its last 32 KiB. An empty piece
        is the end: what is left of a line is told too.
        """
        rest = bytearray()

        def tell(data: bytes) -> None:
            rest.extend(data)
            end = rest.rfind(b"\n") + 1
            if not end and data and len(rest) < _PIECE:
                return
            end = end or len(rest)
            if not end:
                return
            text = compose.tail_text(bytes(rest[max(0, end - _PIECE) : end]))
            del rest[:end]
            event = RunEvent("output", self._run_id, self._now(), step.name, number + 1, text)
            self._tell(event)

        return tell

    def _tell(self, event: RunEvent) -> None:
        self._on_event(event)

    def _now(self) -> str:
        return stamp(self._clock.now())
