"""Commands in a sandbox: to their end (`run`), or with streams (`start`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from ramify.contracts.errors import SandboxLostError
from ramify.contracts.process import PtySize
from ramify.contracts.sandbox import ExecResult
from ramify.planes.sandbox.local.control import Control, Reply
from ramify.planes.sandbox.local.job import Request, RunningJob, exec_message, exit_code
from ramify.planes.sandbox.local.spawned import LocalProcess, started
from ramify.planes.sandbox.local.streams import Collector

_TIMED_OUT = 124
_GRACE_SEC = 0.05


class RunOptions(NamedTuple):
    """How `run` treats a command; see `Sandbox.exec`."""

    stdin: bytes | None
    timeout_sec: float | None
    output_limit: int
    kill_leftovers: bool


class Collected(NamedTuple):
    """The streams of a command that is run to its end."""

    job: RunningJob
    out: Collector
    err: Collector


class Spawned(NamedTuple):
    """A spawned command and its streams."""

    job: RunningJob
    process: LocalProcess


class Pipes(NamedTuple):
    """How pipes are made.

    `inside`: in a live sandbox a command's ends must be all pipes, and nothing of the host's.
    `owner`: the user and group that root inside is on this machine, where that is another.
    """

    inside: bool = False
    owner: int | None = None

    def make(self) -> tuple[int, int]:
        """A new pipe: (reading end, writing end)."""
        ends = os.pipe()
        if self.inside and self.owner is not None:
            os.fchown(ends[0], self.owner, self.owner)
        return ends


_PLAIN_PIPES = Pipes()


class Runner:
    """Runs commands over one control line.

    Args:
        control: the line.
        null: a descriptor of /dev/null, for commands without standard input.
        oom_kills: counts the kernel's kills for memory so far.
        disk_kills: counts our kills for disk use so far.
        pipes: how pipes are made.
    """

    def __init__(
        self,
        control: Control,
        null: int,
        oom_kills: Callable[[], int],
        disk_kills: Callable[[], int],
        pipes: Pipes = _PLAIN_PIPES,
    ) -> None:
        self._control, self._null, self._pipes = control, null, pipes
        self._open: dict[int, Collected | Spawned] = {}
        self._oom_kills, self._disk_kills = oom_kills, disk_kills
        self._draining: set[Collector] = set()

    def close(self) -> None:
        """Stop reading from processes left in the background."""
        for collector in list(self._draining):
            collector.close()

    @property
    def open(self) -> Mapping[int, Collected | Spawned]:
        """In a live sandbox: the commands of which something may be left, by their number."""
        return self._open

    def keep(self, command: Collected | Spawned) -> None:
        """Have a command, which may have come from a checkpoint, among `open`."""
        if not self._pipes.inside:
            return
        for number, one in list(self._open.items()):
            has_rest = isinstance(one, Spawned) and one.process.is_terminal
            if one.job.gone.done() and not has_rest:
                del self._open[number]
        self._open[command.job.id] = command

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
        self.leave(out, err)
        result = _result(reply, out, err, timed_out, loop.time() - begin)
        return self._explain(result, kills)

    def _launch(self, request: Request, options: RunOptions) -> Collected:
        out_r, out_w = self._pipes.make()
        err_r, err_w = self._pipes.make()
        stdin = self._null if options.stdin is None else _file_of(options.stdin)
        how = "null" if options.stdin is None else "data"
        message = exec_message(request, quiet=True, stdin=how)
        try:
            job = RunningJob(self._control, message, (stdin, out_w, err_w))
        except BaseException:
            os.close(out_r)
            os.close(err_r)
            raise
        finally:
            for fd in {out_w, err_w, stdin} - {self._null}:
                os.close(fd)
        limit = options.output_limit
        command = Collected(job, Collector(out_r, limit), Collector(err_r, limit))
        self.keep(command)
        return command

    def leave(self, *collectors: Collector) -> None:
        """Throw away what still comes from a command, for as long as it does."""
        for collector in collectors:
            collector.discard()
            if not collector.closed.done():
                self._draining.add(collector)
                forget = partial(self._forget, collector)
                collector.closed.add_done_callback(forget)

    def _forget(self, collector: Collector, _closed: asyncio.Future[None]) -> None:
        self._draining.discard(collector)

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
        if pty is not None and not self._pipes.inside:
            job = RunningJob(self._control, exec_message(request, pty), ())
            return await started(job, request, None)
        first, second, third = (self._pipes.make() for _ in range(3))
        if pty is not None:  # the third carries its size, the other way round
            third = (third[1], third[0])
        theirs = (first[0], second[1], third[1])
        ours = (first[1], second[0], third[0])
        try:
            job = RunningJob(self._control, exec_message(request, pty), theirs)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        process = await started(
            job, request, ours, piped_terminal=pty is not None, oom_kills=self._oom_kills
        )
        self.keep(Spawned(job, process))
        return process


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
