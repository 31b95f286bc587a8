"""One command in a sandbox, as the engine follows it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import NamedTuple

from ramify.contracts.process import PtySize, Usage
from ramify.planes.sandbox.local.control import Control, Reply
from ramify.planes.sandbox.local.wire import Message
from ramify.planes.sandbox.processes import KILL_DEADLINE_SEC
from ramify.planes.sandbox.usage import read_usage


class Request(NamedTuple):
    """A command as the supervisor understands it."""

    argv: Sequence[str]
    user: str | None
    cwd: str
    env: dict[str, str]


def exec_message(
    request: Request, pty: PtySize | None = None, *, quiet: bool = False, stdin: str = "given"
) -> Message:
    """The request that starts a command. `stdin`: `given`, or `null` or `data` in a live sandbox.

    There the standard input must be the inside's own: a null device, or a copy of the data.
    """
    return {
        "op": "exec",
        "argv": list(request.argv),
        "user": request.user,
        "cwd": request.cwd,
        "env": request.env,
        "tty": [pty.rows, pty.cols] if pty else None,
        "quiet": quiet,
        "stdin": stdin,
    }


class RunningJob:
    """What the engine knows of one command, from the moment it asks for it."""

    def __init__(self, control: Control, message: Message, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        self._control = control
        self.started: asyncio.Future[Reply] = loop.create_future()
        self.ended: asyncio.Future[Reply] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.terminal = -1
        self.usage: Usage | None = None
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
        if reply.event == "gone":
            self.usage = read_usage(reply.text)
        if reply.event in ("failed", "gone", "lost"):
            self._control.forget(self.id)
            if not self.gone.done():
                self.gone.set_result(None)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
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
