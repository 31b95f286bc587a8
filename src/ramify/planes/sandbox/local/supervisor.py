"""PID 1 of a sandbox: runs commands for the engine, and ends when the engine or spawner does.

Single-threaded, standard library only. It talks to the engine over one message socket:

    exec, kill, signal, kill_all      commands (see `inside.Jobs`)
    pack, unpack, cancel              trees through a pipe, in a forked helper
    connect, listen                   sockets of this network namespace, handed out
    checkpoint, restore, ...          the processes of a live sandbox (see `captures`)

Every request has an `id`; replies carry it. It never trusts anything below it: the files it
reads, the processes it finds.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

from ramify.planes.sandbox.descent import FAILED
from ramify.planes.sandbox.inside import Command, Event, Job, Jobs, find_user, open_terminal
from ramify.planes.sandbox.local import wire
from ramify.planes.sandbox.local.captures import Captures, outcome
from ramify.planes.sandbox.local.pod import PodJobs
from ramify.planes.sandbox.packer import Limits, pack
from ramify.planes.sandbox.processes import kill_below, send_signal
from ramify.planes.sandbox.unpacker import unpack

_ROOT = ("root", "0", "root:root", "0:0")
"""Without root, and without a user namespace, there is one user, who is called so too."""

_CAPTURES = ("checkpoint", "thaw", "captured", "restore")
_OOM_SCORE_ADJ = 500  # the kernel takes commands before their supervisor


class Duties(NamedTuple):
    """How one supervisor behaves.

    `is_init`: it is PID 1, so its end is everybody's. `live`: its commands run below a pod root
    and can be captured. `process_limit`: RLIMIT_NPROC for commands
    where no cgroup counts them; `file_limit`: RLIMIT_FSIZE in bytes.
    """

    is_init: bool = True
    live: bool = False
    process_limit: int | None = None
    file_limit: int | None = None


class _Supervisor:
    def __init__(self, control: socket.socket, life: int, duties: Duties) -> None:
        self._control, self._life, self._duties = control, life, duties
        self._pod = PodJobs() if duties.live else None
        self._jobs = self._pod or Jobs()
        self._by_id: dict[int, Job] = {}
        self._ids: dict[Job, int] = {}
        self._helpers: dict[int, tuple[int, int, str]] = {}
        self._captures = (
            Captures(self._pod, self._ids, self._know, self._reply) if self._pod else None
        )
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def run(self) -> None:
        """Serve until the engine or the spawner is gone."""
        while True:
            poll = select.poll()
            for fd in (self._control.fileno(), self._life, self._wake_r):
                poll.register(fd, select.POLLIN)
            for fd in (*self._jobs.fds(), *self._helpers):
                poll.register(fd, select.POLLIN)
            wait = self._jobs.interval()
            ready = {fd for fd, _mask in poll.poll(None if wait is None else wait * 1000)}
            if self._life in ready:
                return
            for fd in ready:
                if fd in self._helpers:
                    self._helper_ended(fd)
                else:
                    self._report(self._jobs.read(fd))
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
            if self._wake_r in ready or wait is not None:
                self._report(self._jobs.tick())
            if self._control.fileno() in ready and not self._serve_one():
                return

    def _serve_one(self) -> bool:
        received = wire.receive(self._control)
        if received is None:
            return False
        message, fds = received
        try:
            self._handle(message, fds)
        except (OSError, KeyError, ValueError, LookupError) as error:
            self._reply(message["id"], "failed", 126, str(error))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _handle(self, message: wire.Message, fds: list[int]) -> None:
        op, request = message["op"], message["id"]
        if op == "exec":
            self._exec(message, fds)
        elif op == "kill":
            self._kill(message)
        elif op == "signal":
            job = self._by_id.get(message["job"])
            if job is not None:
                self._jobs.signal(job, message["number"])
        elif op == "kill_all":
            self._jobs.kill_all()
        elif op in ("pack", "unpack"):
            self._help(message, fds[0])
        elif op == "cancel":
            for helped, pid, _op in self._helpers.values():
                if helped == message["job"]:
                    send_signal(pid, signal.SIGKILL)
        elif op in ("connect", "listen"):
            self._socket(request, op, message["port"])
        elif op in _CAPTURES and self._captures is not None:
            begun = self._captures.begin(message, fds)
            if begun is not None:
                pid, done = begun
                self._helpers[done] = (request, pid, op)
        else:
            raise ValueError(f"unknown request {op!r}")

    def _exec(self, message: wire.Message, fds: list[int]) -> None:
        size: list[int] | None = message["tty"]
        terminal = -1
        if size and self._pod is None:
            terminal, theirs = open_terminal(*size)
            fds.append(theirs)
            streams = (theirs, theirs, theirs)
        else:
            if self._pod is not None and message["stdin"] != "given":
                fds.append(_own_input(fds[0], message["stdin"]))
                fds[0], fds[-1] = fds[-1], fds[0]
            streams = (fds[0], fds[1], fds[2])
        limits: list[tuple[int, int]] = []
        if self._duties.process_limit is not None:
            limits.append((resource.RLIMIT_NPROC, self._duties.process_limit))
        if self._duties.file_limit is not None:
            limits.append((resource.RLIMIT_FSIZE, self._duties.file_limit))
        user: str | None = message["user"]
        if user in _ROOT and (self._duties.is_init or os.geteuid() != 0):
            user = None  # that is whom we are taken for, and starting it so is much cheaper
        command = Command(
            message["argv"],
            streams,
            user,
            message["cwd"],
            message["env"],
            bool(size),
            _OOM_SCORE_ADJ,
            limits,
            not message["quiet"],
        )
        try:
            job = self._pod.start(command, size) if self._pod else self._jobs.start(command)
        except OSError as error:
            if terminal >= 0:
                os.close(terminal)
            raise OSError(f"no process can be started in the sandbox: {error.strerror}") from error
        self._know(message["id"], job)
        if terminal >= 0:
            event = {"id": message["id"], "event": "terminal", "value": 0, "text": ""}
            self._send(event, [terminal])
            os.close(terminal)

    def _know(self, request: int, job: Job) -> None:
        self._by_id[request], self._ids[job] = job, request

    def _kill(self, message: wire.Message) -> None:
        job = self._by_id.get(message["job"])
        if job is None:
            self._reply(message["job"], "gone", 0)
        else:
            self._jobs.kill(job)

    def _report(self, events: list[Event]) -> None:
        for event in events:
            request = self._ids.get(event.job)
            if request is None:
                continue
            if event.kind == "gone":
                del self._ids[event.job]
                del self._by_id[request]
            self._reply(request, event.kind, event.value, event.text)

    def _help(self, message: wire.Message, stream: int) -> None:
        """Pack or unpack in a process of its own, so that nothing inside can hold us up."""
        done_r, done_w = os.pipe()
        try:
            pid = self._jobs.fork_helper()
            if pid == 0:
                _helper(message, stream, done_w)
        except OSError as error:
            os.close(done_r)
            raise OSError(f"no process can be started in the sandbox: {error.strerror}") from error
        finally:
            os.close(done_w)
        self._helpers[done_r] = (message["id"], pid, message["op"])

    def _helper_ended(self, fd: int) -> None:
        request, _pid, op = self._helpers.pop(fd)
        said = os.read(fd, 8192)
        os.close(fd)
        if self._captures is not None and op in _CAPTURES:
            self._captures.ended(op, request, outcome(said))
            return
        status, _, reason = said.partition(b" ")
        text = reason.decode("utf-8", "replace")
        if not status:
            status, text = b"%d" % FAILED, "the helper inside the sandbox was killed"
        self._reply(request, "done", int(status), text)

    def _socket(self, request: int, op: str, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            if op == "listen":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind(("127.0.0.1", port))
                made.listen(1024)
                self._send(
                    {"id": request, "event": "done", "value": made.getsockname()[1], "text": ""},
                    [made.fileno()],
                )
                return
            made.setblocking(False)
            code = made.connect_ex(("127.0.0.1", port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            self._send({"id": request, "event": "done", "value": 0, "text": ""}, [made.fileno()])

    def _reply(self, request: int, event: str, value: int, text: str = "") -> None:
        self._send({"id": request, "event": event, "value": value, "text": text})

    def _send(self, message: wire.Message, fds: list[int] | None = None) -> None:
        try:
            wire.send(self._control, message, fds or [])
        except ConnectionError:  # the engine is gone; the next poll says so
            return


def _own_input(given: int, kind: str) -> int:
    """Input that belongs to the inside: its null device, or a copy of the data."""
    if kind == "null":
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    copy = os.memfd_create("stdin")
    left = os.fstat(given).st_size
    while left > 0:
        left -= os.sendfile(copy, given, None, left) or left
    os.lseek(copy, 0, os.SEEK_SET)
    return copy


def _helper(message: wire.Message, stream: int, done: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        os.write(done, _transfer(message, stream).encode()[:4000])
    except BaseException as error:  # nothing may return into the supervisor's loop
        os.write(done, f"{FAILED} {error}".encode()[:4000])
    finally:
        os._exit(0)


def _transfer(message: wire.Message, stream: int) -> str:
    if message["op"] == "pack":
        limits: dict[str, Any] = message["limits"]
        status, reason = pack(message["path"], stream, Limits(**limits))
        return f"{status} {reason}"
    uid, gid = os.getuid(), os.getgid()
    if message["owner"] is not None and (uid == 0 or message["owner"] not in _ROOT):
        try:
            user = find_user(message["owner"])
        except LookupError as error:
            return f"{FAILED} {error}"
        uid, gid = user.uid, user.gid
    status, reason = unpack(stream, message["path"], uid, gid, message["mode"], message["clear"])
    return f"{status} {reason}"


def supervise(control: socket.socket, life: int, duties: Duties) -> NoReturn:
    """Announce readiness to the engine and serve until its end. Ends this process."""
    try:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        supervisor = _Supervisor(control, life, duties)
        wire.send(control, {"id": 0, "event": "ready", "value": 0, "text": ""})
        supervisor.run()
    except BaseException as error:  # the last words of a supervisor: they tell what is broken
        sys.stderr.write(f"ramify sandbox supervisor: {type(error).__name__}: {error}\n")
        raise
    finally:
        if not duties.is_init:  # PID 1 takes everybody along; otherwise we see to it
            kill_below([os.getpid()])
        os._exit(0)
