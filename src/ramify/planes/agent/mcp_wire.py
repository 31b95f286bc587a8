"""The wire of the Model Context Protocol: JSON-RPC 2.0 messages, and what carries them.

A server is part of the task, but the agent may have changed it: whatever it sends is bounded and
checked. Nothing is read from a server while no request waits, so that between two steps all of a
connection that matters is in a LinkState and in what stands unread inside.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol, cast

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox

MAX_MESSAGE = 8 * 1024 * 1024
"""Bytes of one message of a server."""

JSON = dict[str, Any]


class McpError(Exception):
    """A server cannot be reached, or does not keep to the protocol; says how."""


class SessionGoneError(McpError):
    """The session is over: another has to be opened.

    `undone` says that the request, for all that can be known, was not worked on.
    """

    def __init__(self, why: str, undone: bool) -> None:
        super().__init__(why, undone)
        self.why, self.undone = why, undone

    def __str__(self) -> str:
        return self.why


class Incoming(msgspec.Struct, frozen=True):
    """A message of a server: an answer (`result` or `error`), a request, or a notification."""

    id: Any = None
    method: str | None = None
    result: Any = None
    error: Any = None

    def answers(self, number: int) -> bool:
        """Whether it is the answer to the request of that number."""
        return self.method is None and type(self.id) is int and self.id == number


class Link(Protocol):
    """Carries messages to one server and back."""

    def ask(self, message: bytes) -> AsyncGenerator[bytes]:
        """Send a request; yields what the server sends, until it is closed.

        Raises: McpError, SandboxLostError.
        """
        ...

    async def tell(self, message: bytes) -> None:
        """Send what nobody answers. Raises: McpError, SandboxLostError."""
        ...

    def agreed(self, version: str | None) -> None:
        """The version of the protocol is settled; None: a session is about to be opened."""
        ...

    def state(self) -> LinkState:
        """Where it stands, as a value."""
        ...

    async def aclose(self) -> None:
        """Leave the server, and end it if it was started for this link. Idempotent."""
        ...


class LinkState(Protocol):
    """A Link as a value."""

    @property
    def lasting(self) -> bool:
        """Whether it goes on where the server's processes do."""
        ...

    async def restore(self, sandbox: Sandbox, ctx: Context) -> Link | None:
        """The same link in a copy of the sandbox; None where it has to be opened again."""
        ...


def request(number: int, method: str, params: JSON) -> bytes:
    """A request as it is sent."""
    return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def notification(method: str, params: JSON | None = None) -> bytes:
    """A notification as it is sent."""
    message: JSON = {"jsonrpc": "2.0", "method": method}
    return msgspec.json.encode({**message, "params": params} if params else message)


def answer(number: object, result: JSON | None) -> bytes:
    """The answer to a request of the server; None: there is no such method here."""
    body: JSON = {"jsonrpc": "2.0", "id": number}
    if result is None:
        body["error"] = {"code": -32601, "message": "Method not found"}
    else:
        body["result"] = result
    return msgspec.json.encode(body)


def incoming(data: bytes) -> list[Incoming]:
    """The messages in what a server sent: one, or (in older versions) a list; none if garbage."""
    try:
        found: Any = msgspec.json.decode(data)
        messages = cast("list[Any]", found) if isinstance(found, list) else [found]
        return [msgspec.convert(message, Incoming) for message in messages]
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return []  # Some servers print to where they should speak: counted by who listens.


def as_object(value: Any) -> JSON:
    """A JSON value as an object; empty where it is none."""
    return cast("JSON", value) if isinstance(value, dict) else {}
