"""An interactive shell in the sandbox, worked by a person or by an expect/send script."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, UnsupportedError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.inside import shell_line
from ramify.contracts.process import (
    Process,
    PtySize,
)
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.dialogue import Line, load_dialogue
from ramify.planes.agent.session import (
    Observation,
    Transcript,
    TurnSession,
    agent_user,
)
from ramify.planes.agent.terminal import Terminal

_QUIET_SEC = 0.3
"""A script's turn ends when the shell has said nothing for this long after the last line."""
_END_SEC = 2.0
_LAST_WORDS_SEC = 5.0
_SEEN_LIMIT = 64 * 1024
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class ShellAgent:
    """Opens a shell on a pseudo-terminal and hands it to a script or to a person.

    Every line typed becomes a step, with what the shell said until the next one. The shell stays
    open between prompts.

    Args:
        script: a file of expect/send lines (`dialogue.load_dialogue`). Without it a person works
            at the terminal of this process until the shell ends or the terminal hangs up.
        terminal: the terminal; default this process's own. Not used with a script.

    Raises:
        ConfigError: the script is wrong.
        UsageError: no script, and standard input is no terminal.
    """

    name = "shell"

    def __init__(self, script: str | Path | None = None, terminal: Terminal | None = None) -> None:
        self._lines = load_dialogue(Path(script)) if script is not None else ()
        self._terminal = None if script is not None else terminal or Terminal()

    def capabilities(self) -> AgentCapabilities:
        """A person or a script works it."""
        return AgentCapabilities(multi_prompt=True, interactive=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Start the shell. The session of a script is Checkpointable."""
        transcript = Transcript(ctx, role)
        size = self._terminal.size() if self._terminal else PtySize()
        process = await sandbox.spawn(
            shell_line(["bash", "-i"]),
            user=agent_user(ctx),
            cwd=ctx.workdir,
            env={"TERM": "xterm"},
            pty=size,
        )
        typed = _Typed(ctx, transcript, _Heard())
        if self._terminal is None:
            return TurnSession(_Follower(process, transcript, typed, self._lines), transcript)
        return TurnSession(_Attendant(process, transcript, typed, self._terminal), transcript)


@dataclass(slots=True)
class _Heard:
    """The line that is open, and what the shell has said since it was typed. Plain data."""

    line: str | None = None
    said: bytes = b""
    dropped: int = 0
    started_at: float = 0.0
    start: float = 0.0


class _Typed:
    """Turns what is typed and said into steps."""

    def __init__(self, ctx: Context, transcript: Transcript, at: _Heard) -> None:
        self._ctx, self._transcript, self.at = ctx, transcript, at

    async def line(self, text: str) -> None:
        """A line is typed: what came before belongs to the one before."""
        await self.done()
        self.opened(text)

    def opened(self, text: str) -> None:
        """A line is typed, and none is open."""
        clock = self._ctx.clock
        self.at = _Heard(text, started_at=clock.now(), start=clock.monotonic())

    def heard(self, data: bytes) -> None:
        """The shell said something."""
        at = self.at
        at.said += data
        if (over := len(at.said) - 2 * _SEEN_LIMIT) > 0:
            half = _SEEN_LIMIT // 2
            at.said = at.said[:half] + at.said[half + over :]
            at.dropped += over

    async def done(self) -> None:
        """Record the line that is open, if one is."""
        at, self.at = self.at, _Heard()
        if at.line is None:
            return
        output = _ESCAPES.sub(b"", at.said).replace(b"\r\n", b"\n")
        output = output.removeprefix(at.line.encode() + b"\n")
        took = self._ctx.clock.monotonic() - at.start
        seen = Observation(output, at.started_at, took, dropped=at.dropped)
        await self._transcript.acted(at.line, seen)


class _Attendant:
    """Lets a person work. What is in a person's head is in no checkpoint."""

    def __init__(
        self, process: Process, transcript: Transcript, typed: _Typed, terminal: Terminal
    ) -> None:
        self._process, self._transcript, self._typed = process, transcript, typed
        self._terminal = terminal

    def begin(self, text: str, index: int) -> None:
        pass

    async def advance(self) -> None:
        await _attend(self._process, self._terminal, self._typed)
        self._transcript.ends(StopReason.END_TURN)
        await self._typed.done()

    def state(self) -> _ShellState:
        return _ShellState(None)

    async def aclose(self) -> None:
        await self._process.aclose()


class _Follower:
    """Follows a script, line by line. Reads what the shell says only while it waits for it."""

    def __init__(
        self,
        process: Process,
        transcript: Transcript,
        typed: _Typed,
        lines: tuple[Line, ...],
        prompt: int = 0,
        done: int = 0,
    ) -> None:
        self._process, self._transcript, self._typed = process, transcript, typed
        self._lines, self._prompt, self._done = lines, prompt, done

    def begin(self, text: str, index: int) -> None:
        self._prompt, self._done = index, 0

    async def advance(self) -> None:
        lines = [line for line in self._lines if line.prompt == self._prompt]
        if self._done == len(lines):
            if lines:
                await _last_words(self._process, self._typed)
            self._transcript.ends(StopReason.END_TURN)
            await self._typed.done()
            return
        line = lines[self._done]
        if line.kind == "expect":
            await _expect(self._process, line, self._typed)
        elif self._typed.at.line is not None:
            await self._typed.done()
            return
        else:
            await self._send(line)
        self._done += 1

    async def _send(self, line: Line) -> None:
        self._typed.opened(line.text)
        try:
            await self._process.write(line.text.encode() + b"\r")
        except BrokenPipeError:
            await _ended(self._process, f"the shell had ended before {line.text!r} was sent")

    def state(self) -> _ShellState:
        at = replace(self._typed.at)
        return _ShellState(_Place(self._process.pid, self._lines, self._prompt, self._done, at))

    async def aclose(self) -> None:
        await self._process.aclose()


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a script: how many lines of which prompt are done, and the shell's process."""

    pid: int
    lines: tuple[Line, ...]
    prompt: int
    done: int
    heard: _Heard


@dataclass(frozen=True, slots=True)
class _ShellState:
    """A shell lives in its process: it goes on where that does. None: a person works it."""

    place: _Place | None

    def fidelity(self, live: bool) -> Fidelity:
        return Fidelity.LIVE if live and self.place is not None else Fidelity.FRESH

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Follower:
        if (place := self.place) is None:
            raise UnsupportedError("a shell that a person works cannot go on in a copy; connect")
        if not isinstance(sandbox, Snapshottable):
            raise UnsupportedError(f"{sandbox.id} holds no processes, so no shell can go on in it")
        try:
            process = sandbox.attach(place.pid)
        except LookupError:
            raise UnsupportedError(
                f"the shell (process {place.pid}) did not come into {sandbox.id}: the checkpoint "
                "was of files only, or the shell had ended"
            ) from None
        typed = _Typed(ctx, transcript, replace(place.heard))
        return _Follower(process, transcript, typed, place.lines, place.prompt, place.done)


async def _expect(process: Process, line: Line, typed: _Typed) -> None:
    wanted = line.text.encode()
    scope = asyncio.timeout(line.timeout_sec)
    try:
        async with scope:
            while wanted not in typed.at.said:
                data = await process.read()
                if not data:
                    await _ended(process, f"the shell ended before it said {line.text!r}")
                typed.heard(data)
    except TimeoutError:
        if not scope.expired():
            raise
        tail = typed.at.said[-500:].decode(errors="replace")
        raise AgentError(
            f"{line.text!r} did not come within {line.timeout_sec:g} s; the shell said: {tail!r}"
        ) from None


async def _ended(process: Process, message: str) -> NoReturn:
    """The shell is gone: its own doing, unless its sandbox is gone too (SandboxLostError)."""
    try:
        async with asyncio.timeout(_END_SEC):
            await process.wait()
    except TimeoutError:
        message += " (it closed its terminal and goes on)"
    raise AgentError(message)


async def _last_words(process: Process, typed: _Typed) -> None:
    """Take in what follows the last line: until quiet, the shell's end, or a bounded time."""
    reader = asyncio.ensure_future(process.read())
    try:
        async with asyncio.timeout(_LAST_WORDS_SEC):
            while (await asyncio.wait({reader}, timeout=_QUIET_SEC))[0]:
                if not (data := reader.result()):
                    return
                typed.heard(data)
                reader = asyncio.ensure_future(process.read())
    except TimeoutError:
        return  # It goes on talking; the turn does not wait for it.
    finally:
        reader.cancel()
        await asyncio.wait({reader})


async def _attend(process: Process, terminal: Terminal, typed: _Typed) -> None:
    """Let a person work until the shell ends or the terminal hangs up."""
    resizes: asyncio.Queue[PtySize] = asyncio.Queue()
    async with terminal.raw(lambda: resizes.put_nowait(terminal.size())):
        jobs = [
            asyncio.create_task(_show(process, terminal, typed)),
            asyncio.create_task(_type(process, terminal, typed)),
            asyncio.create_task(_resize(process, resizes)),
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
        for job in done:
            job.result()


async def _show(process: Process, terminal: Terminal, typed: _Typed) -> None:
    while data := await process.read():
        typed.heard(data)
        await terminal.write(data)


async def _type(process: Process, terminal: Terminal, typed: _Typed) -> None:
    line = bytearray()
    while keys := await terminal.read():
        for byte in keys:
            await _key(byte, line, typed.line)
        try:
            await process.write(keys)
        except BrokenPipeError:
            # The shell has ended. Its last words are being shown meanwhile.
            await process.wait()
            await asyncio.sleep(_QUIET_SEC)
            return


async def _key(byte: int, line: bytearray, entered: Callable[[str], Awaitable[None]]) -> None:
    """Keep up with the line as it is edited in the plainest way; the shell does the rest."""
    match byte:
        case 0x0D | 0x0A:
            text = bytes(line).decode(errors="replace")
            line.clear()
            await entered(text)
        case 0x7F | 0x08:
            del line[-1:]
        case 0x03 | 0x15:
            line.clear()
        case _ if byte >= 0x20:
            line.append(byte)
        case _:
            return


async def _resize(process: Process, resizes: asyncio.Queue[PtySize]) -> None:
    while True:
        await process.resize(await resizes.get())
