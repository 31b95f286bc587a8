"""The engine's line to one supervisor: requests, their replies, and descriptors both ways."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.planes.sandbox.local import wire


class Reply(NamedTuple):
    """What a supervisor says about a request. The receiver owns `fds`.

    `event` is one of started, terminal, failed, ended, gone, done, ready; or `lost`, said once
    to every open request when the supervisor is gone.
    """

    event: str
    value: int
    text: str
    fds: Sequence[int]


ReplyHandler = Callable[[Reply], None]


class Control:
    """One control socket. Not thread-safe; lives on the loop that made it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, ReplyHandler] = {}
        self._next = 1
        self._queue: deque[tuple[wire.Message, list[int]]] = deque()
        self._lost = False
        self.on_lost: Callable[[], None] | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def lost(self) -> bool:
        """True once the supervisor is gone."""
        return self._lost

    def request(self, handler: ReplyHandler, message: wire.Message, fds: Sequence[int] = ()) -> int:
        """Send a request; `handler` gets its replies until `forget`. Returns its id.

        Descriptors are copied by the call. Raises SandboxLostError.
        """
        if self._lost:
            raise SandboxLostError("the sandbox is gone")
        number = self._next
        self._next += 1
        self._handlers[number] = handler
        self._send({"id": number, **message}, fds)
        return number

    def expect_ready(self, handler: ReplyHandler) -> None:
        """Have `handler` told when the supervisor is ready (or lost)."""
        self._handlers[0] = handler

    def order(self, message: wire.Message) -> None:
        """Send something that has no reply; nothing happens once the supervisor is gone."""
        if not self._lost:
            self._send({"id": -1, **message}, ())

    def forget(self, number: int) -> None:
        """Take no more replies to a request."""
        self._handlers.pop(number, None)

    async def ask(self, message: wire.Message, fds: Sequence[int] = ()) -> Reply:
        """A request with one reply. Raises SandboxLostError; SandboxError if it failed."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def done(reply: Reply) -> None:
            if future.done():
                for fd in reply.fds:
                    os.close(fd)
            else:
                future.set_result(reply)

        number = self.request(done, message, fds)
        try:
            reply = await future
        finally:
            self.forget(number)
        if reply.event == "lost":
            raise SandboxLostError("the sandbox is gone")
        if reply.event == "failed":
            raise SandboxError(reply.text)
        return reply

    def close(self) -> None:
        """End the line. The supervisor sees it and ends the sandbox. Idempotent."""
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _message, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        handlers, self._handlers = list(self._handlers.values()), {}
        for handler in handlers:
            handler(Reply("lost", 0, "", ()))
        if self.on_lost is not None:
            self.on_lost()

    def _send(self, message: wire.Message, fds: Sequence[int]) -> None:
        if not self._queue:
            try:
                wire.send(self._sock, message, fds)
                return
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:  # it is gone; reading tells everybody
                return
        self._queue.append((message, [os.dup(fd) for fd in fds]))

    def _writable(self) -> None:
        while self._queue:
            message, fds = self._queue[0]
            try:
                wire.send(self._sock, message, fds)
            except BlockingIOError:
                return
            except OSError:  # it is gone; reading tells everybody
                break
            self._queue.popleft()
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        while not self._lost:
            try:
                received = wire.receive(self._sock)
            except BlockingIOError:
                return
            if received is None:
                self.close()
                return
            message, fds = received
            handler = self._handlers.get(message["id"])
            if handler is None:
                for fd in fds:
                    os.close(fd)
                continue
            handler(Reply(message["event"], message["value"], message["text"], fds))
