"""A spawned command of a sandbox, with its streams."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.process import PtySize, Usage
from ramify.planes.sandbox.inside import resize_terminal
from ramify.planes.sandbox.local.job import Request, RunningJob, exit_code
from ramify.planes.sandbox.local.streams import FdReader, FdWriter

_END_OF_TEXT = b"\x04"


async def started(
    job: RunningJob,
    request: Request,
    fds: tuple[int, int, int] | None,
    *,
    piped_terminal: bool = False,
    oom_kills: Callable[[], int] = int,
) -> LocalProcess:
    """Wait until a command runs; owns `fds`. Raises SandboxError, SandboxLostError."""
    kills = oom_kills()
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
    process = LocalProcess(job, reply.value, fds, piped_terminal=piped_terminal)
    process.count_kills(oom_kills, kills)
    return process


class LocalProcess:
    """A running command with streams (the `Process` contract).

    Args:
        job: the command.
        pid: its process id inside.
        fds: its three pipes, or None where the job has a terminal.
        piped_terminal: the pipes are a terminal's input, output and size.
    """

    def __init__(
        self,
        job: RunningJob,
        pid: int,
        fds: tuple[int, int, int] | None,
        *,
        piped_terminal: bool = False,
    ) -> None:
        self._job, self._pid = job, pid
        self._terminal = job.terminal if fds is None else fds[2] if piped_terminal else -1
        self._is_piped = piped_terminal
        self._err: FdReader | None = None
        self._oom_kills: Callable[[], int] = int
        self._kills_before = 0
        if fds is None:
            self._out, self._in = FdReader(job.terminal), FdWriter(os.dup(job.terminal))
            return
        self._in, self._out = FdWriter(fds[0]), FdReader(fds[1])
        if piped_terminal:
            if fds[2] >= 0:
                os.set_blocking(fds[2], False)
        else:
            self._err = FdReader(fds[2])

    def count_kills(self, oom_kills: Callable[[], int], before: int) -> None:
        """Tell it how to count the kernel's kills for memory, and how many there were."""
        self._oom_kills, self._kills_before = oom_kills, before

    @property
    def oom_killed(self) -> bool:
        """Whether anything in the sandbox was killed for memory since it was started."""
        return self._oom_kills() > self._kills_before

    @property
    def usage(self) -> Usage | None:
        """Once it is closed: what all of it used."""
        return self._job.usage

    @property
    def is_terminal(self) -> bool:
        """Whether it has a terminal."""
        return self._err is None and self._out.fileno >= 0

    @property
    def streams(self) -> tuple[int, int, int]:
        """Our ends of its pipes (-1: closed): input, output, and errors or the terminal's size."""
        third = self._err.fileno if self._err is not None else self._terminal
        return self._in.fileno, self._out.fileno, third

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
            if self._is_piped:
                os.write(self._terminal, struct.pack("HH", size.rows, size.cols))
            else:
                resize_terminal(self._terminal, size.rows, size.cols)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADF, errno.EPIPE):  # it has ended meanwhile
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
            if self._is_piped and self._terminal >= 0:
                os.close(self._terminal)
            self._terminal = -1
            self._in.close()
            self._out.close()
            if self._err is not None:
                self._err.close()
