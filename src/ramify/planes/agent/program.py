"""Any command line as an agent: started once per prompt, inside the sandbox."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.agent import AgentCapabilities, Checkpointable, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, SandboxLostError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    MIB,
    Sandbox,
)
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.session import (
    Observation,
    Transcript,
    TurnSession,
    agent_user,
    bounded_text,
)

_PROMPT = "{prompt}"
_LOG_LIMIT = 16 * MIB
_KEPT_STEP = 64 * 1024
_DRAIN_SEC = 2.0
"""How long output is waited for after the program's end, where something holds its pipes open."""


class ProgramAgent:
    """Runs a program for each prompt, until it exits.

    Its output goes to `agent/program-<n>.log` in the rollout's artifacts as it comes (the first
    16 MiB), and becomes one step per prompt. What the program leaves in the background goes on
    until the session is closed.

    Args:
        command: the program and its arguments: a list, or a line that is split like a shell
            splits words (no shell runs it). `{prompt}` in an argument stands for the instruction;
            without it the instruction is given on standard input.
        env: environment variables for it.
        pass_env: names of variables of our own environment to pass on (a list, or one text with
            commas between them); no other is.

    Raises:
        ConfigError: the command line is empty or its quotes do not match, or a variable of
            `pass_env` is not set.
    """

    name = "program"

    def __init__(
        self,
        command: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        pass_env: str | Sequence[str] = (),
    ) -> None:
        self._argv = _words(command)
        self._env = {**_passed(pass_env), **(env or {})}

    def capabilities(self) -> AgentCapabilities:
        """It is started again for each prompt; what it keeps, it keeps in the sandbox."""
        return AgentCapabilities(multi_prompt=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session; the program starts with the first prompt."""
        transcript = Transcript(ctx, role)
        start = _Launch(self._argv, self._env)
        return TurnSession(_Launcher(sandbox, ctx, transcript, start), transcript)


class _Launcher:
    """Starts the program for each prompt; a step is recorded once it has ended."""

    def __init__(
        self, sandbox: Sandbox, ctx: Context, transcript: Transcript, launch: _Launch
    ) -> None:
        self._sandbox, self._ctx, self._transcript = sandbox, ctx, transcript
        self._launch = launch
        self._text, self._index = "", 0
        self.leftovers: list[_Running] = []

    def begin(self, text: str, index: int) -> None:
        self._text, self._index = text, index

    async def advance(self) -> None:
        ctx, words = self._ctx, self._launch.argv
        argv, stdin = self._launch.call(self._text)
        log = ctx.artifacts / self._transcript.role / f"program-{self._index + 1}.log"
        started_at, start = ctx.clock.now(), ctx.clock.monotonic()
        process = await self._sandbox.spawn(
            argv, user=agent_user(ctx), cwd=ctx.workdir, env=self._launch.env
        )
        running = _Running(process, log)
        self.leftovers.append(running)
        code = await running.to_end(stdin)
        took = ctx.clock.monotonic() - start
        seen = Observation(running.kept(), started_at, took, code, running.dropped)
        self._transcript.ends(StopReason.END_TURN)
        if code != 0:
            said, _ = bounded_text(running.kept()[-2000:], 2000)
            self._transcript.fails(f"{words[0]} exited {code}: {said.strip() or '(no output)'}")
        await self._transcript.acted(shlex.join(words), seen)

    def state(self) -> _LauncherState:
        left = tuple(running.pid for running in self.leftovers if running.talks)
        return _LauncherState(self._launch, left)

    async def aclose(self) -> None:
        for running in self.leftovers:
            await running.aclose()


@dataclass(frozen=True, slots=True)
class _Launch:
    argv: tuple[str, ...]
    env: Mapping[str, str]

    def call(self, text: str) -> tuple[list[str], bytes]:
        """The command line for a prompt, and what it gets on standard input."""
        if any(_PROMPT in word for word in self.argv):
            return [word.replace(_PROMPT, text) for word in self.argv], b""
        return list(self.argv), text.encode()


@dataclass(frozen=True, slots=True)
class _LauncherState:
    """Between two runs of the program there is nothing of it but what it left in the background.

    `leftovers`: process ids of runs whose pipes something in the background still holds.
    """

    launch: _Launch
    leftovers: tuple[int, ...]

    def fidelity(self, live: bool) -> Fidelity:
        return Fidelity.LIVE if live or not self.leftovers else Fidelity.RESUMED

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Launcher:
        launcher = _Launcher(sandbox, ctx, transcript, self.launch)
        if isinstance(sandbox, Snapshottable):
            for pid in self.leftovers:
                try:
                    process = sandbox.attach(pid)
                except LookupError:
                    continue  # What it left had ended by then, or no process came with the files.
                left = _Running(process, None)
                left.listen()
                launcher.leftovers.append(left)
        return launcher


class _Running:
    """One run of the program: feeds it, and drains what it says for as long as it lives."""

    def __init__(self, process: Process, log: Path | None) -> None:
        self._process, self._log = process, log
        self._logged = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._said = 0
        self._readers: list[asyncio.Task[None]] = []

    async def to_end(self, stdin: bytes) -> int:
        """Run to the exit code. When cancelled, everything the program started is killed."""
        feeder: asyncio.Task[None] | None = None
        try:
            if self._log is not None:
                await asyncio.to_thread(_start, self._log)
            self.listen()
            feeder = asyncio.create_task(self._feed(stdin))
            code = await self._process.wait()
            await asyncio.wait(self._readers, timeout=_DRAIN_SEC)
        except BaseException:
            await self.aclose()
            raise
        finally:
            if feeder is not None:
                feeder.cancel()
                await asyncio.wait({feeder})
        for reader in self._readers:
            if reader.done():
                reader.result()
        return code

    def listen(self) -> None:
        """Begin to drain what it says."""
        self._readers = [
            asyncio.create_task(self._drain(self._process.read)),
            asyncio.create_task(self._drain(self._process.read_err)),
        ]

    @property
    def pid(self) -> int:
        """Its process id inside."""
        return self._process.pid

    @property
    def talks(self) -> bool:
        """Whether something of it still holds its pipes."""
        return any(not reader.done() for reader in self._readers)

    async def aclose(self) -> None:
        """Kill what is left and stop draining. Idempotent."""
        await self._process.aclose()
        for reader in self._readers:
            reader.cancel()
        if self._readers:
            await asyncio.wait(self._readers)

    @property
    def dropped(self) -> int:
        """Bytes said that `kept` leaves out."""
        return self._said - len(self._head) - len(self._tail)

    def kept(self) -> bytes:
        """Head and tail of what it said."""
        return bytes(self._head + self._tail)

    async def _feed(self, stdin: bytes) -> None:
        try:
            for start in range(0, len(stdin), 65536):
                await self._process.write(stdin[start : start + 65536])
            await self._process.close_stdin()
        except (BrokenPipeError, SandboxLostError):
            return  # It need not read to the end; that the sandbox is gone, `wait` says.

    @staticmethod
    async def _next(read: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            return await read()
        except SandboxLostError:
            return b""  # `wait` raises it, if the program was still running.

    async def _drain(self, read: Callable[[], Awaitable[bytes]]) -> None:
        while data := await self._next(read):
            self._said += len(data)
            room = _KEPT_STEP // 2 - len(self._head)
            self._head += data[: max(0, room)]
            self._tail += data[max(0, room) :]
            del self._tail[: -_KEPT_STEP // 2]
            if self._log is not None and (left := _LOG_LIMIT - self._logged) > 0:
                self._logged += len(data[:left])
                await asyncio.to_thread(_append, self._log, data[:left])


def _words(command: str | Sequence[str]) -> tuple[str, ...]:
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigError(f"{command!r}: {error}", field="command") from None
    if not words:
        raise ConfigError("is empty; name a program", field="command")
    return tuple(words)


def _passed(given: str | Sequence[str]) -> dict[str, str]:
    listed = given.split(",") if isinstance(given, str) else given
    names = [name.strip() for name in listed if name.strip()]
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"{', '.join(missing)} is not set in the environment", field="pass_env")
    return {name: os.environ[name] for name in names}


def _start(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")


def _append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)
