"""Commands through a container's wire: to their end (`run`) or with streams (`ChannelProcess`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.process import PtySize, Usage
from ramify.contracts.sandbox import ExecResult
from ramify.planes.sandbox.capture import Capture
from ramify.planes.sandbox.docker.link import Channel, Event, Link
from ramify.planes.sandbox.usage import read_usage

TIMED_OUT = 124

_START_SEC = 30.0
_KILL_SEC = 10.0


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What to start: everything resolved, nothing left to defaults."""

    argv: tuple[str, ...]
    user: str
    cwd: str
    env: Mapping[str, str]

    def request(self, *, pty: PtySize | None, stdin: bool, drain: bool) -> Event:
        """The request to the supervisor. With `drain` the end is reported after the output."""
        return {
            "op": "run",
            "argv": self.argv,
            "user": self.user,
            "cwd": self.cwd,
            "env": dict(self.env),
            "pty": None if pty is None else (pty.rows, pty.cols),
            "stdin": stdin,
            "drain": drain,
        }


def argv_of(command: str | Sequence[str]) -> tuple[str, ...]:
    """A command as an argument list; a string is for the shell. Raises: ValueError when empty."""
    argv = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    if not argv or not argv[0]:
        raise ValueError("the command is empty")
    if any("\0" in word for word in argv):
        raise ValueError("a command cannot hold NUL characters")
    return argv


async def run(
    link: Link,
    line: CommandLine,
    *,
    stdin: bytes | None,
    timeout_sec: float | None,
    output_limit: int,
    kill_leftovers: bool,
) -> ExecResult:
    """Run a command to its end, as `Sandbox.exec` states it. Raises: SandboxLostError."""
    out, err = Capture(output_limit), Capture(output_limit)
    started = time.monotonic()
    request = line.request(pty=None, stdin=stdin is not None, drain=True)
    channel = link.open(request, out=out.feed, err=err.feed)
    feeder = None if stdin is None else asyncio.create_task(_feed(channel, stdin))
    timed_out = False
    try:
        try:
            async with asyncio.timeout(timeout_sec):
                event = await channel.until("failed", "ended")
        except TimeoutError:
            timed_out = True
            event = await kill(channel)
        if kill_leftovers and not timed_out and event["event"] == "ended":
            await kill(channel)
    except asyncio.CancelledError:
        channel.tell({"do": "kill"})
        raise
    finally:
        if feeder is not None:
            feeder.cancel()
            await asyncio.wait([feeder])
        channel.close()
    duration = time.monotonic() - started
    if event["event"] == "failed":
        return ExecResult(_code(event), stderr=_text(event).encode() + b"\n", duration_sec=duration)
    code = _code(event)
    return ExecResult(
        exit_code=TIMED_OUT if timed_out else 128 - code if code < 0 else code,
        stdout=out.data,
        stderr=err.data,
        signal=-code if code < 0 else None,
        timed_out=timed_out,
        oom_killed=event.get("oom") is True and not timed_out,
        duration_sec=duration,
        stdout_dropped=out.dropped,
        stderr_dropped=err.dropped,
    )


async def kill(channel: Channel) -> Event:
    """Kill everything of a command and wait until it is gone; its end.

    Raises: SandboxLostError, also when something cannot be killed in time.
    """
    channel.tell({"do": "kill"})
    try:
        async with asyncio.timeout(_KILL_SEC):
            gone = await channel.until("gone")
            event = await channel.until("failed", "ended")
    except TimeoutError:
        raise SandboxLostError("the supervisor did not kill a command in time") from None
    if gone.get("unkillable"):
        raise SandboxLostError("a process in the sandbox cannot be killed")
    return event


async def spawn(link: Link, line: CommandLine, pty: PtySize | None) -> ChannelProcess:
    """Start a command with streams. Raises: SandboxError (it cannot be started)."""
    channel = link.open(line.request(pty=pty, stdin=True, drain=False))
    try:
        async with asyncio.timeout(_START_SEC):
            event = await channel.until("started", "failed", "ended")
        # One that killed whoever tells has ended, and was started all the same.
        pid = 0 if event["event"] == "ended" else event.get("pid")
        if event["event"] == "failed":
            raise SandboxError(f"cannot start {line.argv[0]!r}: {_text(event)}")
        if not isinstance(pid, int):
            raise SandboxLostError("the supervisor answered with nonsense")
    except BaseException as error:
        channel.tell({"do": "kill"})
        channel.close()
        if isinstance(error, TimeoutError):
            raise SandboxLostError("the supervisor did not start a command in time") from error
        raise
    return ChannelProcess(channel, pid, terminal=pty is not None)


class ChannelProcess:
    """A running command with streams, as the `Process` contract."""

    def __init__(self, channel: Channel, pid: int, *, terminal: bool) -> None:
        self._channel, self._pid, self._terminal = channel, pid, terminal
        self._stdin_open = True
        self._closed = False
        self._oom_killed = False
        self._usage: Usage | None = None

    @property
    def oom_killed(self) -> bool:
        """Once `wait` has returned: whether it was killed for memory."""
        return self._oom_killed

    @property
    def usage(self) -> Usage | None:
        """Once it is closed: what all of it used."""
        return self._usage

    @property
    def pid(self) -> int:
        """Process id inside; 0 where it ended before that was told."""
        return self._pid

    async def write(self, data: bytes) -> None:
        """Write to standard input. Raises: BrokenPipeError, SandboxLostError."""
        if not self._stdin_open:
            raise BrokenPipeError("standard input was closed")
        await self._channel.send(data)

    async def close_stdin(self) -> None:
        """Send end of file (under a terminal: the character for it). Idempotent."""
        if self._stdin_open:
            self._stdin_open = False
            self._channel.send_eof()

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard output; b"" at the end. Raises: SandboxLostError."""
        return await self._channel.out.read(max_bytes)

    async def read_err(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard error; b"" at the end. Raises: SandboxLostError."""
        return b"" if self._terminal else await self._channel.err.read(max_bytes)

    async def resize(self, size: PtySize) -> None:
        """Change the terminal's size."""
        if self._terminal:
            self._channel.tell({"do": "resize", "rows": size.rows, "cols": size.cols})

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._channel.tell({"do": "signal", "number": number})

    async def wait(self) -> int:
        """Exit code (128+n for signal n). Raises: SandboxLostError."""
        event = await self._channel.until("ended")
        self._oom_killed = event.get("oom") is True
        code = _code(event)
        return 128 - code if code < 0 else code

    async def aclose(self) -> None:
        """Kill what is left and free the streams. Idempotent; fine when the sandbox is gone."""
        if self._closed:
            return
        self._closed = True
        try:
            await kill(self._channel)
            gone = await self._channel.until("gone")
            self._usage = read_usage(gone.get("used"))
        except SandboxLostError:
            return  # then nothing of it is alive either
        finally:
            self._channel.close()


async def _feed(channel: Channel, data: bytes) -> None:
    try:
        await channel.send(data)
        channel.send_eof()
    except (BrokenPipeError, SandboxLostError):
        return  # the command does not want it; how it ends says the rest


def _code(event: Event) -> int:
    code = event.get("code")
    if not isinstance(code, int) or not -64 <= code <= 255:
        raise SandboxLostError("the supervisor answered with nonsense")
    return code


def _text(event: Event) -> str:
    return str(event.get("text", ""))[:4000]
