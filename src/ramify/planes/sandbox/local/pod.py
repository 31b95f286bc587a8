"""The commands of a live sandbox: started below one process, so that one dump captures them all.

Runs in the supervisor (PID 1): standard library only. The pod root is a program of ours without a
C library (pod.c); it connects to an abstract socket of this network namespace, and is known by its
process id. A request is one byte with descriptors:

    S   start a command: its plan (an anonymous file), the writing end of its status pipe, and its
        three streams (with a terminal: input, output and size pipe)
    R   let go of the line, before a dump; SIGUSR1 makes it connect again

The command's reaper answers on the status pipe with records of 12 bytes (kind, value, its own
pid): S running (value: pid; only where asked for), F not started (step and errno), E ended (wait
status), G nothing is left. Whatever comes from down there may be forged by a hostile root: it only
concerns its own commands.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from ramify.planes.sandbox.accounts import find_user
from ramify.planes.sandbox.inside import CANNOT_RUN, Command, Event, Job, Jobs
from ramify.planes.sandbox.local import namespaces as ns
from ramify.planes.sandbox.local.pod_plan import explain, write_plan
from ramify.planes.sandbox.processes import (
    KILL_DEADLINE_SEC,
    become_subreaper,
    children,
    descendants,
    kill_round,
    prctl,
    send_signal,
)

PROGRAM_PATH = "/dev/.pod"
"""Where the pod root's program stands in a live sandbox."""

_PR_SET_DUMPABLE = 4
_ADDRESS = "\0ramify-pod"
_ANSWER_SEC = 10.0
_RECORD = struct.Struct("4sii")


class PodJob(NamedTuple):
    """A command below the pod root, as it is written down at a checkpoint.

    `status` is the inode of its status pipe.
    """

    reaper: int
    pid: int
    ended: bool
    status: int


class _Status:
    """The reading end of a command's status pipe, and what came so far."""

    def __init__(self, fd: int, job: Job, command: Command | None) -> None:
        self.fd, self.job, self.command = fd, job, command
        self.data = b""
        self.gone = False


class PodJobs:
    """The commands of a live sandbox (what `inside.Jobs` is elsewhere). Never blocks for long."""

    def __init__(self) -> None:
        self._plain = Jobs()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(_ADDRESS)
        self._listener.listen(16)
        self._line: socket.socket | None = None
        self._pod = 0
        self._statuses: dict[int, _Status] = {}
        self._hunt = False
        self._held = False
        self._count = 0

    @property
    def pod(self) -> int:
        """Process id of the pod root; 0 while there is none."""
        return self._pod

    def start(self, command: Command, size: Sequence[int] | None = None) -> Job:
        """Start a command; `size` (rows, columns) gives it a terminal behind its three pipes.

        The caller closes its copies of `command.fds`. Problems of the command itself come as a
        `failed` event. Raises OSError when no process can be made.
        """
        user = None if command.user is None else find_user(command.user)
        plan = write_plan(command, user, size)
        try:
            line = self._connected()
            status_r, status_w = os.pipe()
            try:
                send_signal(self._pod, signal.SIGCONT)  # somebody inside may have stopped it
                socket.send_fds(line, [b"S"], [plan, status_w, *command.fds])
            except OSError:
                os.close(status_r)
                self._lose()
                raise
            finally:
                os.close(status_w)
        finally:
            os.close(plan)
        self._count += 1
        job = Job(f"pod.{self._count}")
        self._watch(status_r, job, command)
        return job

    def fork_helper(self) -> int:
        """Fork a process of the supervisor's own that is never taken for an orphan."""
        return self._plain.fork_helper()

    def fds(self) -> list[int]:
        """Descriptors to poll for reading."""
        return [] if self._held else list(self._statuses)

    def interval(self) -> float | None:
        """Seconds until `tick` wants to be called again; None: when something happens."""
        dying = any(s.job.kill_deadline is not None for s in self._statuses.values() if not s.gone)
        return 0.002 if self._hunt or dying else self._plain.interval()

    def read(self, fd: int) -> list[Event]:
        """Events of the command behind a readable descriptor."""
        status = self._statuses.get(fd)
        if status is None:
            return []
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return []
        if not data:
            return self._ended(status)
        status.data += data
        events: list[Event] = []
        while len(status.data) >= _RECORD.size:
            kind, value, reaper = _RECORD.unpack(status.data[: _RECORD.size])
            status.data = status.data[_RECORD.size :]
            events += self._event(status, kind[:1], value, reaper)
        return events

    def kill(self, job: Job) -> None:
        """Kill everything of a job; a `gone` event follows."""
        if job.kill_deadline is None:
            job.kill_deadline = time.monotonic() + KILL_DEADLINE_SEC

    def kill_all(self) -> None:
        """Kill everything of every job."""
        for status in self._statuses.values():
            self.kill(status.job)

    def signal(self, job: Job, number: int) -> None:
        """Send a signal to the command's process group, while the command lives."""
        self._plain.signal(job, number)

    def tick(self) -> list[Event]:
        """Reap, kill orphans, and go on with pending kills."""
        events = self._plain.tick()
        self._hunt_orphans()
        if self._held:
            return events
        for status in list(self._statuses.values()):
            if status.job.kill_deadline is not None and not status.gone:
                events += self._kill_step(status)
        return events

    # Checkpoints

    def hold(self) -> None:
        """Have the pod root let go of its line, and take no news of commands. Raises OSError."""
        line = self._connected()
        line.send(b"R")
        if line.recv(1):
            raise OSError("the pod root does not let go of its line")
        line.close()
        self._line = None
        self._held = True

    def go_on(self) -> None:
        """After `hold`, or on a pod root that was restored: everything as before."""
        self._held = False
        send_signal(self._pod, signal.SIGUSR1)
        self._accept()

    def written(self) -> dict[Job, PodJob]:
        """What has to be known of each command to find it again in a copy."""
        found: dict[Job, PodJob] = {}
        for status in self._statuses.values():
            self._find_reaper(status)
            job, inode = status.job, os.fstat(status.fd).st_ino
            found[job] = PodJob(job.nanny, job.pid, job.ended, inode)
        return found

    def expect(self, pod: int, written: Sequence[tuple[PodJob, bool]]) -> list[tuple[Job, int]]:
        """Before a restore: the pod root will be `pod`; (its jobs, whether they are gone).

        Returns each job with the writing end of a new status pipe, for its reaper.
        """
        self._pod = pod
        self._plain.adopt(pod)
        self._held = True
        found: list[tuple[Job, int]] = []
        for one, gone in written:
            status_r, status_w = os.pipe()
            self._count += 1
            job = Job(f"pod.{self._count}")
            job.nanny, job.pid, job.ended = one.reaper, one.pid, one.ended
            self._watch(status_r, job, None).gone = gone
            found.append((job, status_w))
        return found

    def is_gone(self, job: Job) -> bool:
        """Whether nothing but the rest of a terminal's output is left of a job."""
        return any(status.job is job and status.gone for status in self._statuses.values())

    # Below

    def _watch(self, fd: int, job: Job, command: Command | None) -> _Status:
        os.set_blocking(fd, False)
        status = _Status(fd, job, command)
        self._statuses[fd] = status
        return status

    def _connected(self) -> socket.socket:
        if self._line is not None and select.select([self._line], [], [], 0)[0]:
            self._lose()  # it says nothing on the line, so that is its end
        if self._line is None:
            self._begin()
        assert self._line is not None
        return self._line

    def _lose(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._pod:
            send_signal(self._pod, signal.SIGKILL)  # what it kept comes to us, and is killed
            self._pod = 0

    def _begin(self) -> None:
        self._pod = self._plain.fork_helper()
        if self._pod == 0:
            try:
                _become_pod()
            except BaseException as error:  # it has nobody else to tell
                sys.stderr.write(f"ramify: the pod root cannot start: {error}\n")
            finally:
                os._exit(CANNOT_RUN)
        self._accept()

    def _accept(self) -> None:
        """Wait for the pod root's connection; whoever else comes is sent away. Raises OSError."""
        deadline = time.monotonic() + _ANSWER_SEC
        while self._line is None:
            left = deadline - time.monotonic()
            if left <= 0 or not os.path.exists(f"/proc/{self._pod}"):
                self._lose()
                raise OSError(errno.ESRCH, "the pod root of the sandbox does not answer")
            if not select.select([self._listener], [], [], min(left, 0.05))[0]:
                continue
            line, _address = self._listener.accept()
            peer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", peer)[0] != self._pod:
                line.close()
                continue
            line.settimeout(_ANSWER_SEC)
            self._line = line

    def _event(self, status: _Status, kind: bytes, value: int, reaper: int) -> list[Event]:
        job = status.job
        job.nanny = reaper
        if kind == b"S":
            job.pid = value
            return [Event(job, "started", value)]
        if kind == b"F" and not job.ended:
            job.ended = True
            code, text = explain(status.command, value >> 16, value & 0xFFFF)
            return [Event(job, "failed", code, text)]
        if kind == b"E" and not job.ended:
            job.ended = True
            return [Event(job, "ended", value)]
        if kind == b"G" and not status.gone:
            status.gone = True
            return [Event(job, "gone", 0)]
        return []

    def _ended(self, status: _Status) -> list[Event]:
        """The reaper is gone: at its end, or because somebody killed it."""
        del self._statuses[status.fd]
        os.close(status.fd)
        if status.gone:
            return []
        self._hunt = True
        job = status.job
        lost = [] if job.ended else [Event(job, "ended", int(signal.SIGKILL))]
        job.ended = True
        return [*lost, Event(job, "gone", 0)]

    def _find_reaper(self, status: _Status) -> None:
        """Learn the pid of a reaper that has not told it, by its status pipe (it has no relay)."""
        if status.job.nanny:
            return
        link = f"pipe:[{os.fstat(status.fd).st_ino}]"
        for pid in children(self._pod):
            if link in _open_files(pid):
                status.job.nanny = pid

    def _kill_step(self, status: _Status) -> list[Event]:
        job = status.job
        self._find_reaper(status)
        if job.nanny:
            send_signal(job.nanny, signal.SIGCONT)
            kill_round(descendants([job.nanny]), job.stopped)
        if job.kill_deadline is not None and time.monotonic() > job.kill_deadline:
            if job.nanny:
                send_signal(job.nanny, signal.SIGKILL)
            status.gone = True
            return [Event(job, "gone", 1)]
        return []

    def _hunt_orphans(self) -> None:
        """Kill what lies below the pod root and is neither reaper nor relay."""
        if not self._hunt or self._held:
            return
        for status in self._statuses.values():
            self._find_reaper(status)
            if not status.job.nanny:
                return  # it is just being started: look again soon
        below = children(self._pod) if self._pod else []
        pipes = {f"pipe:[{os.fstat(fd).st_ino}]" for fd in self._statuses}
        roots = [pid for pid in below if not pipes & _open_files(pid)]
        for pid in [*roots, *(descendants(roots) if roots else [])]:
            send_signal(pid, signal.SIGKILL)
        self._hunt = bool(roots)


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:  # it ended meanwhile
        return set()


def _become_pod() -> None:
    """In a fork of the supervisor: what the pod root and all below it inherit."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    become_subreaper()
    ns.clear_inheritable()
    prctl(_PR_SET_DUMPABLE, 1)  # else our own files in /proc may be closed to us
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # the kernel takes commands before their supervisor
    os.chdir("/")
    os.execve(PROGRAM_PATH, ["pod"], {})
