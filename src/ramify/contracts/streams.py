"""Connections as planes hand them to each other: the two halves, and a listener of ours inside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class ByteReader(Protocol):
    """The reading half of a connection; `asyncio.StreamReader` has it."""

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes, or b"" at the end of the stream."""
        ...


class ByteWriter(Protocol):
    """The writing half of a connection; `asyncio.StreamWriter` has it."""

    def write(self, data: bytes) -> None:
        """Buffer `data`."""
        ...

    async def drain(self) -> None:
        """Wait until the buffer is small again. Raises ConnectionError when the peer is gone."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


ConnectionHandler = Callable[[ByteReader, ByteWriter], Awaitable[None]]


class Listener(Protocol):
    """A listener of ours inside a sandbox."""

    @property
    def port(self) -> int:
        """The TCP port on the sandbox's loopback."""
        ...

    async def aclose(self) -> None:
        """Stop listening and end open connections. Idempotent."""
        ...
