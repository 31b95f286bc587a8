"""Files: a tree of folders, versions of each file, sharing with people and by link.

Names and rights are in the database, content in a directory beside it, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .database import COUNTERS, Database, Row, next_id
from .desk import Clock, Route
from .seed import Seed
from .web import ApiError, Reply, Request, page

SCOPES = ("private", "organisation", "public")
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


class Files:
    """The routes of the files service. Folder 0 is the root, which everyone may list."""

    def __init__(self, db: Database, clock: Clock, people: dict[str, str], blobs: Path) -> None:
        self._db = db
        self._clock = clock
        self._people = people
        self._blobs = blobs

    def routes(self) -> list[Route]:
        """The table of this service."""
        return [
            Route("GET", "/nodes", "files.list", self._list),
            Route("GET", "/resolve", "files.resolve", self._resolve),
            Route("POST", "/folders", "files.folder", self._create_folder),
            Route("POST", "/files", "files.upload", self._upload),
            Route("GET", "/nodes/{id}", "files.read", self._read),
            Route("PATCH", "/nodes/{id}", "files.change", self._change),
            Route("DELETE", "/nodes/{id}", "files.delete", self._delete),
            Route("GET", "/files/{id}/content", "files.download", self._download),
            Route("PUT", "/files/{id}/content", "files.update", self._update),
            Route("GET", "/files/{id}/versions", "files.versions", self._versions),
            Route("PUT", "/nodes/{id}/shares/{address}", "files.share", self._share),
            Route("DELETE", "/nodes/{id}/shares/{address}", "files.unshare", self._unshare),
        ]

    def seed(self, seed: Seed) -> None:
        """Make the tree that the office begins with; parents come before what is in them."""
        self._db.query("INSERT INTO counters (name, value) VALUES ('nodes', 0)")
        paths = {"": 0}
        for node in seed.list("nodes"):
            above, _, name = node["path"].rpartition("/")
            kind = "file" if "content" in node else "folder"
            number = self._insert(paths[above], kind, name, node["owner"])
            self._db.query("UPDATE nodes SET link = ? WHERE id = ?",
                           node.get("link", "private"), number)  # fmt: skip
            paths[node["path"]] = number
            if kind == "file":
                for text in [*node.get("older", []), node["content"]]:
                    self._add_version(number, node["owner"], text.encode())
            for address, role in node.get("shares", {}).items():
                self._db.query("INSERT INTO shares VALUES (?, ?, ?)", number, address, role)

    def _list(self, request: Request) -> Reply:
        parent = request.number("parent", 0, 0, 999_999_999)
        if parent:
            self._node(parent, request, "viewer", "folder")

        def rows(after: int, count: int) -> list[Row]:
            found: list[Row] = []
            while len(found) < count:
                batch = self._db.query(
                    "SELECT * FROM nodes WHERE parent = ? AND id > ? ORDER BY id LIMIT 200",
                    parent, after,
                )  # fmt: skip
                if not batch:
                    break
                found += [self._shown(row) for row in batch if self._role(row, request.user)]
                after = batch[-1]["id"]
            return found[:count]

        return Reply(page(request, rows))

    def _resolve(self, request: Request) -> Reply:
        """A path such as /Team/plan.md → its node."""
        row: Row = {"id": 0}
        for name in request.asked("path").strip("/").split("/"):
            rows = self._db.query(
                "SELECT * FROM nodes WHERE parent = ? AND name = ?", row["id"], name
            )
            if not rows:
                raise ApiError(404, "not_found", f"there is no {name!r}")
            [row] = rows
        return Reply(self._shown(self._node(row["id"], request, "viewer")))

    def _create_folder(self, request: Request) -> Reply:
        fields = request.fields()
        parent, name = fields.number("parent", 0, 999_999_999), _name(fields.text("name"))
        fields.done()
        number = self._create(request, parent, "folder", name)
        return Reply(self._shown(self._row(number)), 201, f"node {number}")

    def _upload(self, request: Request) -> Reply:
        parent, name = request.number("parent", 0, 0, 999_999_999), _name(request.asked("name"))
        number = self._create(request, parent, "file", name)
        self._add_version(number, request.user, request.raw)
        return Reply(self._shown(self._row(number)), 201, f"node {number}")

    def _read(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer")
        shares = self._db.query(
            "SELECT address, role FROM shares WHERE node = ? ORDER BY address", row["id"]
        )
        return Reply(self._shown(row) | {"shares": shares}, target=f"node {row['id']}")

    def _change(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "editor")
        fields = request.fields()
        name = _name(fields.text("name", row["name"]))
        link = fields.text("link", row["link"])
        parent = fields.number("parent", 0, 999_999_999) if "parent" in fields else row["parent"]
        fields.done()
        if link not in SCOPES:
            raise ApiError(422, "bad_field", f"choose from {', '.join(SCOPES)}", field="link")
        if link != row["link"] and row["owner"] != request.user:
            raise ApiError(403, "not_owner", "only its owner opens it to others")
        if parent != row["parent"]:
            self._may_add(request, parent)
            if row["id"] in [above["id"] for above in self._upwards(parent)]:
                raise ApiError(409, "circle", "a folder cannot lie in itself")
        if (parent, name) != (row["parent"], row["name"]):
            self._free(parent, name)
        self._db.query(
            "UPDATE nodes SET parent = ?, name = ?, link = ?, updated_at = ? WHERE id = ?",
            parent, name, link, self._clock.now(), row["id"],
        )  # fmt: skip
        return Reply(self._shown(self._row(row["id"])), target=f"node {row['id']}")

    def _delete(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "editor")
        below = self._db.query("SELECT * FROM nodes WHERE parent = ?", row["id"])
        if below and request.asked("recursive") != "true":
            raise ApiError(409, "not_empty", "the folder is not empty; say `recursive=true`")
        for each in self._with_below(row):
            for table, column in (("nodes", "id"), ("versions", "file"), ("shares", "node")):
                self._db.query(f"DELETE FROM {table} WHERE {column} = ?", each["id"])
        return Reply(None, 204, f"node {row['id']}")

    def _download(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer", "file")
        versions = self._history(row["id"])
        wanted = request.number("version", versions[-1]["number"], 1, 999_999_999)
        for version in versions:
            if version["number"] == wanted:
                content = (self._blobs / version["sha256"]).read_bytes()
                headers = {"ETag": f'"{wanted}"'}
                return Reply(content, 200, f"node {row['id']}", "application/octet-stream", headers)
        raise ApiError(404, "not_found", f"no version {wanted}")

    def _update(self, request: Request) -> Reply:
        """A new version; with `If-Match: "3"` only where version 3 is the last one."""
        row = self._node(int(request.args["id"]), request, "editor", "file")
        last = self._history(row["id"])[-1]["number"]
        expected = request.headers.get("if-match", "*")
        if expected not in ("*", f'"{last}"'):
            raise ApiError(412, "changed", f"version {last} is the last one", version=last)
        self._add_version(row["id"], request.user, request.raw)
        return Reply(self._shown(self._row(row["id"])), target=f"node {row['id']}")

    def _versions(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer", "file")
        return Reply({"items": self._history(row["id"])}, target=f"node {row['id']}")

    def _share(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "editor")
        fields = request.fields()
        role = fields.text("role")
        fields.done()
        address = request.args["address"].lower()
        if role not in ROLES or address not in self._people:
            raise ApiError(422, "bad_share", f"give someone here one of {', '.join(ROLES)}")
        self._db.query(
            "INSERT INTO shares VALUES (?, ?, ?) ON CONFLICT (node, address)"
            " DO UPDATE SET role = excluded.role",
            row["id"], address, role,
        )  # fmt: skip
        return Reply({"address": address, "role": role}, target=f"node {row['id']}")

    def _unshare(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "editor")
        address = request.args["address"].lower()
        gone = self._db.query(
            "DELETE FROM shares WHERE node = ? AND address = ? RETURNING role", row["id"], address
        )
        if not gone:
            raise ApiError(404, "not_found", f"it is not shared with {address}")
        return Reply(None, 204, f"node {row['id']}")

    def _create(self, request: Request, parent: int, kind: str, name: str) -> int:
        self._may_add(request, parent)
        self._free(parent, name)
        return self._insert(parent, kind, name, request.user)

    def _insert(self, parent: int, kind: str, name: str, owner: str) -> int:
        number = next_id(self._db, "nodes")
        self._db.query(
            "INSERT INTO nodes VALUES (?, ?, ?, ?, ?, 'private', ?)",
            number, parent, kind, name, owner, self._clock.now(),
        )  # fmt: skip
        return number

    def _add_version(self, number: int, author: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        path = self._blobs / digest
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)
        versions = self._history(number)
        self._db.query(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)",
            number, versions[-1]["number"] + 1 if versions else 1, digest, len(content), author,
            self._clock.now(),
        )  # fmt: skip
        self._db.query("UPDATE nodes SET updated_at = ? WHERE id = ?", self._clock.now(), number)

    def _history(self, number: int) -> list[Row]:
        return self._db.query(
            "SELECT number, sha256, size, author, at FROM versions WHERE file = ? ORDER BY number",
            number,
        )

    def _may_add(self, request: Request, parent: int) -> None:
        if parent:
            self._node(parent, request, "editor", "folder")

    def _free(self, parent: int, name: str) -> None:
        if self._db.query("SELECT 1 FROM nodes WHERE parent = ? AND name = ?", parent, name):
            raise ApiError(409, "exists", f"there is a {name!r} already")

    def _row(self, number: int) -> Row:
        rows = self._db.query("SELECT * FROM nodes WHERE id = ?", number)
        if not rows:
            raise ApiError(404, "not_found", f"no node {number}")
        return rows[0]

    def _node(self, number: int, request: Request, role: str, kind: str = "") -> Row:
        """The node, if the user has at least that role there; what one may not see is not there."""
        row = self._row(number)
        held = self._role(row, request.user)
        if not held:
            raise ApiError(404, "not_found", f"no node {number}")
        if role == "editor" and held == "viewer":
            raise ApiError(403, "read_only", f"{row['name']!r} is only shared for reading")
        if kind and row["kind"] != kind:
            raise ApiError(409, "wrong_kind", f"{row['name']!r} is a {row['kind']}")
        return row

    def _role(self, row: Row, user: str) -> str:
        """The strongest role that a user has on a node, by itself or by a folder above it."""
        roles: set[str] = set()
        for each in [row, *self._upwards(row["parent"])]:
            if each["owner"] == user:
                return "owner"
            if each["link"] != "private":
                roles.add("viewer")
            found = self._db.query(
                "SELECT role FROM shares WHERE node = ? AND address = ?", each["id"], user
            )
            roles |= {share["role"] for share in found}
        return next((role for role in reversed(ROLES) if role in roles), "")

    def _upwards(self, number: int) -> list[Row]:
        rows: list[Row] = []
        while number:
            rows.append(self._row(number))
            number = rows[-1]["parent"]
        return rows

    def _with_below(self, row: Row) -> list[Row]:
        rows = [row]
        for each in rows:
            rows += self._db.query("SELECT * FROM nodes WHERE parent = ?", each["id"])
        return rows

    def _shown(self, row: Row) -> dict[str, Any]:
        names = [each["name"] for each in reversed([row, *self._upwards(row["parent"])])]
        shown = {key: row[key] for key in ("id", "kind", "name", "owner", "link", "updated_at")}
        shown["path"] = "/" + "/".join(names)
        if row["kind"] == "file":
            last = self._history(row["id"])[-1]
            shown |= {"version": last["number"], "size": last["size"], "sha256": last["sha256"]}
            shown["url"] = f"https://files.north.example/f/{row['id']}"
        return shown


def _name(text: str) -> str:
    if not text.strip() or text in (".", "..") or "/" in text or len(text) > 200 or "\0" in text:
        raise ApiError(422, "bad_name", "a name has 1 to 200 characters and no slash")
    return text
