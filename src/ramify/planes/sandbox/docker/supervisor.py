"""The main process of a container: serves the engine over its standard input and output.

Standard library and our own shipped files only. It is PID 1, so nothing inside can kill it, and
it ends when its input ends (the engine closed the connection, or died), which takes every other
process of the container along.

The agent may be root in here. The descriptors of the wire are close-on-exec and this process is
not dumpable, so without CAP_SYS_PTRACE (which Docker does not give) `/proc/1/fd` is out of reach;
with it, or with a kernel hole, what this process says can be forged. So the engine checks
everything that it says, and the stricter levels of verification run in fresh containers; only at
`filesystem` may this process go on, once it has killed everything else, and with fewer powers.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import ramify.planes.sandbox.docker.wire as wire
import ramify.planes.sandbox.inside as inside
import ramify.planes.sandbox.nanny as nanny
import ramify.planes.sandbox.processes as processes
from ramify.planes.sandbox.accounts import find_user
from ramify.planes.sandbox.descent import FAILED
from ramify.planes.sandbox.docker.channels import READ, WRITE, Loop, Pipe, Sink, Source
from ramify.planes.sandbox.docker.outlet import close_private
from ramify.planes.sandbox.docker.plumbing import (
    child_signals,
    end_of_terminal,
    half_close,
    oom_kills,
    pipes,
    take_stdio,
)
from ramify.planes.sandbox.packer import Limits, pack
from ramify.planes.sandbox.unpacker import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_CAPABILITIES = 41
_OOM_SCORE = 500
_OWN_USER = (None, "root", "0", "0:0", "root:root")
_MAX_ACCEPTED = 512


class _Channel:
    """What one channel holds on to. Every field is there from the start and may stay empty."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.out: Source | None = None
        self.err: Source | None = None
        self.sink: Sink | None = None
        self.job: inside.Job | None = None
        self.terminal = -1
        self.listener: socket.socket | None = None
        self.accepted_by: _Channel | None = None
        self.accepted = 0
        self.drain = False
        self.status: int | None = None
        self.oom_before = 0

    def sources(self) -> list[Source]:
        return [source for source in (self.out, self.err) if source is not None]


class Supervisor:
    """Serves requests until the connection ends."""

    def __init__(self) -> None:
        self._loop = Loop()
        in_fd, out_fd = take_stdio()
        self._pipe = Pipe(self._loop, in_fd, out_fd)
        self._pipe.take = self._frame
        self._jobs = inside.Jobs()
        self._channels: dict[int, _Channel] = {}
        self._by_job: dict[inside.Job, _Channel] = {}
        self._watched: set[int] = set()
        self._next = 3
        self._wake = child_signals()
        self._loop.watch(self._wake, READ, self._children)
        self._ops = {
            "run": self._run,
            "pack": self._pack,
            "unpack": self._unpack,
            "dial": self._dial,
            "listen": self._listen,
            "settle": self._settle,
        }

    def serve(self) -> None:
        """Until the connection ends."""
        self._pipe.send(wire.frame(wire.OPEN, 1, b"{}"))
        while self._pipe.open:
            interval = self._jobs.interval()
            self._loop.step(-1 if interval is None else interval)
            if interval is not None:
                self._tick()

    # Frames

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.OPEN:
            channel = self._channels[number] = _Channel(number)
            request = json.loads(payload)
            try:
                self._ops[request["op"]](channel, request)
            except OSError as error:  # no more processes or descriptors are to be had
                self._cannot(channel, str(error))
            return
        channel = self._channels.get(number)
        if channel is None:
            return  # closed by both sides in the same moment
        if kind == wire.DATA and channel.sink is not None:
            channel.sink.put(payload)
        elif kind == wire.EOF and channel.sink is not None:
            channel.sink.end()
        elif kind == wire.CREDIT and channel.out is not None:
            channel.out.grant(wire.granted(payload))
        elif kind == wire.CREDIT_ERR and channel.err is not None:
            channel.err.grant(wire.granted(payload))
        elif kind == wire.EVENT:
            self._asked(channel, json.loads(payload))
        elif kind == wire.CLOSE:
            self._close(channel)

    def _cannot(self, channel: _Channel, text: str) -> None:
        """Answer a request that nothing came of, whatever its sender waits for."""
        self._tell(channel, event="failed", code=nanny.CANNOT_RUN, text=text)
        self._tell(channel, event="refused")
        for kind in (wire.EOF, wire.EOF_ERR):
            self._pipe.send(wire.frame(kind, channel.number))

    def _asked(self, channel: _Channel, request: dict[str, Any]) -> None:
        job = channel.job
        if job is None:
            return
        if request["do"] == "signal":
            self._jobs.signal(job, request["number"])
        elif request["do"] == "kill":
            self._jobs.kill(job)
            self._tick()
        elif request["do"] == "resize" and channel.sink is not None and channel.sink.alive:
            nanny.resize_terminal(channel.sink.fd, request["rows"], request["cols"])

    def _close(self, channel: _Channel) -> None:
        """The engine is done with it; what runs goes on, and what it writes is dropped."""
        del self._channels[channel.number]
        for source in channel.sources():
            if channel.job is not None:
                source.discard()
            else:
                source.close()
        if channel.sink is not None:
            channel.sink.end()  # what the engine sent before is still delivered
        if channel.listener is not None:
            self._loop.forget(channel.listener.fileno())
            channel.listener.close()
        parent = channel.accepted_by
        if parent is not None:
            parent.accepted -= 1
            if parent.listener is not None and parent.number in self._channels:
                self._watch_listener(parent)
        self._pipe.send(wire.frame(wire.CLOSE, channel.number))

    def _tell(self, channel: _Channel, **event: object) -> None:
        if channel.number in self._channels:
            payload = json.dumps(event).encode()
            self._pipe.send(wire.frame(wire.EVENT, channel.number, payload))

    # Commands

    def _run(self, channel: _Channel, request: dict[str, Any]) -> None:
        channel.drain = request["drain"]
        channel.oom_before = oom_kills()
        pty = request["pty"]
        if pty is not None:
            ours, theirs = nanny.open_terminal(pty[0], pty[1])
            fds = (theirs, theirs, theirs)
            ends = (os.dup(ours), ours, -1)
        else:
            fds, ends = pipes(with_stdin=request["stdin"])
        try:
            channel.job = self._jobs.start(
                nanny.Command(
                    argv=request["argv"],
                    fds=fds,
                    user=None if request["user"] in _OWN_USER else request["user"],
                    cwd=request["cwd"],
                    env=request["env"],
                    tty=pty is not None,
                    oom_score_adj=_OOM_SCORE,
                    announce=not channel.drain,
                )
            )
        except OSError:
            for fd in ends:
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            for fd in set(fds):
                os.close(fd)
        self._by_job[channel.job] = channel
        self._watch_jobs()
        number = channel.number
        if ends[0] >= 0:
            finish = end_of_terminal if pty is not None else os.close
            channel.sink = Sink(self._loop, self._pipe, ends[0], number, finish)
        channel.out = Source(self._loop, self._pipe, ends[1], number)
        if ends[2] >= 0:
            channel.err = Source(self._loop, self._pipe, ends[2], number, err=True)
        for source in channel.sources():
            source.ended = source.drained = lambda: self._drained(channel)

    def _watch_jobs(self) -> None:
        for fd in self._jobs.fds():
            if fd not in self._watched:
                self._watched.add(fd)
                self._loop.watch(fd, READ, lambda fd=fd: self._job_ready(fd))

    def _job_ready(self, fd: int) -> None:
        self._events(self._jobs.read(fd))
        if fd not in self._jobs.fds():
            self._watched.discard(fd)
            self._loop.gone(fd)

    def _tick(self) -> None:
        before = set(self._jobs.fds())
        events = self._jobs.tick()
        for fd in before - set(self._jobs.fds()):
            self._watched.discard(fd)
            self._loop.gone(fd)
        self._events(events)

    def _children(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            return
        self._tick()

    def _events(self, events: list[inside.Event]) -> None:
        for job, kind, value, text in events:
            channel = self._by_job.get(job)
            if channel is None:
                continue
            if kind == "started":
                self._tell(channel, event="started", pid=value)
            elif kind == "failed":
                self._tell(channel, event="failed", code=value, text=text)
            elif kind == "ended":
                channel.status = value
                if channel.drain:
                    for source in channel.sources():
                        source.drain()
                self._drained(channel)
            elif kind == "gone":
                del self._by_job[job]
                self._tell(channel, event="gone", unkillable=value, used=text)

    def _drained(self, channel: _Channel) -> None:
        """Report the end of a command, after what it wrote where the engine waits for that."""
        if channel.status is None:
            return
        if any(source.due for source in channel.sources()):
            return
        status, channel.status = channel.status, None
        code = os.waitstatus_to_exitcode(status)
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        oom = killed and oom_kills() > channel.oom_before
        self._tell(channel, event="ended", code=code, oom=oom)

    # Trees

    def _pack(self, channel: _Channel, request: dict[str, Any]) -> None:
        limits = Limits(*request["limits"])
        read, write = os.pipe()
        say = self._helper(read, write, lambda: pack(request["path"], write, limits))
        channel.out = Source(self._loop, self._pipe, read, channel.number)
        channel.err = Source(self._loop, self._pipe, say, channel.number, err=True)

    def _unpack(self, channel: _Channel, request: dict[str, Any]) -> None:
        read, write = os.pipe()
        say = self._helper(write, read, lambda: _unpack_for(request, read))
        channel.sink = Sink(self._loop, self._pipe, write, channel.number, os.close)
        channel.err = Source(self._loop, self._pipe, say, channel.number, err=True)

    def _helper(self, ours: int, its: int, work: Callable[[], tuple[int, str]]) -> int:
        """Do `work` in a process that has the end `its` of a pipe; returns where it will answer."""
        say_r, say_w = os.pipe()
        try:
            if self._jobs.fork_helper() == 0:
                nanny.close_all_but((its, say_w))
                _answer(say_w, work)
        except OSError:
            os.close(say_r)
            os.close(ours)
            raise
        finally:
            os.close(its)
            os.close(say_w)
        return say_r

    # Connections

    def _dial(self, channel: _Channel, request: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", request["port"]))
        fd = sock.detach()

        def connected() -> None:
            self._loop.forget(fd)
            with socket.socket(fileno=os.dup(fd)) as probe:
                error = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error or channel.number not in self._channels:
                os.close(fd)
                text = os.strerror(error)
                self._tell(channel, event="failed", code=error, text=text)
                return
            self._tell(channel, event="connected")
            self._carry(channel, fd)

        self._loop.watch(fd, WRITE, connected)

    def _carry(self, channel: _Channel, fd: int) -> None:
        channel.sink = Sink(self._loop, self._pipe, os.dup(fd), channel.number, half_close)
        channel.out = Source(self._loop, self._pipe, fd, channel.number)

    def _listen(self, channel: _Channel, request: dict[str, Any]) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", request["port"]))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        channel.listener = listener
        self._tell(channel, event="listening", port=listener.getsockname()[1])
        self._watch_listener(channel)

    def _watch_listener(self, channel: _Channel) -> None:
        listener = channel.listener
        if listener is None:
            return
        if channel.accepted < _MAX_ACCEPTED:
            self._loop.watch(listener.fileno(), READ, lambda: self._accept(channel))
        else:
            self._loop.forget(listener.fileno())

    def _accept(self, channel: _Channel) -> None:
        if channel.listener is None:
            return
        try:
            sock, _ = channel.listener.accept()
        except OSError:  # the peer left meanwhile
            return
        accepted = self._channels[self._next] = _Channel(self._next)
        self._next += 2
        accepted.accepted_by = channel
        channel.accepted += 1
        request = json.dumps({"listener": channel.number}).encode()
        self._pipe.send(wire.frame(wire.OPEN, accepted.number, request))
        self._carry(accepted, sock.detach())
        self._watch_listener(channel)

    # The end

    def _settle(self, channel: _Channel, request: dict[str, Any]) -> None:
        """Kill everything but this process, at once: PID 1 can.

        With `keep` (numbers of capabilities) no command from now on has any other.
        """
        if request["keep"] is not None:
            for capability in set(range(_CAPABILITIES)) - set(request["keep"]):
                processes.prctl(_PR_CAPBSET_DROP, capability)
        for _ in range(1000):
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                self._tell(channel, event="settled")
                return
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:  # what is left came by `docker exec`: not ours to reap
                time.sleep(0.002)
        self._tell(channel, event="failed", code=1, text="processes that cannot be killed")


def _unpack_for(request: dict[str, Any], in_fd: int) -> tuple[int, str]:
    uid = gid = 0
    if request["owner"] is not None:
        try:
            user = find_user(request["owner"])
        except LookupError as error:
            return FAILED, str(error)
        uid, gid = user.uid, user.gid
    return unpack(in_fd, request["path"], uid, gid, request["mode"], request["clear"])


def _answer(fd: int, work: Callable[[], tuple[int, str]]) -> NoReturn:
    """In a helper process: do the work, say how it went, end."""
    try:
        try:
            status, reason = work()
        except Exception as error:  # whatever it is, the engine is told
            status, reason = FAILED, f"{type(error).__name__}: {error}"
        os.write(fd, json.dumps({"status": status, "reason": reason[:2000]}).encode())
    finally:
        os._exit(0)


def main() -> None:
    """Entry point inside a container."""
    if os.getpid() != 1:
        raise SystemExit("the supervisor must be the container's first process")
    processes.prctl(_PR_SET_DUMPABLE, 0)
    if wire.PUBLIC in sys.argv:
        close_private(sys.argv[sys.argv.index(wire.PUBLIC) + 1 :])
    supervisor = Supervisor()
    gc.freeze()  # what is there by now stays: no collection touches it, no fork copies it
    supervisor.serve()
    os._exit(0)
