"""One command in the sandbox of a run: started, drained, stopped in time, nothing left of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ramify.contracts.errors import SandboxLostError
from ramify.contracts.process import KnowsMemory, KnowsUsage, Process, Usage
from ramify.contracts.sandbox import Sandbox

TIMED_OUT = 124

_READ = 256 * 1024
_SETTLE_SEC = 0.2
_EOF_SEC = 2.0
_COUNT_SEC = 5.0
_WRAPPER = 'cd -- "$1" 2>&1 || exit 126; shift; exec "$@" 2>&1'
# Who is alive besides the sandbox's own (children of PID 1) and this shell; no program is needed.
_CENSUS = """for stat in /proc/[0-9]*/stat; do
read -r line < "$stat" || continue
pid=${line%% *}; name=${line#*(}; rest=${name##*) }; name=${name%)*}
set -- $rest
[ "$1" = Z ] || [ "$2" -le 1 ] || [ "$pid" = $$ ] || [ "$pid" = 1 ] || echo "$pid $2 $name"
done 2>/dev/null"""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What to run: `argv` in the directory `cwd`, with nothing but `env`."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a command may take, what it has after SIGTERM, and what else stops it.

    `stop` returns (with a reason) when the command must end early; it is cancelled at its end.
    """

    timeout_sec: float
    grace_sec: float
    stop: Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `stopped` is the reason that `Bounds.stop` gave."""

    exit_code: int
    timed_out: bool = False
    oom_killed: bool = False
    stopped: str = ""

    @property
    def signal(self) -> int | None:
        """The signal that ended it."""
        return self.exit_code - 128 if 128 < self.exit_code <= 192 else None


class Alive(NamedTuple):
    """A process in the sandbox. `root` is the same for all that one command left behind."""

    pid: int
    root: int
    name: str


class Running:
    """A command whose output goes to `feed`, until `aclose`.

    Whoever makes one with `start` closes it: then nothing that it started is alive.
    """

    def __init__(self, sandbox: Sandbox, process: Process, feed: Callable[[bytes], None]) -> None:
        self._sandbox, self._process, self._feed = sandbox, process, feed
        loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[OSError] = loop.create_future()
        self._drainer = asyncio.create_task(self._drain())

    @classmethod
    async def start(
        cls, sandbox: Sandbox, line: CommandLine, feed: Callable[[bytes], None]
    ) -> Running:
        """Start a command; both of its streams are one. Raises: SandboxError."""
        argv = ["/bin/sh", "-c", _WRAPPER, "sh", line.cwd, *line.argv]
        process = await sandbox.spawn(argv, env=line.env)
        try:
            await process.close_stdin()
        except BaseException:
            await process.aclose()
            raise
        return cls(sandbox, process, feed)

    async def wait(self, bounds: Bounds) -> Ended:
        """Its end, or that it was stopped: then SIGTERM was tried first.

        Raises: SandboxLostError, OSError (the output cannot be kept).
        """
        waiter = asyncio.create_task(self._process.wait())
        stopper = asyncio.ensure_future(bounds.stop())
        try:
            await asyncio.wait(
                {waiter, stopper, self._broken},
                timeout=max(0.0, bounds.timeout_sec),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._broken.done():
                raise self._broken.result()
            if waiter.done():
                return Ended(waiter.result(), oom_killed=self._oom_killed())
            stopped = stopper.result() if stopper.done() else ""
            await self._process.signal(signal.SIGTERM)
            await asyncio.wait({waiter}, timeout=bounds.grace_sec)
            code = waiter.result() if waiter.done() else 128 + signal.SIGKILL
            if stopped:
                return Ended(code, stopped=stopped)
            return Ended(TIMED_OUT, timed_out=True, oom_killed=self._oom_killed())
        finally:
            for task in (waiter, stopper):
                task.cancel()
            await asyncio.wait({waiter, stopper})

    async def left_behind(self) -> tuple[Alive, ...]:
        """What is alive in the sandbox besides its own processes."""
        census = await self._sandbox.exec(_CENSUS, timeout_sec=_COUNT_SEC, output_limit=65536)
        found: dict[int, tuple[int, str]] = {}
        for line in census.stdout.decode("utf-8", "replace").splitlines():
            pid, parent, name = (*line.split(" ", 2), "", "")[:3]
            if pid.isdigit() and parent.isdigit():  # else a process's name has a line break
                found[int(pid)] = (int(parent), name)
        return tuple(Alive(pid, _root(pid, found), name) for pid, (_, name) in found.items())

    async def settle(self, *, alone: bool) -> None:
        """Take what it wrote before its end. Unless `alone`, others may hold its output open."""
        await asyncio.wait({self._drainer}, timeout=_EOF_SEC if alone else _SETTLE_SEC)
        if self._broken.done():
            raise self._broken.result()

    async def aclose(self) -> None:
        """Kill everything of it. Idempotent."""
        try:
            await self._process.aclose()
        finally:
            self._drainer.cancel()
            await asyncio.wait({self._drainer})

    @property
    def usage(self) -> Usage | None:
        """What all of it used, once it is closed; None where that cannot be had."""
        return self._process.usage if isinstance(self._process, KnowsUsage) else None

    def _oom_killed(self) -> bool:
        return isinstance(self._process, KnowsMemory) and self._process.oom_killed

    async def _drain(self) -> None:
        try:
            while data := await self._process.read(_READ):
                self._feed(data)
        except SandboxLostError:
            return  # whoever waits for the command is told
        except OSError as error:
            self._broken.set_result(error)


def _root(pid: int, found: Mapping[int, tuple[int, str]]) -> int:
    """The process of the sandbox's own that a process descends from."""
    for _ in range(len(found)):
        if pid not in found:
            break
        pid = found[pid][0]
    return pid
