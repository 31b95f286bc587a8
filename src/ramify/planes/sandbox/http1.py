"""Just enough HTTP/1.1 to forward one message without ambiguity.

Whatever two parsers could read in two ways (folded headers, bare line feeds, two lengths, a length
beside chunks) is refused, so that nothing can be smuggled past the proxy in a body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from ramify.contracts.streams import ByteReader

Send = Callable[[bytes], Awaitable[None]]
"""Passes bytes on, with backpressure."""

_CHUNK = 64 * 1024
_MAX_HEAD = 64 * 1024
_MAX_LINE = 8 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(r"[!-~]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_VERSIONS = ("HTTP/1.1", "HTTP/1.0")
_FRAMING = frozenset(("content-length", "transfer-encoding", "host"))
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    )
)


class BadMessage(Exception):  # noqa: N818  (names the message, answered with 400 or 502)
    """A message that is not HTTP/1.1, or that could be read in more than one way."""


class Source:
    """A ByteReader with the little look-ahead that parsing needs."""

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._held = b""

    async def read(self, n: int) -> bytes:
        """Up to `n` bytes; b"" at the end."""
        if self._held:
            data, self._held = self._held[:n], self._held[n:]
            return data
        return await self._reader.read(n)

    async def until(self, mark: bytes, limit: int) -> bytes:
        """The bytes before `mark`, which is consumed. Raises: BadMessage, EOFError."""
        while (at := self._held.find(mark)) < 0 and len(self._held) < limit + len(mark):
            more = await self._reader.read(_CHUNK)
            if not more:
                raise EOFError
            self._held += more
        if not 0 <= at <= limit:
            raise BadMessage("the header is too large")
        data, self._held = self._held[:at], self._held[at + len(mark) :]
        return data


@dataclass(frozen=True, slots=True)
class Head:
    """A start line in its three parts, and the headers as they came."""

    start: tuple[str, str, str]
    headers: tuple[tuple[str, str], ...]

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.start[1])

    def all(self, name: str) -> list[str]:
        """The values of a header; `name` in lower case."""
        return [value for key, value in self.headers if key.lower() == name]

    def forwarded(self, start_line: str, host: str | None = None) -> bytes:
        """The head to send on: without hop-by-hop headers, closing, and with `host` if given."""
        named = {
            name.strip().lower() for value in self.all("connection") for name in value.split(",")
        }
        dropped = _HOP_BY_HOP | (named - _FRAMING)
        if host is not None:
            dropped |= {"host"}
        lines = [start_line] + ([f"Host: {host}"] if host is not None else [])
        lines += [f"{key}: {value}" for key, value in self.headers if key.lower() not in dropped]
        return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1")


async def read_head(source: Source, *, response: bool) -> Head:
    """Read a head and the empty line after it. Raises: BadMessage, EOFError."""
    lines = (await source.until(b"\r\n\r\n", _MAX_HEAD)).decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if response and len(parts) == 2:
        parts.append("")
    if len(parts) != 3:
        raise BadMessage("malformed start line")
    first, second, third = parts
    if response:
        good = first in _VERSIONS and re.fullmatch("[1-9][0-9][0-9]", second)
        good = good and _VALUE.fullmatch(third) and second != "101"
    else:
        good = _TOKEN.fullmatch(first) and _TARGET.fullmatch(second) and third in _VERSIONS
    if not good:
        raise BadMessage("malformed start line")
    headers: list[tuple[str, str]] = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadMessage("malformed header")
        headers.append((name, value.strip(" \t")))
    return Head((first, second, third), tuple(headers))


@dataclass(frozen=True, slots=True)
class Body:
    """How a body is framed: `length` bytes, chunks, or (neither) until the end of the stream."""

    length: int | None = None
    chunked: bool = False

    @classmethod
    def of_request(cls, head: Head) -> Self:
        """Framing of a request's body. Raises: BadMessage."""
        framing = cls._stated(head)
        if framing.chunked and head.start[2] != "HTTP/1.1":
            raise BadMessage("chunks in HTTP/1.0")
        return framing if framing.chunked or framing.length is not None else cls(length=0)

    @classmethod
    def of_response(cls, head: Head, method: str) -> Self:
        """Framing of the body of a final response to `method`. Raises: BadMessage."""
        if method == "HEAD" or head.status in (204, 304):
            return cls(length=0)
        return cls._stated(head)

    @classmethod
    def _stated(cls, head: Head) -> Self:
        codings, lengths = head.all("transfer-encoding"), head.all("content-length")
        if codings:
            if lengths or [coding.lower() for coding in codings] != ["chunked"]:
                raise BadMessage("ambiguous or unknown transfer encoding")
            return cls(chunked=True)
        if lengths:
            if len(set(lengths)) != 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
                raise BadMessage("ambiguous content length")
            return cls(length=int(lengths[0]))
        return cls()

    async def copy(self, source: Source, send: Send) -> None:
        """Read the body and `send` it on, framing included. Raises: BadMessage, EOFError."""
        if self.chunked:
            await _copy_chunks(source, send)
        elif self.length is None:
            while data := await source.read(_CHUNK):
                await send(data)
        else:
            await _exactly(source, self.length, send)


async def _exactly(source: Source, left: int, send: Send) -> None:
    while left:
        data = await source.read(min(left, _CHUNK))
        if not data:
            raise EOFError
        left -= len(data)
        await send(data)


async def _copy_chunks(source: Source, send: Send) -> None:
    """Chunks framed anew: extensions and trailers are left out."""
    while True:
        size_text = (await source.until(b"\r\n", _MAX_LINE)).split(b";", 1)[0].rstrip(b" \t")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size_text):
            raise BadMessage("malformed chunk")
        size = int(size_text, 16)
        if size == 0:
            break
        await send(b"%x\r\n" % size)
        await _exactly(source, size, send)
        if await source.until(b"\r\n", 0):
            raise BadMessage("malformed chunk")
        await send(b"\r\n")
    total = 0
    while line := await source.until(b"\r\n", _MAX_LINE):
        total += len(line)
        if total > _MAX_HEAD:
            raise BadMessage("the trailer is too large")
    await send(b"0\r\n\r\n")
