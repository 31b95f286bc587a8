"""What came out of a PostgreSQL server, as text: rows in the format of COPY, and schemas."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

_SHOWN = 4_000
_CHARACTERS = 32 << 20
_ESCAPE = re.compile(r"\\(.)")
_MEANT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}
# `\restrict` holds a random word; comments name versions; large objects are data, not schema.
_NOISE = re.compile(
    r"^(--.*|\\(un)?restrict .*|SELECT pg_catalog\.(set_config|lo_create)\(.*|"
    r"REFRESH MATERIALIZED VIEW .*|ALTER LARGE OBJECT .*|(GRANT|REVOKE) .* ON LARGE OBJECT .*|"
    r"SET (\w+_timeout|client_\w+|"
    r"standard_conforming_strings|check_function_bodies|xmloption|row_security|default_\w+) .*)?$"
)


def schema_text(dump: bytes) -> str:
    """A dump without what differs between two dumps of the same thing."""
    lines = dump.decode("utf-8", "backslashreplace").splitlines()
    return "\n".join(line for line in lines if not _NOISE.match(line))


def rows_digest(path: Path) -> str:
    """Of all lines, in whatever order the server gives them."""
    with path.open("rb") as file:
        digests = sorted(hashlib.sha256(line).digest() for line in file)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def entries(path: Path, most: int) -> dict[str, str] | None:
    """Key → content of every row, or None where there are more than `most` or they are large."""
    found: dict[str, str] = {}
    size = 0
    for relation, key, content in _rows(path):
        if len(content) > _SHOWN:
            content = f"{content[:200]}... sha256:{_sha(content)}"
        if key is None:  # no primary key: the same row may be there many times
            key = f"row {_sha(content)[:32]}"
        name, number = f"{relation}[{key}]", 1
        while name in found:
            number += 1
            name = f"{relation}[{key}] #{number}"
        found[name] = content
        size += len(name) + len(content)
        if len(found) > most or size > _CHARACTERS:
            return None
    return found


def _rows(path: Path) -> Iterator[tuple[str, str | None, str]]:
    with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if len(fields) == 3:
                relation, key, content = fields
                yield _plain(relation), None if key == "\\N" else _plain(key), _plain(content)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: _MEANT.get(match[1], match[1]), text)
