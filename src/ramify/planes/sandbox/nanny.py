"""The nanny: starts one command at a time and keeps all of its descendants findable.

It runs in a fork of a supervisor: standard library and our own inside modules, Python 3.8 syntax.
See `inside` for its place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import termios
from typing import TYPE_CHECKING, NamedTuple

from ramify.planes.sandbox.accounts import User, find_user
from ramify.planes.sandbox.processes import become_subreaper, die_with_parent, kill_below, prctl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, CANNOT_RUN = 127, 126
_PR_SET_DUMPABLE = 4
_LARGEST_REQUEST = 64 * 1024
_STARTING = 2 * 1024  # KiB that a copy of this process may grow by before it becomes a command
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


def places(argv: Sequence[str], env: dict[str, str]) -> list[str]:
    """The paths where the program of a command may be, in order."""
    name = argv[0]
    if "/" in name:
        return [name]
    return [os.path.join(p or ".", name) for p in env.get("PATH", DEFAULT_PATH).split(":")]


def _attempt(argv: Sequence[str], env: dict[str, str], act: Callable[[str], int]) -> int:
    """Do `act` with each place where the program may be, until one works."""
    name = argv[0]
    denied = None
    for path in places(argv, env):
        if path != name and not os.path.lexists(path):  # cheaper than a process that finds it out
            continue
        try:
            return act(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = error
    if denied is not None:
        raise _CannotStartError(CANNOT_RUN, f"{name}: {denied.strerror}")
    raise _CannotStartError(NOT_FOUND, f"{name}: not found")


def environment(command: Command, name: str, home: str) -> dict[str, str]:
    """The variables of a command of a user with this name and home."""
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
    env = environment(command, *(("root", "/root") if root else (str(os.getuid()), "/")))
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
    env = environment(command, user.name, user.home)

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
        except NotImplementedError:  # a C library that cannot start sessions so: fork, below
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


def _serve(command: Command, sock: socket.socket) -> None:
    """Start the command, report, then reap until nothing is left, and tell what all of it used.

    What a process held before it became the command counts as its own to the kernel: a copy of
    this one. So a peak that is not above that is no peak of the command.
    """
    pid, failure = _start_command(command)
    for fd in set(command.fds):
        os.close(fd)
    if failure:
        sock.send(b"F " + failure)
    elif command.announce:
        sock.send(b"S %d" % pid)
    cpu_sec, peak_kib = 0.0, 0
    while True:
        try:
            ended, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu_sec += used.ru_utime + used.ru_stime
        peak_kib = max(peak_kib, used.ru_maxrss)
        if ended == pid and not failure:
            sock.send(b"E %d" % status)
    least_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _STARTING
    sock.send(b"I %d %d %d" % (cpu_sec * 1000, peak_kib * 1024, least_kib * 1024))


def nanny_process(first: Command, sock: socket.socket) -> None:
    """Be a nanny, from the first command on, until the supervisor needs it no more."""
    supervisor = os.getppid()
    os.setsid()
    become_subreaper()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, _nanny_dies)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_all_but([sock.fileno(), *first.fds])
    die_with_parent(signal.SIGTERM)
    if os.getppid() != supervisor:  # it ended before the kernel knew our wish
        return
    command: Command | None = first
    while command is not None:
        _serve(command, sock)
        command = _receive(sock)


_FIELDS = [name for name in Command._fields if name != "fds"]


def give(sock: socket.socket, command: Command) -> bool:
    """Give a command to an idle nanny; False when it cannot take it."""
    data = json.dumps([getattr(command, name) for name in _FIELDS]).encode()
    if len(data) > _LARGEST_REQUEST:
        return False
    fds = struct.pack("3i", *command.fds)
    try:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    except OSError:  # it was killed
        return False
    return True


def _receive(sock: socket.socket) -> Command | None:
    """The nanny's next command; None when the supervisor needs no more."""
    room = socket.CMSG_SPACE(3 * struct.calcsize("i"))
    data, ancillary, _flags, _peer = sock.recvmsg(
        _LARGEST_REQUEST, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    )
    if not data:
        return None
    fds = struct.unpack("3i", ancillary[0][2])
    return Command(fds=fds, **dict(zip(_FIELDS, json.loads(data))))  # noqa: B905  (Python 3.8)
