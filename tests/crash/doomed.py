"""An engine that kills itself with SIGKILL when a rollout enters a given phase.

python doomed.py SANDBOX OUT PHASE NTH DELAY_MS
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.events import AnyEvent, PhaseEvent
from ramify.envs.plan import RunOptions
from ramify.envs.run import open_job

TASKS = Path(__file__).parent / "tasks"
REPEATS = 3


def options(out: Path) -> RunOptions:
    return RunOptions(out=out, repeats=REPEATS, concurrency=4)


@dataclass
class Doom:
    """Kills this process a little after the nth time that a rollout enters a phase."""

    phase: str
    nth: int
    delay_sec: float

    def emit(self, event: AnyEvent) -> None:
        if (
            isinstance(event, PhaseEvent)
            and event.phase == self.phase
            and event.duration_sec is None
        ):
            self.nth -= 1
            if self.nth == 0:
                if self.delay_sec:
                    threading.Timer(self.delay_sec, self.strike).start()
                else:
                    self.strike()

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def main(sandbox: str, out: Path, doom: Doom) -> None:
    async with open_job(
        TASKS, agent="oracle", sandbox=sandbox, options=options(out), observers=[doom]
    ) as (job, _):
        async with aclosing(job.stream()) as results:
            async for _ in results:
                pass


if __name__ == "__main__":
    where, folder, phase, nth, delay_ms = sys.argv[1:]
    asyncio.run(main(where, Path(folder), Doom(phase, int(nth), int(delay_ms) / 1000)))
