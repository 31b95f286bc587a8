"""An interactive shell in the sandbox, worked by a person or by an expect/send script."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError
from ramify.contracts.inside import shell_line
from ramify.contracts.sandbox import Process, PtySize, Sandbox
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
        """Start the shell."""
        transcript = Transcript(ctx, role)
        size = self._terminal.size() if self._terminal else PtySize()
        process = await sandbox.spawn(
            shell_line(["bash", "-i"]),
            user=agent_user(ctx),
            cwd=ctx.workdir,
            env={"TERM": "xterm"},
            pty=size,
        )
        typed = _Typed(ctx, transcript)

        async def turn(text: str, index: int) -> StopReason:
            if self._terminal is None:
                lines = [line for line in self._lines if line.prompt == index]
                await _follow(process, lines, typed)
            else:
                await _attend(process, self._terminal, typed)
            await typed.done()
            return StopReason.END_TURN

        return TurnSession(turn, transcript, process.aclose)


class _Typed:
    """Turns what is typed and said into steps."""

    def __init__(self, ctx: Context, transcript: Transcript) -> None:
        self._ctx, self._transcript = ctx, transcript
        self._line: str | None = None
        self._started_at = self._start = 0.0
        self.said = bytearray()
        self._dropped = 0

    async def line(self, text: str) -> None:
        """A line is typed: what came before belongs to the one before."""
        await self.done()
        self._line = text
        self._started_at, self._start = self._ctx.clock.now(), self._ctx.clock.monotonic()

    def heard(self, data: bytes) -> None:
        """The shell said something."""
        self.said += data
        if (over := len(self.said) - 2 * _SEEN_LIMIT) > 0:
            del self.said[_SEEN_LIMIT // 2 : _SEEN_LIMIT // 2 + over]
            self._dropped += over

    async def done(self) -> None:
        """Record the line that is open, if one is."""
        line, said, dropped = self._line, bytes(self.said), self._dropped
        self._line, self._dropped = None, 0
        self.said.clear()
        if line is None:
            return
        output = _ESCAPES.sub(b"", said).replace(b"\r\n", b"\n").removeprefix(line.encode() + b"\n")
        took = self._ctx.clock.monotonic() - self._start
        seen = Observation(output, self._started_at, took, dropped=dropped)
        await self._transcript.acted(line, seen)


async def _follow(process: Process, lines: list[Line], typed: _Typed) -> None:
    """Follow a script. Raises AgentError when what is expected does not come."""
    for line in lines:
        if line.kind == "expect":
            await _expect(process, line, typed)
            continue
        await typed.line(line.text)
        try:
            await process.write(line.text.encode() + b"\r")
        except BrokenPipeError:
            await _ended(process, f"the shell had ended before {line.text!r} was sent")
    if lines:
        await _last_words(process, typed)


async def _expect(process: Process, line: Line, typed: _Typed) -> None:
    wanted = line.text.encode()
    scope = asyncio.timeout(line.timeout_sec)
    try:
        async with scope:
            while wanted not in typed.said:
                data = await process.read()
                if not data:
                    await _ended(process, f"the shell ended before it said {line.text!r}")
                typed.heard(data)
    except TimeoutError:
        if not scope.expired():
            raise
        tail = bytes(typed.said[-500:]).decode(errors="replace")
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
