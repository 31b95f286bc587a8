"""Honest fakes of the sandbox contract: a table of commands over an in-memory file system.

    provider = FakeProvider()
    provider.on("make test", b"3 passed")
    provider.on(re.compile("curl"), ExecResult(7, stderr=b"no network"))
    provider.on("write", lambda sandbox, call: sandbox.files.write("/app/out", "x"))
    sandbox = await provider.create(SandboxSpec(host_root=True))

A command that is not in the table exits 127, as a missing program does. What the contract
promises holds: a sandbox that is torn down or frozen refuses further work, `teardown` is
idempotent, children of one image never see each other's writes, uploads and downloads keep to
their limits. `FakeProvider.fail` injects failures; `calls` records what was asked.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify.contracts.errors import SandboxError, SandboxLostError, UnsupportedError
from ramify.contracts.process import (
    Process,
    PtySize,
)
from ramify.contracts.sandbox import (
    MIB,
    Capabilities,
    Endpoint,
    ExecResult,
    NetworkMode,
    ProbeReport,
    SandboxImage,
    SandboxSpec,
    TransferLimits,
    TransferReport,
)
from ramify.contracts.streams import ConnectionHandler, Listener
from ramify.testing.fakefiles import FakeFiles

FAKE_CAPABILITIES = Capabilities(
    isolation="container",
    lockdown=True,
    snapshot="freeze",
    network=frozenset(NetworkMode),
    limits=frozenset(),
    host_root=True,
    images=True,
    builds=False,
)


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One command as it was asked for. `command` is the shell line, or the joined argv."""

    command: str
    user: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    stdin: bytes | None = None
    timeout_sec: float | None = None
    kill_leftovers: bool = False
    pty: PtySize | None = None


Answer = ExecResult | bytes | None
Handler = Callable[["FakeSandbox", FakeCall], Answer | Awaitable[Answer]]
"""Acts on the sandbox and answers: a result, output of a success, or None (silent success)."""
Program = Callable[["FakeSandbox", FakeCall, "FakeProcess"], Awaitable[int]]
"""A spawned program: reads `process.stdin`, calls `process.say`, returns its exit code."""
Match = str | re.Pattern[str]


@dataclass(slots=True)
class FakeProcess:
    """A spawned program of the table. Implements `contracts.sandbox.Process`."""

    pid: int
    pty: bool = False
    stdin: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    stdout: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    stderr: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    sizes: list[PtySize] = field(default_factory=list[PtySize])
    killed: bool = False
    _task: asyncio.Task[int] | None = None
    _eof: bool = False

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._task is not None and not self._task.done()

    def start(self, program: Awaitable[int]) -> None:
        """Run `program` as the inside of this process."""

        async def live() -> int:
            try:
                return await program
            finally:
                self.stdout.feed_eof()
                self.stderr.feed_eof()

        self._task = asyncio.create_task(live())

    def say(self, data: bytes, *, err: bool = False) -> None:
        """The program's output."""
        (self.stderr if err and not self.pty else self.stdout).feed_data(data)

    async def write(self, data: bytes) -> None:
        """Write to its standard input."""
        if self._eof or self._task is None or self._task.done():
            raise BrokenPipeError("the program does not read any more")
        self.stdin.feed_data(data)

    async def close_stdin(self) -> None:
        """Send end of file."""
        if not self._eof:
            self._eof = True
            self.stdin.feed_eof()

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of its output."""
        return await self.stdout.read(max_bytes)

    async def read_err(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard error."""
        return b"" if self.pty else await self.stderr.read(max_bytes)

    async def resize(self, size: PtySize) -> None:
        """Note the new size."""
        self.sizes.append(size)

    async def signal(self, number: int) -> None:
        """End the program, as every signal that is not caught does."""
        if self._task is not None and not self._task.done():
            self._task.cancel(str(number))

    async def wait(self) -> int:
        """Its exit code; 137 after `aclose` or a signal ended it."""
        if self._task is None:
            raise SandboxLostError("the process never started")
        await asyncio.wait({self._task})
        return 137 if self._task.cancelled() else self._task.result()

    async def aclose(self) -> None:
        """End it. Idempotent."""
        if self._task is not None and not self._task.done():
            self.killed = True
            self._task.cancel()
            await asyncio.wait({self._task})


class FakeSandbox:
    """A sandbox of `FakeProvider`; `files` and `calls` are there to be looked at."""

    def __init__(self, provider: FakeProvider, number: int, spec: SandboxSpec, files: FakeFiles):
        self._provider, self._spec = provider, spec
        self._id = f"fake-{number}"
        self.files = files
        self.calls: list[FakeCall] = []
        self.processes: list[FakeProcess] = []
        self.frozen = self.gone = False

    @property
    def id(self) -> str:
        """Unique id."""
        return self._id

    @property
    def spec(self) -> SandboxSpec:
        """What it was made from."""
        return self._spec

    def capabilities(self) -> Capabilities:
        """The provider's."""
        return self._provider.capabilities()

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_sec: float | None = None,
        output_limit: int = 16 * MIB,
        kill_leftovers: bool = False,
    ) -> ExecResult:
        """Answer from the table. A handler that outlives `timeout_sec` is cancelled."""
        self._enter("exec")
        line = command if isinstance(command, str) else shlex.join(command)
        call = FakeCall(line, user, cwd, dict(env or {}), stdin, timeout_sec, kill_leftovers)
        self.calls.append(call)
        handler = self._provider.handler(line)
        if handler is None:
            return ExecResult(127, stderr=f"fake: {line}: not in the table\n".encode())
        scope = asyncio.timeout(timeout_sec)
        try:
            async with scope:
                result = await _answered(handler(self, call))
        except TimeoutError:
            if not scope.expired():
                raise
            return ExecResult(124, timed_out=True, duration_sec=timeout_sec or 0.0)
        self._enter()
        return _cut(result, output_limit)

    async def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        pty: PtySize | None = None,
    ) -> Process:
        """Start a program of the table."""
        self._enter("spawn")
        line = command if isinstance(command, str) else shlex.join(command)
        call = FakeCall(line, user, cwd, dict(env or {}), pty=pty)
        self.calls.append(call)
        program = self._provider.program(line)
        if program is None:
            raise SandboxError(f"fake: {line}: not in the table")
        process = FakeProcess(pid=len(self.processes) + 2, pty=pty is not None)
        self.processes.append(process)
        process.start(program(self, call, process))
        return process

    async def upload(
        self,
        local: Path,
        remote: str,
        *,
        owner: str | None = None,
        mode: int | None = None,
        clear: bool = False,
    ) -> None:
        """Copy into `files`."""
        self._enter("upload")
        self.files.take(local, remote, owner=owner, mode=mode, clear=clear)

    async def download(
        self, remote: str, local: Path, *, limits: TransferLimits | None = None
    ) -> TransferReport:
        """Copy out of `files`."""
        self._enter("download")
        return self.files.give(remote, local, limits or TransferLimits())

    async def expose_port(self, port: int) -> Endpoint:
        """Raises UnsupportedError: nothing listens inside a fake."""
        raise UnsupportedError("a fake sandbox has no ports; use a real one to test networking")

    async def serve_in(self, port: int, handler: ConnectionHandler) -> Listener:
        """Raises UnsupportedError: nothing connects inside a fake."""
        raise UnsupportedError("a fake sandbox has no ports; use a real one to test networking")

    async def freeze(self) -> SandboxImage:
        """Turn `files` into an image; the sandbox is spent."""
        self._enter("freeze")
        for process in self.processes:
            await process.aclose()
        self.frozen = True
        return self._provider.keep(self)

    async def checkpoint(self) -> SandboxImage:
        """Turn `files` into a live image; the sandbox is spent.

        Raises: UnsupportedError where a program runs: a coroutine cannot be copied.
        """
        self._enter("checkpoint")
        for process in self.processes:
            if process.running:
                raise UnsupportedError(f"fake: the program {process.pid} cannot be captured")
        self.frozen = True
        return self._provider.keep(self, live=True)

    def attach(self, pid: int) -> Process:
        """Raises LookupError: no program was captured."""
        raise LookupError(f"fake: no process {pid} was captured")

    async def teardown(self) -> None:
        """End it, its programs included. Idempotent."""
        for process in self.processes:
            await process.aclose()
        self.gone = True
        self._provider.alive.pop(self.id, None)

    def _enter(self, method: str | None = None) -> None:
        if self.gone or self.frozen:
            raise SandboxLostError(f"{self.id} is {'gone' if self.gone else 'frozen'}")
        if method is not None:
            self._provider.maybe_fail(method)


class FakeProvider:
    """Makes FakeSandboxes. Implements `contracts.sandbox.SandboxProvider`.

    Attributes:
        pristine: files of the pristine image; each sandbox starts with a copy.
        alive: sandboxes that were not torn down, by id.
        made: every sandbox ever made, in order.
        images: frozen images that were not discarded, by id.
    """

    name = "fake"

    def __init__(self, capabilities: Capabilities = FAKE_CAPABILITIES) -> None:
        self._capabilities = capabilities
        self._commands: list[tuple[Match, Handler]] = []
        self._programs: list[tuple[Match, Program]] = []
        self._failures: dict[str, list[Exception]] = {}
        self._numbers = itertools.count(1)
        self.pristine = FakeFiles()
        self.alive: dict[str, FakeSandbox] = {}
        self.made: list[FakeSandbox] = []
        self.images: dict[str, FakeFiles] = {}

    def on(self, match: Match, answer: Answer | Handler) -> None:
        """Answer commands that equal a string, or in which a pattern is found. Newest first."""
        self._commands.insert(0, (match, answer if callable(answer) else lambda _s, _c: answer))

    def on_spawn(self, match: Match, program: Program) -> None:
        """Run `program` for spawned commands that match. Newest first."""
        self._programs.insert(0, (match, program))

    def fail(self, method: str, error: Exception, times: int = 1) -> None:
        """Let the next `times` calls of a method (`exec`, `create`, `upload`, ...) raise."""
        self._failures.setdefault(method, []).extend([error] * times)

    def handler(self, line: str) -> Handler | None:
        """What answers a command."""
        return next((answer for match, answer in self._commands if _fits(match, line)), None)

    def program(self, line: str) -> Program | None:
        """What runs for a spawned command."""
        return next((program for match, program in self._programs if _fits(match, line)), None)

    def maybe_fail(self, method: str) -> None:
        """Raise the next injected failure of a method."""
        if queue := self._failures.get(method):
            raise queue.pop(0)

    def keep(self, sandbox: FakeSandbox, *, live: bool = False) -> SandboxImage:
        """Keep a sandbox's files as a frozen image."""
        image = SandboxImage(
            f"{sandbox.id}-frozen", self.name, sandbox.id, "pristine", pristine=False, live=live
        )
        self.images[image.id] = sandbox.files.copy()
        return image

    async def probe(self) -> ProbeReport:
        """It always works."""
        return ProbeReport(True, "memory", "nothing is real")

    def capabilities(self) -> Capabilities:
        """What it was made with."""
        return self._capabilities

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The pristine image."""
        self.maybe_fail("prepare")
        return SandboxImage("pristine", self.name, "pristine", workdir=spec.workdir)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> FakeSandbox:
        """A sandbox with a copy of the image's files. Raises SandboxError for an unknown image."""
        self.maybe_fail("create")
        if spec.lockdown and not self._capabilities.lockdown:
            raise UnsupportedError("this fake has no lockdown")
        if spec.live and self._capabilities.snapshot != "live":
            raise UnsupportedError("this fake takes no live checkpoints")
        offered = self._capabilities.mounts
        if {mount.mode for mount in spec.mounts} - offered or (spec.read_only and not offered):
            raise UnsupportedError("this fake has no such mounts, or no read-only root")
        files = self.pristine if image is None or image.pristine else self.images.get(image.id)
        if files is None or image and image.provider != self.name:
            raise SandboxError(f"no such image: {image.id if image else None}")
        sandbox = FakeSandbox(self, next(self._numbers), spec, files.copy())
        self.alive[sandbox.id] = sandbox
        self.made.append(sandbox)
        return sandbox

    async def discard(self, image: SandboxImage) -> None:
        """Forget a frozen image. Idempotent."""
        self.maybe_fail("discard")
        self.images.pop(image.id, None)

    async def sweep(self) -> int:
        """Nothing of a fake outlives its process."""
        return 0

    async def aclose(self) -> None:
        """Tear everything down. Idempotent."""
        for sandbox in list(self.alive.values()):
            await sandbox.teardown()


async def _answered(answer: Answer | Awaitable[Answer]) -> ExecResult:
    result = await answer if inspect.isawaitable(answer) else answer
    if isinstance(result, ExecResult):
        return result
    return ExecResult(0, stdout=result or b"")


def _cut(result: ExecResult, limit: int) -> ExecResult:
    """Keep head and tail of each stream, as the contract says."""

    def cut(data: bytes) -> tuple[bytes, int]:
        if len(data) <= limit:
            return data, 0
        head = limit // 2
        return data[:head] + data[len(data) - (limit - head) :], len(data) - limit

    out, out_dropped = cut(result.stdout)
    err, err_dropped = cut(result.stderr)
    return msgspec.structs.replace(
        result,
        stdout=out,
        stderr=err,
        stdout_dropped=result.stdout_dropped + out_dropped,
        stderr_dropped=result.stderr_dropped + err_dropped,
    )


def _fits(match: Match, line: str) -> bool:
    return match == line if isinstance(match, str) else match.search(line) is not None
