"""Reads SQLite files that came out of a sandbox. Runs alone, as a process with bounds.

    python -I sqlite_reader.py digest|describe SECONDS FILE...

The files are hostile: a crash, an endless schema or a bomb costs this process only. Nothing that a
schema defines is evaluated: views, virtual tables and generated columns are not read (the tables
in which virtual tables keep their content are).
"""

from __future__ import annotations

import hashlib
import json
import resource
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

_MEMORY = 4 << 30
_LONGEST_VALUE = 1 << 30
_SHOWN = 200  # characters of a value, beyond which its digest stands
_ENTRIES = 100_000
_CHARACTERS = 32 << 20  # of all entries of a file
_ROWIDS = ("rowid", "_rowid_", "oid")


class _Text(bytes):
    """TEXT as stored: it need not be valid UTF-8."""


def _encode(value: object) -> bytes:
    """One value, so that no two different ones are alike."""
    if value is None:
        kind, data = b"n", b""
    elif isinstance(value, int):
        kind, data = b"i", str(value).encode()
    elif isinstance(value, float):
        kind, data = b"f", value.hex().encode()
    else:
        assert isinstance(value, bytes)
        kind, data = (b"t" if isinstance(value, _Text) else b"b"), value
    return kind + len(data).to_bytes(8, "big") + data


def _shown(value: object) -> object:
    """One value as JSON, for a person; long ones and what is not text by digest."""
    if not isinstance(value, bytes):
        return value
    known = f"sha256:{hashlib.sha256(value).hexdigest()[:32]}"
    if not isinstance(value, _Text):
        return {"bytes": len(value), "digest": known}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"text": value[:_SHOWN].decode(errors="replace"), "digest": known}
    if len(text) <= _SHOWN:
        return text
    return {"text": text[:_SHOWN], "characters": len(text), "digest": known}


def _name(text: str) -> str:
    return text if text.isidentifier() and text.isascii() else json.dumps(text)


def _ident(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _text(value: object) -> str:
    """A name of the schema, bytes that are not UTF-8 kept apart."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


class _Table:
    """A table that holds rows, and how each of them is named."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        columns = list(db.execute(f"PRAGMA table_xinfo({_ident(name)})"))
        kept = [row for row in columns if row[6] == 0]  # 1: hidden, 2 and 3: generated
        self.name = name
        self.columns = [_text(row[1]) for row in kept]
        keys = sorted((row[5], place) for place, row in enumerate(kept) if row[5])
        self.key = [place for _, place in keys]
        taken = {_text(row[1]).lower() for row in columns}
        self._rowid = next((alias for alias in _ROWIDS if alias not in taken), "NULL")
        self._db = db

    def rows(self) -> Iterator[tuple[object, tuple[object, ...]]]:
        """(rowid, values) of every row. NOT INDEXED: no order or collation has a say in it."""
        listed = ", ".join(map(_ident, self.columns)) or "NULL"
        place = f"FROM {_ident(self.name)} NOT INDEXED"
        try:
            found = self._db.execute(f"SELECT {self._rowid}, {listed} {place}")
        except sqlite3.OperationalError:  # WITHOUT ROWID
            found = self._db.execute(f"SELECT NULL, {listed} {place}")
        for rowid, *values in found:
            yield rowid, tuple(values)


def _open(path: Path) -> sqlite3.Connection:
    """A connection that knows every collation the schema names.

    Those of the service are unknown here. A scan compares nothing, so any will do; but it has to
    be there before the schema is read, or tables without rowid cannot be read at all.
    """
    db = _connect(path)
    named: set[str] = set()
    for kind, table, _, _ in _schema(db):
        if kind == "table":
            for index in list(db.execute(f"PRAGMA index_list({_ident(table)})")):
                rows = db.execute(f"PRAGMA index_xinfo({_ident(_text(index[1]))})")
                named.update(_text(row[4]) for row in rows if row[4] is not None)
    db.close()
    db = _connect(path)
    for name in named - {"BINARY", "NOCASE", "RTRIM"}:
        db.create_collation(name, lambda one, other: (one > other) - (one < other))
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
    db.text_factory = _Text
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON"):
        db.execute(f"PRAGMA {pragma}")
    return db


def _schema(db: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    found = db.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master")
    return sorted((_text(a), _text(b), _text(c), _text(d)) for a, b, c, d in found)


def _tables(db: sqlite3.Connection) -> Iterator[_Table]:
    for kind, name, _, sql in _schema(db):
        if kind == "table" and not sql.lstrip().upper().startswith("CREATE VIRTUAL"):
            yield _Table(db, name)


def _digest(path: Path) -> str:
    """Schema, settings of the file and rows, whatever their place in the file."""
    db = _open(path)
    total = hashlib.sha256()
    for pragma in ("user_version", "application_id", "encoding"):
        total.update(_encode(db.execute(f"PRAGMA {pragma}").fetchone()[0]))
    for row in _schema(db):
        total.update(b"".join(_encode(_Text(x.encode("utf-8", "surrogateescape"))) for x in row))
    for table in _tables(db):
        hidden = not table.key  # then the rowid is the only name that a row has
        rows = sorted(
            hashlib.sha256(b"".join(map(_encode, (rowid if hidden else None, *values)))).digest()
            for rowid, values in table.rows()
        )
        total.update(_encode(len(rows)))
        total.update(b"".join(rows))
    db.close()
    return total.hexdigest()


def _entries(db: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for pragma in ("user_version", "application_id"):
        yield f"PRAGMA {pragma}", _text(db.execute(f"PRAGMA {pragma}").fetchone()[0])
    for kind, name, table, sql in _schema(db):
        yield f"CREATE {kind} {_name(name)}", json.dumps(_shown(_Text(_bytes(sql or table))))
    for table in _tables(db):
        for rowid, values in table.rows():
            named = [_shown(values[place]) for place in table.key]
            if not named or None in named:  # a key that may be NULL names nothing
                key = f"rowid {rowid}"
            else:
                key = json.dumps(named[0] if len(named) == 1 else named, ensure_ascii=False)
            shown = dict(zip(table.columns, map(_shown, values), strict=True))
            text = json.dumps(shown, ensure_ascii=False)
            if len(text) > 20 * _SHOWN:
                encoded = hashlib.sha256(b"".join(map(_encode, values))).hexdigest()
                text = f"{text[:_SHOWN]}... sha256:{encoded}"
            yield f"{_name(table.name)}[{key}]", text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _describe(path: Path) -> dict[str, str] | None:
    """Entries of one file, or None where there are too many."""
    db = _open(path)
    found: dict[str, str] = {}
    size = 0
    for key, text in _entries(db):
        size += len(key) + len(text)
        if len(found) >= _ENTRIES or size > _CHARACTERS:
            return None
        name, number = key, 1
        while name in found:  # rows that nothing tells apart
            number += 1
            name = f"{key} #{number}"
        found[name] = text
    db.close()
    return found


def _main(doing: str, seconds: str, paths: Sequence[str]) -> None:
    limit = max(1, int(float(seconds)))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in paths:
        try:
            said = _digest(Path(path)) if doing == "digest" else _describe(Path(path))
        except (sqlite3.Error, MemoryError, OverflowError) as error:
            sys.exit(f"{Path(path).name}: {error or type(error).__name__}")
        text = json.dumps(said, ensure_ascii=False)
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
