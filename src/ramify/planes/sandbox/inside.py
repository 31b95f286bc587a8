"""Run commands robustly next to hostile code: what every supervisor of ours needs.

Standard library, `nanny` and `processes` only, Python 3.8 syntax: it runs inside, in supervisors.

```
supervisor (PID 1 or subreaper)      Jobs: starts, watches, kills
└── nanny (one per running command)  subreaper: keeps every descendant findable, reports the end
    └── command (own session)        and whatever it starts, whatever session that moves to
```

A nanny serves one command until nothing is left below it; then it is given the next one, which
is three times cheaper than a new nanny. A process directly under the supervisor that is no nanny
has lost its nanny (somebody killed it), so it is killed.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from typing import NamedTuple

from ramify.planes.sandbox.accounts import find_user
from ramify.planes.sandbox.nanny import (
    CANNOT_RUN,
    Command,
    close_all_but,
    give,
    nanny_process,
    open_terminal,
    resize_terminal,
)
from ramify.planes.sandbox.processes import (
    KILL_DEADLINE_SEC,
    MARKER,
    become_subreaper,
    children,
    descendants,
    kill_round,
    marked,
    send_signal,
)

__all__ = [
    "CANNOT_RUN",
    "Command",
    "Event",
    "Job",
    "Jobs",
    "close_all_but",
    "find_user",
    "open_terminal",
    "resize_terminal",
]

_MOST_IDLE = 4


class Event(NamedTuple):
    """Something that happened to a job.

    `kind`: `started` (value: pid), `failed` (value: 126 or 127, text: why), `ended` (value: wait
    status of the command's own process), `gone` (nothing is left; value 1: some could not be
    killed in time; text: milliseconds of CPU that all of it used, bytes that the largest process
    of it held at most, and bytes below which that is not known; empty where that was lost).
    """

    job: Job
    kind: str
    value: int
    text: str = ""


class Job:
    """One started command, as the supervisor sees it."""

    def __init__(self, marker: str) -> None:
        self.nanny = 0
        self.marker = marker
        self.pid = 0
        self.ended = False
        self.kill_deadline: float | None = None
        self.stopped: set[int] = set()


class _Nanny:
    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid, self.sock = pid, sock
        self.job: Job | None = None


class Jobs:
    """The commands of one supervisor: start, watch, kill. Single-threaded, never blocks.

    The owner polls `fds()`, passes each readable one to `read`, calls `tick` whenever SIGCHLD
    arrives and at least every `interval()` seconds, and acts on the events they return.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._nannies: dict[int, _Nanny] = {}
        self._idle: list[int] = []
        self._subreaper = become_subreaper()
        self._orphans: set[int] = set()
        self._helpers: set[int] = set()
        self._count = 0

    def start(self, command: Command) -> Job:
        """Start a command under a nanny. The caller closes its copies of `command.fds`.

        Problems of the command itself come as a `failed` event. Raises OSError when no process
        can be made (process limit).
        """
        self._count += 1
        job = Job(f"{os.getpid()}.{self._count}")
        if not self._subreaper:
            command = command._replace(env=dict(command.env, **{MARKER: job.marker}))
        nanny = self._give(command) or self._new_nanny(command)
        nanny.job, job.nanny = job, nanny.pid
        return job

    def _give(self, command: Command) -> _Nanny | None:
        while self._idle:
            nanny = self._nannies[self._idle.pop()]
            if give(nanny.sock, command):
                send_signal(nanny.pid, signal.SIGCONT)  # somebody inside may have stopped it
                return nanny
        return None

    def _new_nanny(self, command: Command) -> _Nanny:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                nanny_process(command, theirs)
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)
        nanny = _Nanny(pid, ours)
        self._nannies[ours.fileno()] = nanny
        return nanny

    def fork_helper(self) -> int:
        """Fork a process of the supervisor's own that is never taken for an orphan."""
        pid = os.fork()
        if pid:
            self._helpers.add(pid)
        return pid

    def adopt(self, pid: int) -> None:
        """Never take the process `pid` for an orphan, whoever started it."""
        self._helpers.add(pid)

    def fds(self) -> list[int]:
        """Descriptors to poll for reading."""
        return list(self._nannies)

    def interval(self) -> float | None:
        """Seconds until `tick` wants to be called again; None: when something happens."""
        return 0.002 if self._orphans or self._dying() else None

    def _dying(self) -> list[Job]:
        jobs = [nanny.job for nanny in self._nannies.values()]
        return [job for job in jobs if job is not None and job.kill_deadline is not None]

    def read(self, fd: int) -> list[Event]:
        """Events of the job behind a readable descriptor."""
        events: list[Event] = []
        nanny = self._nannies.get(fd)
        while nanny is not None and fd in self._nannies:
            try:
                data = nanny.sock.recv(8192)
            except BlockingIOError:
                break
            except OSError:  # it was killed with something unread
                data = b""
            if not data:
                events += self._nanny_ended(nanny)
                break
            if nanny.job is not None:
                events.append(self._event(nanny, nanny.job, data))
        return events

    def kill(self, job: Job) -> None:
        """Kill everything of a job; a `gone` event follows."""
        if job.kill_deadline is None:
            job.kill_deadline = time.monotonic() + KILL_DEADLINE_SEC

    def kill_all(self) -> None:
        """Kill everything of every job."""
        for nanny in self._nannies.values():
            if nanny.job is not None:
                self.kill(nanny.job)

    def signal(self, job: Job, number: int) -> None:
        """Send a signal to the command's process group, while the command lives."""
        if job.pid and not job.ended:
            try:
                os.killpg(job.pid, number)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EPERM):
                    raise

    def tick(self) -> list[Event]:
        """Reap, kill orphans, and go on with pending kills."""
        self._reap()
        self._hunt_orphans()
        events: list[Event] = []
        for nanny in list(self._nannies.values()):
            if nanny.job is not None and nanny.job.kill_deadline is not None:
                events.extend(self._kill_step(nanny, nanny.job))
        return events

    def _event(self, nanny: _Nanny, job: Job, line: bytes) -> Event:
        kind, _, rest = line.partition(b" ")
        if kind == b"S":
            job.pid = int(rest)
            return Event(job, "started", job.pid)
        if kind == b"I":
            nanny.job = None
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(nanny.sock.fileno())
            else:
                self._forget(nanny)
            return Event(job, "gone", 0, rest.decode("ascii", "replace"))
        job.ended = True
        value, _, text = rest.partition(b" ")
        if kind == b"F":
            return Event(job, "failed", int(value), text.decode("utf-8", "replace"))
        return Event(job, "ended", int(value))

    def _forget(self, nanny: _Nanny) -> None:
        """Need it no more: it ends when its socket does. Until reaped it counts as a helper."""
        fd = nanny.sock.fileno()
        del self._nannies[fd]
        if fd in self._idle:
            self._idle.remove(fd)
        self._helpers.add(nanny.pid)
        nanny.sock.close()

    def _nanny_ended(self, nanny: _Nanny) -> list[Event]:
        self._forget(nanny)
        self._orphans.add(nanny.pid)  # what it kept comes to us, and is killed as orphans are
        job = nanny.job
        if job is None:
            return []
        lost = [] if job.ended else [Event(job, "ended", int(signal.SIGKILL))]
        job.ended = True
        return [*lost, Event(job, "gone", 0)]

    def _kill_step(self, nanny: _Nanny, job: Job) -> list[Event]:
        found = descendants([nanny.pid], self._proc)
        if not self._subreaper:
            found = sorted({*found, *marked(job.marker, self._proc)} - {nanny.pid})
        send_signal(nanny.pid, signal.SIGCONT)
        kill_round(found, job.stopped)
        if job.kill_deadline is not None and time.monotonic() > job.kill_deadline:
            send_signal(nanny.pid, signal.SIGKILL)
            self._forget(nanny)
            return [Event(job, "gone", 1)]
        return []

    def _reap(self) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._helpers.discard(pid)

    def _hunt_orphans(self) -> None:
        """Kill what sits under this process without a nanny."""
        ours = {nanny.pid for nanny in self._nannies.values()} | self._helpers
        roots = [pid for pid in children(os.getpid(), self._proc) if pid not in ours]
        self._orphans = set(roots)
        if roots:
            for pid in [*roots, *descendants(roots, self._proc)]:
                send_signal(pid, signal.SIGKILL)
