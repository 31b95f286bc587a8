"""An engine that runs a job, and may kill something of itself when a rollout enters a phase.

python doomed.py SANDBOX OUT [PHASE NTH DELAY_MS]    kill -9 of the engine itself
python doomed.py SANDBOX OUT part PHASE NTH WHAT     kill -9 of its spawner or a supervisor

Prints the ids of the rollouts that it finished, sorted. Each task runs DOOMED_REPEATS times; with
DOOMED_BRANCH, rollouts branch as it says, and follow a script, not the reference solution.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.events import AnyEvent, CheckpointEvent, NodeEvent, Observer, PhaseEvent
from ramify.contracts.tree import Step
from ramify.envs.options import RunOptions
from ramify.envs.run import open_job

TASKS = Path(__file__).parent / "tasks"


@dataclass
class Doom:
    """Strikes a little after the nth time that a rollout enters a phase."""

    phase: str
    nth: int
    delay_sec: float
    strike: Callable[[], None]

    def emit(self, event: AnyEvent) -> None:
        if self._is_it(event):
            self.nth -= 1
            if self.nth == 0 and self.delay_sec:
                threading.Timer(self.delay_sec, self.strike).start()
            elif self.nth == 0:
                self.strike()

    def _is_it(self, event: AnyEvent) -> bool:
        """Entering the phase, or the event that is named: `checkpoint`, or `child` of a branch."""
        match event:
            case PhaseEvent(phase=phase, duration_sec=None):
                return phase == self.phase
            case CheckpointEvent():
                return self.phase == "checkpoint"
            case NodeEvent(step=Step(role="branch")):
                return self.phase == "child"
            case _:
                return False


def kill_engine() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_spawner() -> None:
    """Of `local`: the one child of ours that makes sandboxes."""
    (spawner,) = [pid for pid in _children(os.getpid()) if _is_ours(pid)]
    os.kill(spawner, signal.SIGKILL)


def kill_supervisor() -> None:
    """Of `local`: a child of the spawner, PID 1 of a sandbox in which a task sleeps right now."""
    (spawner,) = [pid for pid in _children(os.getpid()) if _is_ours(pid)]
    while True:
        for supervisor in _children(spawner):
            if b"sleep" in map(_command, _below(supervisor)):
                os.kill(supervisor, signal.SIGKILL)
                return


def kill_container() -> None:
    """Of `docker`: PID 1 of a container, as its engine sees it."""
    form = '{{.ID}} {{.Label "ramify.lock"}}'
    listed = _said("docker", "ps", "--format", form).splitlines()
    mine = [line.split()[0] for line in listed if os.environ["RAMIFY_HOME"] in line]
    os.kill(int(_said("docker", "inspect", "-f", "{{.State.Pid}}", mine[0])), signal.SIGKILL)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _children(pid: int) -> list[int]:
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return sorted(int(child) for task in tasks for child in task.read_text().split())
    except FileNotFoundError:
        return []  # it ended while we looked


def _below(pid: int) -> list[int]:
    children = _children(pid)
    return children + [pid for child in children for pid in _below(child)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _is_ours(pid: int) -> bool:
    return b"ramify-sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()


PARTS = {"spawner": kill_spawner, "supervisor": kill_supervisor, "container": kill_container}


async def main(sandbox: str, out: Path, observers: list[Observer]) -> None:
    branch = os.environ.get("DOOMED_BRANCH") or None
    script = {"path": str(Path(__file__).with_name("walk.txt"))}
    options = RunOptions(
        out=out,
        repeats=int(os.environ["DOOMED_REPEATS"]),
        concurrency=4,
        branch=branch,
        agent_options=script if branch else {},
    )
    agent = "scripted" if branch else "oracle"
    async with open_job(
        TASKS, agent=agent, sandbox=sandbox, options=options, observers=observers
    ) as (job, _):
        async with aclosing(job.stream()) as results:
            print(*sorted([result.rollout_id async for result in results]), sep="\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [where, folder]:
            doom: list[Observer] = []
        case [where, folder, "part", entered, number, what]:
            doom = [Doom(entered, int(number), 0.03, PARTS[what])]
        case [where, folder, entered, number, delay_ms]:
            doom = [Doom(entered, int(number), int(delay_ms) / 1000, kill_engine)]
        case _:
            sys.exit(__doc__)
    asyncio.run(main(where, Path(folder), doom))
