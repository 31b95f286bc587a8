"""Run commands robustly next to hostile code: what every supervisor of ours needs.

Standard library, `accounts` and `processes` only, Python 3.8 syntax: it runs inside, under
supervisors.

```
supervisor (PID 1 or subreaper)      Jobs: starts, watches, kills
└── nanny (one per command)          subreaper: keeps every descendant findable, reports the end
    └── command (own session)        and whatever it starts, whatever session that moves to
```

A nanny reports on a status pipe and ends once nothing is left below it. A process directly
under the supervisor that is no nanny has lost its nanny (somebody killed it), so it is killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import termios
import time
from typing import TYPE_CHECKING, NamedTuple

from ramify.planes.sandbox.accounts import User, find_user
from ramify.planes.sandbox.processes import (
    KILL_DEADLINE_SEC,
    MARKER,
    become_subreaper,
    children,
    descendants,
    die_with_parent,
    kill_below,
    kill_round,
    marked,
    prctl,
    send_signal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, CANNOT_RUN = 127, 126
_PR_SET_DUMPABLE = 4
_SIGNALS = [n for n in range(1, 32) if n not in (signal.SIGKILL, signal.SIGSTOP)]


class Command(NamedTuple):
    """A command to start. `user` None keeps the supervisor's own user.

    `fds` are its standard input, output and error; with `tty` all three are one terminal, which
    becomes the controlling one. `env` is laid over PATH, HOME, USER (and TERM under a terminal).
    `limits` are (resource, soft and hard value). Without `announce` there is no `started` event,
    which saves waking the supervisor once.
    """

    argv: Sequence[str]
    fds: tuple[int, int, int]
    user: str | None = None
    cwd: str = "/"
    env: dict[str, str] = {}
    tty: bool = False
    oom_score_adj: int = 0
    limits: Sequence[tuple[int, int]] = ()
    announce: bool = True


class Event(NamedTuple):
    """Something that happened to a job.

    `kind`: `started` (value: pid), `failed` (value: 126 or 127, text: why), `ended` (value: wait
    status of the command's own process), `gone` (nothing is left; value 1: some could not be
    killed in time).
    """

    job: Job
    kind: str
    value: int
    text: str = ""


class Job:
    """One started command, as the supervisor sees it."""

    def __init__(self, nanny: int, status_fd: int, marker: str) -> None:
        self.nanny = nanny
        self.status_fd = status_fd
        self.marker = marker
        self.pid = 0
        self.ended = False
        self.buffer = b""
        self.kill_deadline: float | None = None
        self.stopped: set[int] = set()


class _CannotStartError(Exception):
    """Arguments: exit code, text."""


def close_all_but(keep: Iterable[int]) -> None:
    """Close every file descriptor of this process that is not in `keep`."""
    kept = set(keep)
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc here
        numbers = list(range(4096))
    for number in numbers:
        if number not in kept:
            try:
                os.close(number)
            except OSError:  # the descriptor of the listing itself
                continue


def open_terminal(rows: int, cols: int) -> tuple[int, int]:
    """A new pseudo-terminal: (our end, the command's end). Raises OSError."""
    ours, theirs = os.openpty()
    resize_terminal(ours, rows, cols)
    return ours, theirs


def resize_terminal(fd: int, rows: int, cols: int) -> None:
    """Set the size of a terminal. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _reset_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _become(user: User) -> None:
    current = (os.getuid(), os.getgid())
    try:
        if current != (user.uid, user.gid) or user.groups != [user.gid]:
            try:
                os.setgroups(user.groups)
            except OSError as error:  # a map of one id forbids it; then there are no groups to drop
                if error.errno != errno.EPERM or current != (user.uid, user.gid):
                    raise
            os.setgid(user.gid)
            os.setuid(user.uid)
    except OSError as error:
        raise _CannotStartError(
            CANNOT_RUN, f"cannot become user {user.name} here: {error.strerror}"
        ) from error


def _attempt(argv: Sequence[str], env: dict[str, str], act: Callable[[str], int]) -> int:
    """Do `act` with each place where the program may be, until one works."""
    name = argv[0]
    places = [""] if "/" in name else [p or "." for p in env.get("PATH", DEFAULT_PATH).split(":")]
    denied = None
    for place in places:
        try:
            return act(os.path.join(place, name) if place else name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = error
    if denied is not None:
        raise _CannotStartError(CANNOT_RUN, f"{name}: {denied.strerror}")
    raise _CannotStartError(NOT_FOUND, f"{name}: not found")


def _environment(command: Command, name: str, home: str) -> dict[str, str]:
    env = {"PATH": DEFAULT_PATH, "HOME": home, "USER": name}
    if command.tty:
        env["TERM"] = "xterm-256color"
    env.update(command.env)
    return env


def _settle_in(command: Command) -> None:
    """What a command inherits: its place, its limits, its turn when memory runs out."""
    if command.oom_score_adj:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(command.oom_score_adj))
    for kind, value in command.limits:
        resource.setrlimit(kind, (value, value))
    os.umask(0o022)
    try:
        os.chdir(command.cwd)
    except OSError as error:
        raise _CannotStartError(CANNOT_RUN, f"{command.cwd}: {error.strerror}") from error


def _spawn_command(command: Command) -> int:
    """The fast way, without a copy of this process, for a command of our own user."""
    prctl(_PR_SET_DUMPABLE, 1)  # else our own files in /proc may be closed to us
    _settle_in(command)
    prctl(_PR_SET_DUMPABLE, 0)
    root = os.getuid() == 0
    env = _environment(command, *(("root", "/root") if root else (str(os.getuid()), "/")))
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in command.fds]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(kept)]
    argv = list(command.argv)

    def spawn(path: str) -> int:
        return os.posix_spawn(
            path, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_SIGNALS
        )

    try:
        return _attempt(argv, env, spawn)
    finally:
        for fd in kept:
            os.close(fd)


def _run_command(command: Command) -> None:
    """In a process of its own: become the command. Returns only by exception."""
    prctl(_PR_SET_DUMPABLE, 1)  # else our own files in /proc may be closed to us
    os.setsid()
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in command.fds]
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    uid = os.getuid()
    user = User(
        "root" if uid == 0 else str(uid), uid, os.getgid(), [], "/root" if uid == 0 else "/"
    )
    if command.user is not None:
        try:
            user = find_user(command.user)
        except LookupError as error:
            raise _CannotStartError(CANNOT_RUN, str(error)) from error
    if command.tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if user.uid != uid:
            os.fchown(0, user.uid, -1)
    _settle_in(command)
    if command.user is not None:
        _become(user)
    _reset_signals()
    env = _environment(command, user.name, user.home)

    def become(path: str) -> int:
        os.execve(path, list(command.argv), env)

    _attempt(command.argv, env, become)


def _command_process(command: Command, error_fd: int) -> None:
    try:
        _run_command(command)
    except _CannotStartError as error:
        os.write(error_fd, f"{error.args[0]} {error.args[1]}".encode()[:4000])
    except BaseException as error:  # nothing may escape into the supervisor's code
        os.write(error_fd, f"{CANNOT_RUN} {error}".encode()[:4000])
    finally:
        os._exit(CANNOT_RUN)


def _start_command(command: Command) -> tuple[int, bytes]:
    """Start it; returns its pid, and why it could not be started (empty: it was)."""
    if command.user is None and not command.tty:
        try:
            return _spawn_command(command), b""
        except _CannotStartError as error:
            return 0, f"{error.args[0]} {error.args[1]}".encode()[:4000]
        except NotImplementedError:  # a C library that cannot start sessions so
            pass
        except OSError as error:
            return 0, f"{CANNOT_RUN} {error.strerror}".encode()[:4000]
    error_r, low = os.pipe()  # may be 0 to 2, which the command's own streams take
    error_w = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(low)
    pid = os.fork()
    if pid == 0:
        _command_process(command, error_w)
    os.close(error_w)
    return pid, os.read(error_r, 4096)


def _nanny_dies(_number: int, _frame: object) -> None:
    kill_below([os.getpid()])
    os._exit(0)


def _nanny_process(command: Command, status_fd: int) -> None:
    """Start the command, report, then reap until nothing is left."""
    supervisor = os.getppid()
    os.setsid()
    become_subreaper()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, _nanny_dies)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_all_but([status_fd, *command.fds])
    pid, failure = _start_command(command)
    for fd in set(command.fds):
        os.close(fd)
    if failure:
        os.write(status_fd, b"F %s\n" % failure.replace(b"\n", b" "))
    elif command.announce:
        os.write(status_fd, b"S %d\n" % pid)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != supervisor:  # it ended before the kernel knew our wish
        _nanny_dies(0, None)
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if ended == pid and not failure:
            os.write(status_fd, b"E %d\n" % status)


class Jobs:
    """The commands of one supervisor: start, watch, kill. Single-threaded, never blocks.

    The owner polls `fds()`, passes each readable one to `read`, calls `tick` whenever SIGCHLD
    arrives and at least every `interval()` seconds, and acts on the events they return.
    """

    def __init__(self, proc: str = "/proc", reap_orphans: bool = True) -> None:
        self._proc = proc
        self._jobs: dict[int, Job] = {}
        self._subreaper = become_subreaper()
        self._reap_orphans = reap_orphans
        self._orphans: set[int] = set()
        self._helpers: set[int] = set()
        self._count = 0

    def start(self, command: Command) -> Job:
        """Start a command under a nanny. The caller closes its copies of `command.fds`.

        Problems of the command itself come as a `failed` event. Raises OSError when no process
        can be made (process limit).
        """
        self._count += 1
        marker = f"{os.getpid()}.{self._count}"
        if not self._subreaper:
            command = command._replace(env=dict(command.env, **{MARKER: marker}))
        status_r, status_w = os.pipe()
        try:
            nanny = os.fork()
        except OSError:
            os.close(status_r)
            os.close(status_w)
            raise
        if nanny == 0:
            try:
                _nanny_process(command, status_w)
            finally:
                os._exit(0)
        os.close(status_w)
        os.set_blocking(status_r, False)
        job = Job(nanny, status_r, marker)
        self._jobs[status_r] = job
        return job

    def fork_helper(self) -> int:
        """Fork a process of the supervisor's own that is never taken for an orphan."""
        pid = os.fork()
        if pid:
            self._helpers.add(pid)
        return pid

    def fds(self) -> list[int]:
        """Status pipes to poll for reading."""
        return list(self._jobs)

    def interval(self) -> float | None:
        """Seconds until `tick` wants to be called again; None: when something happens."""
        busy = self._orphans or any(j.kill_deadline is not None for j in self._jobs.values())
        return 0.002 if busy else None

    def read(self, fd: int) -> list[Event]:
        """Events of the job behind a readable status pipe."""
        job = self._jobs.get(fd)
        if job is None:
            return []
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return []
        if not data:
            return self._nanny_ended(job)
        lines = (job.buffer + data).split(b"\n")
        job.buffer = lines.pop()
        return [self._event(job, line) for line in lines]

    def kill(self, job: Job) -> None:
        """Kill everything of a job; a `gone` event follows."""
        if job.kill_deadline is None:
            job.kill_deadline = time.monotonic() + KILL_DEADLINE_SEC

    def kill_all(self) -> None:
        """Kill everything of every job."""
        for job in self._jobs.values():
            self.kill(job)

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
        if self._reap_orphans:
            self._hunt_orphans()
        events: list[Event] = []
        for job in list(self._jobs.values()):
            if job.kill_deadline is not None:
                events.extend(self._kill_step(job))
        return events

    def _event(self, job: Job, line: bytes) -> Event:
        kind, _, rest = line.partition(b" ")
        value, _, text = rest.partition(b" ")
        if kind == b"S":
            job.pid = int(value)
            return Event(job, "started", job.pid)
        job.ended = True
        if kind == b"F":
            return Event(job, "failed", int(value), text.decode("utf-8", "replace"))
        return Event(job, "ended", int(value))

    def _nanny_ended(self, job: Job) -> list[Event]:
        os.close(job.status_fd)
        del self._jobs[job.status_fd]
        lost: list[Event] = []
        if not job.ended:  # it was killed; what it kept is now ours, and is killed as orphans are
            job.ended = True
            lost.append(Event(job, "ended", int(signal.SIGKILL)))
        self._orphans.add(job.nanny)
        return [*lost, Event(job, "gone", 0)]

    def _kill_step(self, job: Job) -> list[Event]:
        found = descendants([job.nanny], self._proc)
        if not self._subreaper:
            found = sorted({*found, *marked(job.marker, self._proc)} - {job.nanny})
        send_signal(job.nanny, signal.SIGCONT)
        kill_round(found, job.stopped)
        if found and job.kill_deadline is not None and time.monotonic() > job.kill_deadline:
            os.close(job.status_fd)
            del self._jobs[job.status_fd]
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
        ours = {job.nanny for job in self._jobs.values()} | self._helpers
        roots = [pid for pid in children(os.getpid(), self._proc) if pid not in ours]
        self._orphans = set(roots)
        if roots:
            for pid in [*roots, *descendants(roots, self._proc)]:
                send_signal(pid, signal.SIGKILL)
