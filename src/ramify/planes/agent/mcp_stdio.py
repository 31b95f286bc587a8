"""An MCP server that is a process in the sandbox, spoken to over its standard streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ramify.contracts.context import Context
from ramify.contracts.errors import SandboxLostError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import McpServer
from ramify.planes.agent.mcp_wire import MAX_MESSAGE, McpError
from ramify.planes.agent.session import agent_user

_LAST_WORDS = 2000
_LEAVE_SEC = 1.0


async def open_stdio(server: McpServer, sandbox: Sandbox, ctx: Context) -> StdioLink:
    """Start the server as the agent's user, in its work directory. Raises SandboxError."""
    assert server.command is not None
    argv = [server.command, *server.args]
    return StdioLink(await sandbox.spawn(argv, user=agent_user(ctx), cwd=ctx.workdir))


class StdioLink:
    """Messages as lines. Implements `mcp_wire.Link`."""

    def __init__(self, process: Process, unread: bytes = b"") -> None:
        self._process = process
        self._unread = bytearray(unread)
        self._words = bytearray()
        self._broken: str | None = None
        self._drain = asyncio.create_task(self._listen())

    async def ask(self, message: bytes) -> AsyncGenerator[bytes]:
        """Send a request; yields the lines that come."""
        if self._broken is not None:
            raise McpError(self._broken)
        # A server that is busy talking may read only once it is listened to.
        sender = asyncio.create_task(self._process.write(message + b"\n"))
        try:
            while True:
                yield await self._line(sender)
        finally:
            if not sender.done():
                self._broken = "it did not read the whole of an earlier request"
                sender.cancel()
            await asyncio.wait({sender})
            if not sender.cancelled():
                sender.exception()  # if it failed, the server has ended, and reading says so

    async def _line(self, sender: asyncio.Task[None]) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            if len(self._unread) > MAX_MESSAGE:
                self._broken = f"it sent a message of more than {MAX_MESSAGE} bytes"
                raise McpError(self._broken)
            data = await self._process.read()
            if not data:
                raise McpError(await self._ended())
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    async def _ended(self) -> str:
        """Why there is nothing more to read. Raises SandboxLostError."""
        try:
            async with asyncio.timeout(_LEAVE_SEC):
                code = await self._process.wait()
                await asyncio.wait({self._drain})
            how = f"it exited {code}"
        except TimeoutError:
            how = "it closed its output"
        said = self._words.decode(errors="replace").strip()
        self._broken = f"{how}: {said[-500:]}" if said else how
        return self._broken

    async def _listen(self) -> None:
        """Drain standard error, so that the server never waits for it; keep its end."""
        try:
            while data := await self._process.read_err():
                self._words += data
                del self._words[:-_LAST_WORDS]
        except SandboxLostError:
            return  # Whoever asks next is told.

    async def tell(self, message: bytes) -> None:
        """Send what nobody answers."""
        if self._broken is not None:
            raise McpError(self._broken)
        try:
            await self._process.write(message + b"\n")
        except BrokenPipeError:
            raise McpError(await self._ended()) from None
        except asyncio.CancelledError:
            self._broken = "it did not read the whole of an earlier message"
            raise

    def agreed(self, version: str | None) -> None:
        """Nothing depends on it."""

    def state(self) -> StdioState:
        """Its process and what was read and not used."""
        return StdioState(self._process.pid, bytes(self._unread), self._broken)

    def breaks(self, why: str | None) -> None:
        """Let every further message fail, as it did before."""
        self._broken = why

    async def aclose(self) -> None:
        """Let the server end by the end of its input, else kill it. Idempotent."""
        try:
            async with asyncio.timeout(_LEAVE_SEC):
                await self._process.close_stdin()
                await self._process.wait()
        except (TimeoutError, BrokenPipeError, SandboxLostError):
            pass  # It is killed below, if anything of it is left.
        self._drain.cancel()
        await asyncio.wait({self._drain})
        await self._process.aclose()


@dataclass(frozen=True, slots=True)
class StdioState:
    """A StdioLink as a value. Implements `mcp_wire.LinkState`."""

    pid: int
    unread: bytes
    broken: str | None

    @property
    def lasting(self) -> bool:
        """The process goes on, with its memory."""
        return True

    async def restore(self, sandbox: Sandbox, ctx: Context) -> StdioLink | None:
        """Attach to the process, if it came along."""
        if not isinstance(sandbox, Snapshottable):
            return None
        try:
            process = sandbox.attach(self.pid)
        except LookupError:
            return None
        link = StdioLink(process, self.unread)
        link.breaks(self.broken)
        return link
