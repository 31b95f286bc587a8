"""The tree of files as it is kept: nodes, versions, and who may do what where.

Names and rights are in the database, content in a directory beside it, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .database import COUNTERS, Database, Row, next_id
from .desk import Clock
from .seed import Seed
from .web import ApiError

ROLES = ("viewer", "editor")
TABLES = {"nodes": "id", "versions": "file, number", "shares": "node, address"}
"""Table → its key, for dumps."""
SCHEMA = (
    COUNTERS,
    """CREATE TABLE IF NOT EXISTS nodes (
        id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        owner TEXT NOT NULL, link TEXT NOT NULL, updated_at TEXT NOT NULL,
        UNIQUE (parent, name))""",
    """CREATE TABLE IF NOT EXISTS versions (
        file INTEGER NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
        author TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (file, number))""",
    "CREATE TABLE IF NOT EXISTS shares (node INTEGER NOT NULL, address TEXT NOT NULL,"
    " role TEXT NOT NULL, PRIMARY KEY (node, address))",
)


class Tree:
    """Nodes with their versions and shares."""

    def __init__(self, db: Database, clock: Clock, blobs: Path) -> None:
        self._db = db
        self._clock = clock
        self._blobs = blobs

    def seed(self, seed: Seed) -> None:
        """Make the tree that the office begins with; parents come before what is in them."""
        self._db.query("INSERT INTO counters (name, value) VALUES ('nodes', 0)")
        paths = {"": 0}
        for node in seed.list("nodes"):
            above, _, name = node["path"].rpartition("/")
            kind = "file" if "content" in node else "folder"
            number = self.insert(paths[above], kind, name, node["owner"])
            self._db.query("UPDATE nodes SET link = ? WHERE id = ?",
                           node.get("link", "private"), number)  # fmt: skip
            paths[node["path"]] = number
            if kind == "file":
                for text in [*node.get("older", []), node["content"]]:
                    self.add_version(number, node["owner"], text.encode())
            for address, role in node.get("shares", {}).items():
                self._db.query("INSERT INTO shares VALUES (?, ?, ?)", number, address, role)

    def insert(self, parent: int, kind: str, name: str, owner: str) -> int:
        """A new node, private; returns its number."""
        number = next_id(self._db, "nodes")
        self._db.query(
            "INSERT INTO nodes VALUES (?, ?, ?, ?, ?, 'private', ?)",
            number, parent, kind, name, owner, self._clock.now(),
        )  # fmt: skip
        return number

    def add_version(self, number: int, author: str, content: bytes) -> None:
        """Keep content as the next version of a file."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._blobs / digest
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)
        versions = self.history(number)
        self._db.query(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)",
            number, versions[-1]["number"] + 1 if versions else 1, digest, len(content), author,
            self._clock.now(),
        )  # fmt: skip
        self._db.query("UPDATE nodes SET updated_at = ? WHERE id = ?", self._clock.now(), number)

    def history(self, number: int) -> list[Row]:
        """The versions of a file, oldest first."""
        return self._db.query(
            "SELECT number, sha256, size, author, at FROM versions WHERE file = ? ORDER BY number",
            number,
        )

    def row(self, number: int) -> Row:
        """The node, whoever asks. Raises ApiError."""
        rows = self._db.query("SELECT * FROM nodes WHERE id = ?", number)
        if not rows:
            raise ApiError(404, "not_found", f"no node {number}")
        return rows[0]

    def role(self, row: Row, user: str) -> str:
        """The strongest role that a user has on a node, by itself or by a folder above it."""
        roles: set[str] = set()
        for each in [row, *self.upwards(row["parent"])]:
            if each["owner"] == user:
                return "owner"
            if each["link"] != "private":
                roles.add("viewer")
            found = self._db.query(
                "SELECT role FROM shares WHERE node = ? AND address = ?", each["id"], user
            )
            roles |= {share["role"] for share in found}
        return next((role for role in reversed(ROLES) if role in roles), "")

    def upwards(self, number: int) -> list[Row]:
        """A folder and those above it, up to the root."""
        rows: list[Row] = []
        while number:
            rows.append(self.row(number))
            number = rows[-1]["parent"]
        return rows

    def with_below(self, row: Row) -> list[Row]:
        """A node and everything below it."""
        rows = [row]
        for each in rows:
            rows += self._db.query("SELECT * FROM nodes WHERE parent = ?", each["id"])
        return rows

    def shown(self, row: Row) -> dict[str, Any]:
        """A node as clients see it."""
        names = [each["name"] for each in reversed([row, *self.upwards(row["parent"])])]
        shown = {key: row[key] for key in ("id", "kind", "name", "owner", "link", "updated_at")}
        shown["path"] = "/" + "/".join(names)
        if row["kind"] == "file":
            last = self.history(row["id"])[-1]
            shown |= {"version": last["number"], "size": last["size"], "sha256": last["sha256"]}
            shown["url"] = f"https://files.north.example/f/{row['id']}"
        return shown
