"""Where chat keeps its documents: SQL, or Redis. Both are one transaction per request."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from .database import Database, open_database
from .resp import RedisConnection, pairs

Document = dict[str, Any]
KINDS = ("channels", "posts", "meta")


class Documents(Protocol):
    """Documents by kind and number, in the order of their numbers."""

    def get(self, kind: str, number: int) -> Document | None:
        """One document; what the transaction has written so far counts."""
        ...

    def all(self, kind: str, after: int = 0) -> list[Document]:
        """The documents of a kind behind a number, in order; committed ones only."""
        ...

    def put(self, kind: str, number: int, document: Document) -> None:
        """Write a document at the end of the transaction."""
        ...

    def remove(self, kind: str, number: int) -> None:
        """Remove a document at the end of the transaction."""
        ...

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All that was written, or nothing on any exception."""
        ...


class SqlDocuments:
    """One table per kind: number and JSON."""

    def __init__(self, db: Database) -> None:
        self._db = db
        with db.transaction():
            for kind in KINDS:
                db.query(
                    f"CREATE TABLE IF NOT EXISTS {kind} (id INTEGER PRIMARY KEY,"
                    " document TEXT NOT NULL)"
                )

    def get(self, kind: str, number: int) -> Document | None:
        """One document."""
        rows = self._db.query(f"SELECT document FROM {kind} WHERE id = ?", number)
        return json.loads(rows[0]["document"]) if rows else None

    def all(self, kind: str, after: int = 0) -> list[Document]:
        """The documents of a kind behind a number, in order."""
        rows = self._db.query(f"SELECT document FROM {kind} WHERE id > ? ORDER BY id", after)
        return [json.loads(row["document"]) for row in rows]

    def put(self, kind: str, number: int, document: Document) -> None:
        """Write a document."""
        self._db.query(
            f"INSERT INTO {kind} VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET document = excluded.document",
            number, json.dumps(document, sort_keys=True),
        )  # fmt: skip

    def remove(self, kind: str, number: int) -> None:
        """Remove a document."""
        self._db.query(f"DELETE FROM {kind} WHERE id = ?", number)

    @contextmanager
    def transaction(self) -> Generator[None]:
        """The database's own."""
        with self._db.transaction():
            yield


class RedisDocuments:
    """One hash per kind: number → JSON. Writes are kept until the end, then sent as MULTI/EXEC."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis = connection
        self._pending: dict[tuple[str, int], Document | None] = {}

    def get(self, kind: str, number: int) -> Document | None:
        """One document."""
        if (kind, number) in self._pending:
            return self._pending[kind, number]
        found = self._redis.call("HGET", f"chat:{kind}", number)
        return None if found is None else json.loads(found)

    def all(self, kind: str, after: int = 0) -> list[Document]:
        """The documents of a kind behind a number, in order."""
        found = pairs(self._redis.call("HGETALL", f"chat:{kind}"))
        return [json.loads(found[key]) for key in sorted(found, key=int) if int(key) > after]

    def put(self, kind: str, number: int, document: Document) -> None:
        """Write a document."""
        self._pending[kind, number] = document

    def remove(self, kind: str, number: int) -> None:
        """Remove a document."""
        self._pending[kind, number] = None

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Nothing reaches the server before the end."""
        try:
            yield
            if self._pending:
                writes = [_write(kind, n, doc) for (kind, n), doc in self._pending.items()]
                self._redis.pipeline([("MULTI",), *writes, ("EXEC",)])
        finally:
            self._pending.clear()


def _write(kind: str, number: int, document: Document | None) -> tuple[str | bytes | int, ...]:
    if document is None:
        return ("HDEL", f"chat:{kind}", number)
    return ("HSET", f"chat:{kind}", number, json.dumps(document, sort_keys=True))


def open_documents(url: str) -> Documents:
    """`redis://:password@host:port`, or what `open_database` takes."""
    if not url.startswith("redis:"):
        return SqlDocuments(open_database(url))
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    return RedisDocuments(RedisConnection(host, port, parts.password or ""))
