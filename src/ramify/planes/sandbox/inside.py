"""Run commands robustly next to hostile code: what every supervisor of ours needs.

Standard library and `processes` only, Python 3.8 syntax: it runs inside, under supervisors.

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
    from collections.abc import Iterable, Sequence

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, CANNOT_RUN = 127, 126
_PR_SET_DUMPABLE = 4
_MAX_ACCOUNT_FILE = 4 * 1024 * 1024


class User(NamedTuple):
    """Who a command runs as, read from the sandbox's own account files."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str


class Command(NamedTuple):
    """A command to start. `user` None keeps the supervisor's own user.

    `fds` are its standard input, output and error; with `tty` all three are one terminal, which
    becomes the controlling one. `env` is laid over PATH, HOME, USER (and TERM under a terminal).
    `limits` are (resource, soft and hard value).
    """

    argv: Sequence[str]
    fds: tuple[int, int, int]
    user: str | None = None
    cwd: str = "/"
    env: dict[str, str] = {}
    tty: bool = False
    oom_score_adj: int = 0
    limits: Sequence[tuple[int, int]] = ()


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


def _account_lines(path: str) -> list[list[str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(fd, "rb") as file:
        text = (file.read(_MAX_ACCOUNT_FILE) or b"").decode("utf-8", "replace")
    return [line.split(":") for line in text.split("\n") if line and not line.startswith("#")]


def find_user(user: str, etc: str = "/etc") -> User:
    """Resolve `name`, `uid`, `name:group` or `uid:gid` from `passwd` and `group` under `etc`.

    A number needs no entry (its group is then 0 and its home `/`). Raises LookupError.
    """
    who, _, group = user.partition(":")
    entry = None
    for row in _account_lines(os.path.join(etc, "passwd")):
        if len(row) >= 6 and row[2].isdigit() and row[3].isdigit() and who in (row[0], row[2]):
            entry = row
            break
    if entry is None and who == "root":
        entry = ["root", "x", "0", "0", "", "/root"]
    if entry is not None:
        name, uid, gid, home = entry[0], int(entry[2]), int(entry[3]), entry[5] or "/"
    elif who.isdigit():
        name, uid, gid, home = who, int(who), 0, "/"
    else:
        raise LookupError(f"no user {who!r} in the sandbox")
    rows = [r for r in _account_lines(os.path.join(etc, "group")) if len(r) >= 4 and r[2].isdigit()]
    if group:
        known = [int(r[2]) for r in rows if r[0] == group]
        if not known and not group.isdigit():
            raise LookupError(f"no group {group!r} in the sandbox")
        gid = known[0] if known else int(group)
        return User(name, uid, gid, [gid], home)
    extra = [int(r[2]) for r in rows if name in r[3].split(",")]
    return User(name, uid, gid, sorted({gid, *extra})[:1024], home)


def open_terminal(rows: int, cols: int) -> tuple[int, int]:
    """A new pseudo-terminal: (our end, the command's end). Raises OSError."""
    ours, theirs = os.openpty()
    resize_terminal(ours, rows, cols)
    return ours, theirs


def resize_terminal(fd: int, rows: int, cols: int) -> None:
    """Set the size of a terminal. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _reset_signals() -> None:
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
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


def _exec(argv: Sequence[str], env: dict[str, str]) -> None:
    name = argv[0]
    places = [""] if "/" in name else [p or "." for p in env.get("PATH", DEFAULT_PATH).split(":")]
    denied = None
    for place in places:
        try:
            os.execve(os.path.join(place, name) if place else name, list(argv), env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = error
    if denied is not None:
        raise _CannotStartError(CANNOT_RUN, f"{name}: {denied.strerror}")
    raise _CannotStartError(NOT_FOUND, f"{name}: not found")


def _run_command(command: Command) -> None:
    """In the new process: become the command. Returns only by exception."""
    prctl(_PR_SET_DUMPABLE, 1)  # else our own files in /proc may be closed to us
    os.setsid()
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in command.fds]
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    user = User("root" if os.getuid() == 0 else str(os.getuid()), os.getuid(), os.getgid(), [], "/")
    if command.user is not None:
        try:
            user = find_user(command.user)
        except LookupError as error:
            raise _CannotStartError(CANNOT_RUN, str(error)) from error
    elif user.uid == 0:
        user = user._replace(home="/root")
    if command.tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if user.uid != os.getuid():
            os.fchown(0, user.uid, -1)
    if command.oom_score_adj:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(command.oom_score_adj))
    for kind, value in command.limits:
        resource.setrlimit(kind, (value, value))
    try:
        os.chdir(command.cwd)
    except OSError as error:
        raise _CannotStartError(CANNOT_RUN, f"{command.cwd}: {error.strerror}") from error
    env = {"PATH": DEFAULT_PATH, "HOME": user.home, "USER": user.name}
    if command.tty:
        env["TERM"] = "xterm-256color"
    env.update(command.env)
    if command.user is not None:
        _become(user)
    os.umask(0o022)
    _reset_signals()
    _exec(command.argv, env)


def _command_process(command: Command, error_fd: int) -> None:
    try:
        _run_command(command)
    except _CannotStartError as error:
        os.write(error_fd, f"{error.args[0]} {error.args[1]}".encode()[:4000])
    except BaseException as error:  # nothing may escape into the supervisor's code
        os.write(error_fd, f"{CANNOT_RUN} {error}".encode()[:4000])
    finally:
        os._exit(CANNOT_RUN)


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
    error_r, low = os.pipe()  # may be 0 to 2, which the command's own streams take
    error_w = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(low)
    pid = os.fork()
    if pid == 0:
        _command_process(command, error_w)
    for fd in {error_w, *command.fds}:
        os.close(fd)
    failure = os.read(error_r, 4096)
    os.write(status_fd, b"F %s\n" % failure.replace(b"\n", b" ") if failure else b"S %d\n" % pid)
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
