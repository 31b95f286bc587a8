"""SQL databases behind one small face: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .patience import patiently
from .pgwire import PostgresConnection

Row = dict[str, Any]


class Database(Protocol):
    """A connection that stays open. Statements use `?` for parameters."""

    def query(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement and return its rows."""
        ...

    def alone(self) -> None:
        """Until the end of the transaction keep other services of this database waiting here."""
        ...

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit at the end, roll back on any exception."""
        ...


class SqliteDatabase:
    """One SQLite file, created where it is missing."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("PRAGMA busy_timeout=10000")

    def query(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement and return its rows."""
        return [dict(row) for row in self._connection.execute(sql, params).fetchall()]

    def alone(self) -> None:
        """A transaction that writes is alone by itself."""

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Begin at once, so that nobody else writes in between."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


class DatabaseGoneError(Exception):
    """The server went away before the transaction was committed: nothing has happened."""


class PostgresDatabase:
    """A PostgreSQL database; connects again after a restart of the server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = self._connect()

    def query(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement and return its rows. Raises DatabaseGoneError."""
        head, *rest = sql.split("?")
        numbered = "".join(f"${n}{part}" for n, part in enumerate(rest, 1))
        try:
            return self._connection.query(head + numbered, params)
        except ConnectionError as error:
            self._connection = self._connect()
            raise DatabaseGoneError(str(error)) from error

    def alone(self) -> None:
        """Two who make the same table at the same time would hit each other."""
        self.query("SELECT pg_advisory_xact_lock(1)")

    @contextmanager
    def transaction(self) -> Generator[None]:
        """As SQLite's. Raises DatabaseGoneError, and ConnectionError where it may be committed."""
        self.query("BEGIN")
        try:
            yield
        except DatabaseGoneError:
            raise  # with its connection the transaction is gone too
        except BaseException:
            self.query("ROLLBACK")
            raise
        self._connection.query("COMMIT")

    def _connect(self) -> PostgresConnection:
        return patiently(lambda: PostgresConnection(self._url))


def open_database(url: str) -> Database:
    """`sqlite:PATH` or `postgresql://user:password@host:port/database`."""
    kind, _, rest = url.partition(":")
    if kind == "sqlite":
        return SqliteDatabase(Path(rest))
    if kind == "postgresql":
        return PostgresDatabase(url)
    raise SystemExit(f"unknown database {url!r}; use sqlite: or postgresql:")


def next_id(db: Database, name: str) -> int:
    """The next number of a sequence kept in the table `counters`; numbers are never used twice."""
    rows = db.query("UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", name)
    return int(rows[0]["value"])


def change_counter(db: Database, service: str) -> tuple[Callable[[], int], Callable[[int], None]]:
    """Reads and writes how many changes a service has made, beside its data."""
    name = f"changes-{service}"

    def recall() -> int:
        rows = db.query("SELECT value FROM counters WHERE name = ?", name)
        return int(rows[0]["value"]) if rows else 0

    def remember(count: int) -> None:
        db.query(
            "INSERT INTO counters VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            *(name, count),
        )

    return recall, remember


COUNTERS = "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
