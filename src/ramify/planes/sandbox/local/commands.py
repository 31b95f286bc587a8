"""Commands in a sandbox: to their end (`run`), or with streams (`start`)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.sandbox import ExecResult, PtySize
from ramify.planes.sandbox.inside import resize_terminal
from ramify.planes.sandbox.local.control import Control, Reply
from ramify.planes.sandbox.local.streams import Collector, FdReader, FdWriter
from ramify.planes.sandbox.processes import KILL_DEADLINE_SEC

_TIMED_OUT = 124
_GRACE_SEC = 0.05
_END_OF_TEXT = b"\x04"


class Request(NamedTuple):
    """A command as the supervisor understands it."""

    argv: Sequence[str]
    user: str | None
    cwd: str
    env: dict[str, str]


class RunOptions(NamedTuple):
    """How `run` treats a command; see `Sandbox.exec`."""

    stdin: bytes | None
    timeout_sec: float | None
    output_limit: int
    kill_leftovers: bool


class _Job:
    """What the engine knows of one command."""

    def __init__(
        self,
        control: Control,
        request: Request,
        fds: Sequence[int],
        pty: PtySize | None,
        quiet: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._control = control
        self.started: asyncio.Future[Reply] = loop.create_future()
        self.ended: asyncio.Future[Reply] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.terminal = -1
        message = {
            "op": "exec",
            "argv": list(request.argv),
            "user": request.user,
            "cwd": request.cwd,
            "env": request.env,
            "tty": [pty.rows, pty.cols] if pty else None,
            "quiet": quiet,
        }
        self.id = control.request(self._reply, message, fds)

    def _reply(self, reply: Reply) -> None:
        if reply.event == "terminal":
            self.terminal = reply.fds[0]
            return
        if not self.started.done():
            self.started.set_result(reply)
        if reply.event == "started":
            return
        if not self.ended.done():
            self.ended.set_result(reply)
        if reply.event in ("failed", "gone", "lost"):
            self._control.forget(self.id)
            if not self.gone.done():
                self.gone.set_result(None)

    def signal(self, number: int) -> None:
        self._control.order({"op": "signal", "job": self.id, "number": number})

    async def kill(self) -> None:
        """Kill everything of the command; returns when it is gone (bounded), cancelled or not."""
        if self.gone.done():
            return
        self._control.order({"op": "kill", "job": self.id})
        waiting = asyncio.ensure_future(asyncio.wait({self.gone}, timeout=KILL_DEADLINE_SEC + 2))
        cancelled = False
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:  # killing is not given up half-way
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError


def exit_code(reply: Reply) -> int:
    """The exit code (128+n for signal n) that an `ended` or `failed` reply tells."""
    if reply.event == "failed":
        return reply.value
    code = os.waitstatus_to_exitcode(reply.value)
    return code if code >= 0 else 128 - code


class Runner:
    """Runs commands over one control line.

    Args:
        control: the line.
        null: a descriptor of /dev/null, for commands without standard input.
        oom_kills: counts the kernel's kills for memory so far.
        disk_kills: counts our kills for disk use so far.
    """

    def __init__(
        self,
        control: Control,
        null: int,
        oom_kills: Callable[[], int],
        disk_kills: Callable[[], int],
    ) -> None:
        self._control, self._null = control, null
        self._oom_kills, self._disk_kills = oom_kills, disk_kills
        self._draining: set[Collector] = set()

    def close(self) -> None:
        """Stop reading from processes left in the background."""
        for collector in list(self._draining):
            collector.close()

    async def run(self, request: Request, options: RunOptions) -> ExecResult:
        """See `Sandbox.exec`. Raises SandboxLostError."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        kills = (self._oom_kills(), self._disk_kills())
        job, out, err = self._launch(request, options)
        timed_out = False
        try:
            try:
                async with asyncio.timeout(options.timeout_sec):
                    reply = await asyncio.shield(job.ended)
            except TimeoutError:
                timed_out = True
                await job.kill()
                reply = await job.ended if job.ended.done() else Reply("ended", 9, "", ())
            if reply.event == "lost":
                raise SandboxLostError("the sandbox ended while a command ran in it")
            if options.kill_leftovers:
                await job.kill()
            await _settle(out, err)
        except BaseException:
            out.close()
            err.close()
            await job.kill()
            raise
        for collector in (out, err):
            self._leave(collector)
        result = _result(reply, out, err, timed_out, loop.time() - begin)
        return self._explain(result, kills)

    def _launch(self, request: Request, options: RunOptions) -> tuple[_Job, Collector, Collector]:
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        stdin = self._null if options.stdin is None else _file_of(options.stdin)
        try:
            job = _Job(self._control, request, (stdin, out_w, err_w), None, quiet=True)
        except BaseException:
            os.close(out_r)
            os.close(err_r)
            raise
        finally:
            for fd in {out_w, err_w, stdin} - {self._null}:
                os.close(fd)
        return job, Collector(out_r, options.output_limit), Collector(err_r, options.output_limit)

    def _leave(self, collector: Collector) -> None:
        collector.discard()
        if not collector.closed.done():
            self._draining.add(collector)
            collector.closed.add_done_callback(lambda _done: self._draining.discard(collector))

    def _explain(self, result: ExecResult, before: tuple[int, int]) -> ExecResult:
        if result.exit_code != 137:
            return result
        oom = self._oom_kills() > before[0]
        stderr = result.stderr
        if self._disk_kills() > before[1]:
            stderr += b"ramify: killed: the sandbox uses more disk than its limit\n"
        return ExecResult(
            result.exit_code,
            result.stdout,
            stderr,
            result.signal,
            result.timed_out,
            oom,
            result.duration_sec,
            result.stdout_dropped,
            result.stderr_dropped,
        )

    async def start(self, request: Request, pty: PtySize | None) -> LocalProcess:
        """See `Sandbox.spawn`. Raises SandboxError, SandboxLostError."""
        if pty is not None:
            job = _Job(self._control, request, (), pty, quiet=False)
            return await _started(job, request, None)
        pipes = [os.pipe(), os.pipe(), os.pipe()]
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        try:
            job = _Job(self._control, request, theirs, None, quiet=False)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return await _started(job, request, ours)


def _file_of(data: bytes) -> int:
    """An anonymous file with `data`, at its start: input of any size that nobody has to feed."""
    fd = os.memfd_create("stdin")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _settle(out: Collector, err: Collector) -> None:
    """Take what is in the pipes; give a last writer a moment, but never wait for a daemon."""
    out.drain()
    err.drain()
    open_ends = {c.closed for c in (out, err) if not c.closed.done()}
    if open_ends:
        await asyncio.wait(open_ends, timeout=_GRACE_SEC)
        out.drain()
        err.drain()


def _result(
    reply: Reply, out: Collector, err: Collector, timed_out: bool, duration: float
) -> ExecResult:
    code = exit_code(reply)
    stderr = err.capture.data
    if reply.event == "failed":
        stderr += reply.text.encode() + b"\n"
    number = os.WTERMSIG(reply.value) if reply.event == "ended" and code > 128 else 0
    return ExecResult(
        _TIMED_OUT if timed_out else code,
        out.capture.data,
        stderr,
        number or None,
        timed_out,
        False,
        duration,
        out.capture.dropped,
        err.capture.dropped,
    )


async def _started(job: _Job, request: Request, fds: tuple[int, int, int] | None) -> LocalProcess:
    try:
        reply = await asyncio.shield(job.started)
        if reply.event == "lost":
            raise SandboxLostError("the sandbox is gone")
        if reply.event == "failed":
            raise SandboxError(f"cannot start {request.argv[0]!r}: {reply.text}")
    except BaseException:
        for fd in fds or ():
            os.close(fd)
        await job.kill()
        if job.terminal >= 0:
            os.close(job.terminal)
        raise
    return LocalProcess(job, reply.value, fds)


class LocalProcess:
    """A running command with streams (the `Process` contract)."""

    def __init__(self, job: _Job, pid: int, fds: tuple[int, int, int] | None) -> None:
        self._job, self._pid = job, pid
        self._terminal = job.terminal if fds is None else -1
        self._err: FdReader | None = None
        if fds is None:
            self._out, self._in = FdReader(job.terminal), FdWriter(os.dup(job.terminal))
        else:
            self._in, self._out, self._err = FdWriter(fds[0]), FdReader(fds[1]), FdReader(fds[2])

    @property
    def pid(self) -> int:
        """Process id as the inside sees it."""
        return self._pid

    async def write(self, data: bytes) -> None:
        """Write to standard input. Raises BrokenPipeError when the process closed it."""
        await self._in.write(data)

    async def close_stdin(self) -> None:
        """Send end of file (on a terminal: its end-of-file character). Idempotent."""
        if self._terminal < 0:
            self._in.close()
            return
        try:
            await self._in.write(_END_OF_TEXT)
        except BrokenPipeError:  # nobody is there to read it
            return

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard output (or of the terminal); b"" at the end."""
        return await self._out.read(max_bytes)

    async def read_err(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard error; b"" at the end, at once under a terminal."""
        return await self._err.read(max_bytes) if self._err is not None else b""

    async def resize(self, size: PtySize) -> None:
        """Change the terminal's size. No effect without a terminal."""
        if self._terminal < 0:
            return
        try:
            resize_terminal(self._terminal, size.rows, size.cols)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADF):  # it has ended meanwhile
                raise

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._job.signal(number)

    async def wait(self) -> int:
        """Exit code (128+n for signal n). Raises SandboxLostError if the sandbox ends first."""
        reply = await asyncio.shield(self._job.ended)
        if reply.event == "lost":
            raise SandboxLostError("the sandbox ended before the process")
        return exit_code(reply)

    async def aclose(self) -> None:
        """Kill what is left of the command, all descendants included, and free its streams."""
        try:
            await self._job.kill()
        finally:
            self._terminal = -1
            self._in.close()
            self._out.close()
            if self._err is not None:
                self._err.close()
