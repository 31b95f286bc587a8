"""Redis's protocol (RESP 2), as far as this world needs it."""

from __future__ import annotations

import socket
from typing import Any, cast

from .patience import patiently


class RedisError(Exception):
    """The server refused a command."""


class RedisConnection:
    """One connection to a Redis server, made anew where the server went away between commands."""

    def __init__(self, host: str, port: int, password: str, timeout: float = 30.0) -> None:
        self._where = (host, port)
        self._password = password
        self._timeout = timeout
        self._connect()

    def call(self, *words: str | bytes | int) -> Any:
        """Send one command; bytes, int, None or a list of them comes back. Raises RedisError."""
        return self.pipeline([words])[0]

    def pipeline(self, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send commands at once and return their answers. Raises RedisError for the first refusal.

        Commands are sent again on a new connection only where nothing was answered.
        """
        data = b"".join(_command(words) for words in commands)
        try:
            answers = self._exchange(data, len(commands), fresh=False)
        except ConnectionError:
            self._connect()
            answers = self._exchange(data, len(commands), fresh=True)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def _connect(self) -> None:
        self._socket = patiently(lambda: socket.create_connection(self._where, self._timeout))
        self._stream = self._socket.makefile("rb")
        if self._password:
            [answer] = self._exchange(_command(("AUTH", self._password)), 1, fresh=True)
            if isinstance(answer, RedisError):
                raise answer

    def _exchange(self, data: bytes, count: int, *, fresh: bool) -> list[Any]:
        self._socket.sendall(data)
        answers: list[Any] = []
        for number in range(count):
            try:
                answers.append(self._read())
            except ConnectionError as error:
                if number or fresh:
                    raise RedisError(f"the server went away in the middle: {error}") from error
                raise
        return answers

    def _read(self) -> Any:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the Redis server hung up")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                return RedisError(rest.decode(errors="replace"))
            case b":":
                return int(rest)
            case b"$":
                return self._bulk(int(rest))
            case b"*":
                return None if rest == b"-1" else [self._read() for _ in range(int(rest))]
            case _:
                raise RedisError(f"not a Redis server: {line[:40]!r}")

    def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        body = self._stream.read(size + 2)
        if len(body) < size + 2:
            raise ConnectionError("the Redis server hung up")
        return body[:-2]


def _command(words: tuple[str | bytes | int, ...]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def pairs(flat: Any) -> dict[bytes, bytes]:
    """What HGETALL gives, as a dictionary."""
    items = cast("list[bytes]", flat)
    return dict(zip(items[::2], items[1::2], strict=True))
