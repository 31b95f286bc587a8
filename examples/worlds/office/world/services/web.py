"""JSON over HTTP on the standard library: requests, checks, pages, errors and the server."""

from __future__ import annotations

import base64
import binascii
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

_MAX_BODY = 10 * 1024 * 1024
_MAX_STATE = 1024 * 1024 * 1024
_ESTABLISHED = "01"


class ApiError(Exception):
    """A refusal that the client sees: HTTP status, a stable code and a sentence."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message, **details}}


@dataclass(frozen=True)
class Reply:
    """What a handler answers: JSON or bytes, or chunks that are sent as they come."""

    body: Any = None
    status: int = 200
    target: str = ""
    """What was acted on, for the action log."""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    chunks: Iterator[bytes] | None = None


@dataclass(frozen=True)
class Request:
    """A request whose sender is known."""

    method: str
    path: str
    query: list[tuple[str, str]]
    raw: bytes
    headers: dict[str, str]
    user: str
    """Address of the user who acts."""
    root: bool
    """Whether it comes from a process of this machine's root."""
    args: dict[str, str] = field(default_factory=dict[str, str])
    """What the route's pattern matched."""

    def asked(self, name: str, default: str = "") -> str:
        """The last value of a query parameter."""
        return next((value for key, value in reversed(self.query) if key == name), default)

    def asked_all(self, name: str) -> list[str]:
        """Every value of a query parameter."""
        return [value for key, value in self.query if key == name]

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A query parameter as an integer within bounds."""
        text = self.asked(name, str(default))
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ApiError(400, "bad_parameter", f"`{name}` must be from {low} to {high}")
        return int(text)

    def moment(self, name: str) -> str | None:
        """A query parameter as a UTC moment, where it is given."""
        text = self.asked(name)
        return moment(text, name) if text else None

    def fields(self) -> Fields:
        """The JSON body, to be taken apart."""
        if not self.headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "not_json", "send `Content-Type: application/json`")
        try:
            value: Any = json.loads(self.raw)
        except (ValueError, RecursionError):
            raise ApiError(400, "bad_json", "the body is not JSON") from None
        if not isinstance(value, dict):
            raise ApiError(422, "not_an_object", "the body must be an object")
        return Fields(cast("dict[str, Any]", value))


class Fields:
    """Takes the fields of a body one by one; `done` refuses what nobody took."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._left = dict(body)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def text(self, name: str, default: str | None = None, longest: int = 200) -> str:
        """A string without NUL or lone surrogates; required unless there is a default."""
        value = self._take(name, default)
        if not isinstance(value, str) or len(value) > longest or "\0" in value:
            raise _wrong(name, f"must be a string of at most {longest} characters")
        if default is None and not value.strip():
            raise _wrong(name, "must not be empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(name, "must be valid Unicode") from None
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise _wrong(name, "must be true or false")
        return value

    def number(self, name: str, low: int, high: int) -> int:
        """An integer within bounds."""
        value = self._take(name, None)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(name, f"must be an integer from {low} to {high}")
        return value

    def texts(self, name: str, default: list[str] | None = None, most: int = 50) -> list[str]:
        """A list of different strings, in order."""
        value = self._take(name, default)
        if not isinstance(value, list):
            raise _wrong(name, "must be a list of strings")
        items = cast("list[Any]", value)
        if len(items) > most or (default is None and not items):
            raise _wrong(name, f"must hold 1 to {most} strings")
        return list(dict.fromkeys(Fields({name: item}).text(name) for item in items))

    def moment(self, name: str) -> str:
        """A moment, in UTC."""
        return moment(self.text(name), name)

    def done(self) -> None:
        """Refuse unknown fields."""
        if self._left:
            names = ", ".join(sorted(self._left))
            raise ApiError(422, "unknown_field", f"unknown: {names}", fields=sorted(self._left))

    def _take(self, name: str, default: Any) -> Any:
        if name not in self._left and default is None:
            raise ApiError(422, "missing_field", f"`{name}` is required", field=name)
        return self._left.pop(name, default)


def _wrong(name: str, what: str) -> ApiError:
    return ApiError(422, "bad_field", f"`{name}` {what}", field=name)


def moment(text: str, name: str) -> str:
    """An ISO 8601 moment with an offset, as `2026-03-02T09:00:00Z`."""
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is None:
            raise ValueError("no offset")
        return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        raise _wrong(name, "must be a moment such as 2026-03-02T09:00:00Z") from None


def page(request: Request, rows: Callable[[int, int], list[dict[str, Any]]]) -> dict[str, Any]:
    """One page: `rows(after, count)` gives rows in order, beginning behind the key `after`.

    A row's key is its `id`. The cursor is opaque to clients; 0 stands for the beginning.
    """
    limit = request.number("limit", 50, 1, 200)
    try:
        text = base64.urlsafe_b64decode(request.asked("cursor").encode()).decode("ascii")
        after = int(text.removeprefix("id:")) if text else 0
    except (binascii.Error, ValueError):
        raise ApiError(400, "bad_cursor", "give back `next_cursor` as it came") from None
    if not 0 <= after < 2**31:
        raise ApiError(400, "bad_cursor", "give back `next_cursor` as it came")
    found = rows(after, limit + 1)
    token = None
    if len(found) > limit:
        token = base64.urlsafe_b64encode(f"id:{found[limit - 1]['id']}".encode()).decode()
    return {"items": found[:limit], "next_cursor": token}


Answer = Callable[[Request], Reply]
"""Serves one request; raises ApiError."""
Who = Callable[[dict[str, str], bool], str]
"""Headers and whether the peer is root → the acting user, "" for nobody."""


def peer_is_root(connection: socket.socket) -> bool:
    """Whether the other end of a loopback connection belongs to root, as the kernel says.

    Asked once, when the connection is accepted: a peer that has hung up is reported as root's,
    hence only established sockets with an owner count; and a process that goes on from a
    checkpoint may hold its old connections under another owner.
    """
    peer, own = _kernel_name(connection.getpeername()), _kernel_name(connection.getsockname())
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            parts = line.split()
            if parts[1:4] == [peer, own, _ESTABLISHED]:
                return parts[7] == "0" and parts[9] != "0"
    return False


def _kernel_name(address: tuple[str, int]) -> str:
    packed = socket.inet_aton(address[0])[::-1].hex().upper()
    return f"{packed}:{address[1]:04X}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # the only one there is
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.root = peer_is_root(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """The action log says what happened; standard error is for failures."""

    def _serve(self) -> None:
        try:
            reply = self.server.answer(self._read())
        except ApiError as error:
            reply = Reply(error.body, error.status)
        try:
            self._send(reply)
        except ConnectionError:
            self.close_connection = True  # the client left; what was done is done

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # http.server's names

    def _read(self) -> Request:
        length = self.headers.get("Content-Length", "0")
        most = _MAX_STATE if self.root else _MAX_BODY
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise ApiError(411, "length_required", "send a Content-Length")
        if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > most:
            self.close_connection = True
            raise ApiError(413, "too_large", f"a body holds at most {most} bytes")
        raw = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        target = urlsplit(self.path)
        try:
            path = unquote(target.path, errors="strict")
            query = parse_qsl(target.query, keep_blank_values=True, max_num_fields=50)
        except ValueError:
            raise ApiError(400, "bad_target", "the path or the query is malformed") from None
        user = self.server.who(headers, self.root)
        return Request(self.command, path, query, raw, headers, user, self.root)

    def _send(self, reply: Reply) -> None:
        body = b""
        if isinstance(reply.body, bytes):
            body = reply.body
        elif reply.status != 204 and reply.chunks is None:
            body = json.dumps(reply.body, separators=(",", ":")).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
            self.send_header(name, value)
        if reply.chunks is None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in reply.chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    """One thread per connection, on loopback only; connections stay open between requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, answer: Answer, who: Who) -> None:
        self.answer = answer
        self.who = who
        super().__init__(("127.0.0.1", port), _Handler)
