"""What every service does besides its own work: users, clock, action log, health and state."""

from __future__ import annotations

import hmac
import json
import re
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from .database import DatabaseGoneError
from .web import ApiError, Reply, Request

DOMAIN = "north.example"
_LOGGED_BODY = 2000
_HOLD_SEC = 10.0


class Clock:
    """Time as the office has it: real, or a start that moves one second with every change."""

    def __init__(self, start: str) -> None:
        self._start = None if start == "real" else datetime.fromisoformat(start)
        self.ticks = 0
        """Changes so far."""

    def now(self) -> str:
        """The moment, in UTC."""
        at = self._start + timedelta(seconds=self.ticks) if self._start else datetime.now(UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Route:
    """One entry of a service's table; `{name}` in the path is an argument, digits if it is `id`."""

    method: str
    path: str
    action: str
    handler: Callable[[Request], Reply]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The path as a regular expression."""
        number = re.sub(r"\{(\w*id)\}", r"(?P<\1>[0-9]{1,9})", self.path)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", number))


@dataclass(frozen=True)
class Store:
    """A service's database as its desk sees it; the number of changes is kept in it too."""

    transaction: Callable[[], AbstractContextManager[object]]
    recall: Callable[[], int]
    remember: Callable[[int], None]


class Desk:
    """Serves the routes of one service: one request at a time, each a transaction.

    A change, its line in the action log and its commit happen before anyone sees the answer. The
    log lives in this process alone; `/_log` reads it. A POST to `/_hold` gives this state of the
    process, and requests wait from then on, so that none is lost while the service is stopped and
    its files are captured; `/_state` gives the same and goes on, as does the end of ten seconds.
    A POST of it to `/_state` puts it back, beside a database with as many changes only. A POST to
    `/_note` is a line in the log and nothing else.
    """

    def __init__(
        self,
        name: str,
        routes: list[Route],
        store: Store,
        clock: Clock,
        people: dict[str, str],
        lock: threading.Lock,
        about: dict[str, str],
    ) -> None:
        """`lock` is held while a request is served; `about` is what `/_about` tells root."""
        self._name = name
        self._routes = [(route, route.pattern) for route in routes]
        self._store = store
        self._clock = clock
        self._people = people
        self._lock = lock
        self._about = about
        self._log: list[dict[str, Any]] = []
        self._free = threading.Condition(lock)
        self._held_until = 0.0
        with lock:
            clock.ticks = self._recall()

    def who(self, headers: dict[str, str], root: bool) -> str:
        """The acting user: by token, or whom root says; "" for nobody."""
        acting = headers.get("x-act-as", "")
        if root and acting:
            return acting
        token = headers.get("authorization", "").removeprefix("Bearer ")
        users = [u for u, key in self._people.items() if key and _same(key, token)]
        return users[0] if users else ""

    def answer(self, request: Request) -> Reply:
        """Serve one request. Raises ApiError."""
        if request.path == "/health":
            return self._health(request)
        if request.path.startswith("/_"):
            return self._inside(request)
        if not request.user:
            raise ApiError(401, "unauthorized", "send `Authorization: Bearer TOKEN`")
        route, args = self._find(request)
        request = replace(request, args=args)
        changes = request.method != "GET"
        with self._lock:
            while (left := self._held_until - time.monotonic()) > 0:
                self._free.wait(left)
            begun = self._clock.ticks
            try:
                reply = self._transact(route, request, begun + changes)
            except Exception as error:
                status = error.status if isinstance(error, ApiError) else 500
                self._note(route.action, request, status, "")
                self._clock.ticks = begun
                if isinstance(error, ApiError):
                    raise
                traceback.print_exc()
                raise ApiError(500, "internal", f"{type(error).__name__}; see the log") from error
            self._note(route.action, request, reply.status, reply.target)
        return reply

    def _recall(self) -> int:
        """How many changes the database knows of."""
        while True:
            try:
                with self._store.transaction():
                    return self._store.recall()
            except DatabaseGoneError:
                continue  # as in `_transact`

    def _transact(self, route: Route, request: Request, ticks: int) -> Reply:
        """Once; or again, where the database was restarted in between."""
        self._clock.ticks = ticks
        while True:
            try:
                with self._store.transaction():
                    reply = route.handler(request)
                    if request.method != "GET":
                        self._store.remember(ticks)
                return reply
            except DatabaseGoneError:
                continue  # it is there again: connecting waits for it, or gives up with OSError

    def _find(self, request: Request) -> tuple[Route, dict[str, str]]:
        found = [(route, match) for route, pattern in self._routes
                 if (match := pattern.fullmatch(request.path))]  # fmt: skip
        for route, match in found:
            if route.method == request.method:
                return route, match.groupdict()
        if found:
            allowed = sorted({route.method for route, _ in found})
            raise ApiError(405, "method_not_allowed", f"use {', '.join(allowed)}", allow=allowed)
        raise ApiError(404, "no_such_route", f"nothing at {request.path}")

    def _note(self, action: str, request: Request, status: int, target: str) -> None:
        text = ""
        if request.headers.get("content-type", "").startswith("application/json"):
            text = request.raw[:_LOGGED_BODY].decode(errors="replace")
        query = "&".join(f"{key}={value}" for key, value in request.query)
        entry = {"seq": len(self._log) + 1, "at": self._clock.now(), "user": request.user}
        entry |= {"action": action, "method": request.method, "path": request.path}
        entry |= {"query": query, "body": text, "status": status, "target": target}
        self._log.append(entry)

    def _health(self, request: Request) -> Reply:
        nonce = request.asked("ramify_nonce") or request.headers.get("x-ramify-nonce", "")
        return Reply({"status": "ok", "service": self._name, "nonce": nonce[:200]})

    def _inside(self, request: Request) -> Reply:
        """The endpoints for the machine's root: verifiers and hooks."""
        if not request.root:
            raise ApiError(403, "forbidden", "only for root of this machine")
        with self._lock:
            match request.method, request.path:
                case "GET", "/_log":
                    after = request.number("after", 0, 0, 999_999_999)
                    return Reply({"service": self._name, "entries": self._log[after:]})
                case "GET", "/_about":
                    return Reply(self._about)
                case "GET", "/_state":
                    self._hold(0.0)
                    return Reply(self._state())
                case "POST", "/_state":
                    self._restore(request.raw)
                    self._hold(0.0)
                    return Reply({"restored": len(self._log)})
                case "POST", "/_note":
                    self._note("desk.note", request, 200, "")
                    return Reply({"entries": len(self._log)})
                case "POST", "/_hold":
                    self._hold(_HOLD_SEC)
                    return Reply(self._state())
                case _:
                    raise ApiError(404, "no_such_route", f"nothing at {request.path}")

    def _hold(self, seconds: float) -> None:
        self._held_until = time.monotonic() + seconds
        self._free.notify_all()

    def _state(self) -> dict[str, Any]:
        return {"service": self._name, "ticks": self._clock.ticks, "log": self._log}

    def _restore(self, raw: bytes) -> None:
        try:
            state: Any = json.loads(raw)
            name, ticks, log = state["service"], state["ticks"], state["log"]
            seqs = [entry["seq"] for entry in log]
        except (ValueError, KeyError, TypeError):
            raise ApiError(422, "bad_state", "not what GET /_state gave") from None
        if name != self._name or not isinstance(ticks, int) or seqs != [*range(1, len(seqs) + 1)]:
            raise ApiError(422, "bad_state", f"not a state of {self._name}")
        known = self._recall()
        if ticks != known:
            message = f"it was written down after {ticks} changes, and the database has {known}"
            raise ApiError(409, "stale_state", message)
        self._clock.ticks = ticks
        self._log = cast("list[dict[str, Any]]", log)


def _same(key: str, token: str) -> bool:
    return hmac.compare_digest(key.encode(), token.encode(errors="replace"))
