"""PostgreSQL's protocol, version 3, as far as this world needs it over TCP."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_INTEGERS = {20, 21, 23}
"""Type ids of int8, int2 and int4."""


class PostgresError(Exception):
    """The server refused a statement; `code` is its SQLSTATE."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class PostgresConnection:
    """One connection. Parameters and results travel as text; rows come as dictionaries.

    Raises ConnectionError when the server is gone: the connection is of no use any more.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        """`url` is `postgresql://user:password@host:port/database`. Raises OSError."""
        parts = urlsplit(url)
        user = parts.username or "postgres"
        self._password = parts.password or ""
        self._socket = socket.create_connection((parts.hostname, parts.port or 5432), timeout)
        self._stream = self._socket.makefile("rb")
        database = parts.path.strip("/") or user
        words = ("user", user, "database", database, "client_encoding", "UTF8", "")
        body = struct.pack("!i", 3 << 16) + b"".join(word.encode() + b"\0" for word in words)
        self._socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self._finish()

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run one statement with `$1`, `$2`, ... and return its rows. Raises PostgresError."""
        parse = _message(b"P", b"\0" + sql.encode() + b"\0" + struct.pack("!h", 0))
        values = b"".join(_value(param) for param in params)
        bound = struct.pack("!hh", 0, len(params)) + values + struct.pack("!h", 0)
        steps = parse + _message(b"B", b"\0\0" + bound) + _message(b"D", b"P\0")
        self._socket.sendall(steps + _message(b"E", b"\0" + struct.pack("!i", 0)) + _message(b"S"))
        return self._finish()

    def close(self) -> None:
        """Say good-bye and hang up."""
        try:
            self._socket.sendall(_message(b"X"))
        except OSError:
            return  # it hung up first
        finally:
            self._stream.close()
            self._socket.close()

    def _finish(self) -> list[dict[str, Any]]:
        """Read until the server is ready for more."""
        columns: list[tuple[str, int]] = []
        rows: list[dict[str, Any]] = []
        error: PostgresError | None = None
        while True:
            kind, body = self._receive()
            if kind == b"Z":
                if error is not None:
                    raise error
                return rows
            if kind == b"E":
                error = _error(body)
                if error.code.startswith(("57P", "28", "3D000")):  # shut down, or never let in
                    raise ConnectionError(str(error))
            elif kind == b"R":
                self._authenticate(struct.unpack("!i", body[:4])[0])
            elif kind == b"T":
                columns = _columns(body)
            elif kind == b"D":
                rows.append(_row(body, columns))

    def _authenticate(self, way: int) -> None:
        """The server says who may come in: anyone (0), or who knows a password (3)."""
        if way == 3:
            self._socket.sendall(_message(b"p", self._password.encode() + b"\0"))
        elif way != 0:
            raise ConnectionError("the server wants more than a password; set `password`")

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._stream.read(5)
        if len(head) < 5:
            raise ConnectionError("the database server hung up")
        size = struct.unpack("!i", head[1:])[0] - 4
        body = self._stream.read(size)
        if len(body) < size:
            raise ConnectionError("the database server hung up")
        return head[:1], body


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _value(param: Any) -> bytes:
    if param is None:
        return struct.pack("!i", -1)
    text = str(param).encode()
    return struct.pack("!i", len(text)) + text


def _error(body: bytes) -> PostgresError:
    parts = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return PostgresError(parts.get(b"C", "?"), parts.get(b"M", "unknown error"))


def _columns(body: bytes) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    at = 2
    for _ in range(struct.unpack("!h", body[:2])[0]):
        end = body.index(b"\0", at)
        found.append((body[at:end].decode(), struct.unpack("!i", body[end + 7 : end + 11])[0]))
        at = end + 19
    return found


def _row(body: bytes, columns: list[tuple[str, int]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    at = 2
    for name, kind in columns:
        size = struct.unpack("!i", body[at : at + 4])[0]
        at += 4
        if size < 0:
            row[name] = None
            continue
        text = body[at : at + size].decode()
        row[name] = int(text) if kind in _INTEGERS else text
        at += size
    return row
