"""Files: a tree of folders, versions of each file, sharing with people and by link."""

from __future__ import annotations

from pathlib import Path

from .database import Database, Row
from .desk import Clock, Route
from .seed import Seed
from .tree import ROLES, Tree
from .web import ApiError, Reply, Request, page

SCOPES = ("private", "organisation", "public")


class Files:
    """The routes of the files service. Folder 0 is the root, which everyone may list."""

    def __init__(self, db: Database, clock: Clock, people: dict[str, str], blobs: Path) -> None:
        self._db = db
        self._clock = clock
        self._people = people
        self._blobs = blobs
        self._tree = Tree(db, clock, blobs)

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
        """Make the tree that the office begins with."""
        self._tree.seed(seed)

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
                found += [
                    self._tree.shown(row) for row in batch if self._tree.role(row, request.user)
                ]
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
        return Reply(self._tree.shown(self._node(row["id"], request, "viewer")))

    def _create_folder(self, request: Request) -> Reply:
        fields = request.fields()
        parent, name = fields.number("parent", 0, 999_999_999), _name(fields.text("name"))
        fields.done()
        number = self._create(request, parent, "folder", name)
        return Reply(self._tree.shown(self._tree.row(number)), 201, f"node {number}")

    def _upload(self, request: Request) -> Reply:
        parent, name = request.number("parent", 0, 0, 999_999_999), _name(request.asked("name"))
        number = self._create(request, parent, "file", name)
        self._tree.add_version(number, request.user, request.raw)
        return Reply(self._tree.shown(self._tree.row(number)), 201, f"node {number}")

    def _read(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer")
        shares = self._db.query(
            "SELECT address, role FROM shares WHERE node = ? ORDER BY address", row["id"]
        )
        return Reply(self._tree.shown(row) | {"shares": shares}, target=f"node {row['id']}")

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
            if row["id"] in [above["id"] for above in self._tree.upwards(parent)]:
                raise ApiError(409, "circle", "a folder cannot lie in itself")
        if (parent, name) != (row["parent"], row["name"]):
            self._free(parent, name)
        self._db.query(
            "UPDATE nodes SET parent = ?, name = ?, link = ?, updated_at = ? WHERE id = ?",
            parent, name, link, self._clock.now(), row["id"],
        )  # fmt: skip
        return Reply(self._tree.shown(self._tree.row(row["id"])), target=f"node {row['id']}")

    def _delete(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "editor")
        below = self._db.query("SELECT * FROM nodes WHERE parent = ?", row["id"])
        if below and request.asked("recursive") != "true":
            raise ApiError(409, "not_empty", "the folder is not empty; say `recursive=true`")
        for each in self._tree.with_below(row):
            for table, column in (("nodes", "id"), ("versions", "file"), ("shares", "node")):
                self._db.query(f"DELETE FROM {table} WHERE {column} = ?", each["id"])
        return Reply(None, 204, f"node {row['id']}")

    def _download(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer", "file")
        versions = self._tree.history(row["id"])
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
        last = self._tree.history(row["id"])[-1]["number"]
        expected = request.headers.get("if-match", "*")
        if expected not in ("*", f'"{last}"'):
            raise ApiError(412, "changed", f"version {last} is the last one", version=last)
        self._tree.add_version(row["id"], request.user, request.raw)
        return Reply(self._tree.shown(self._tree.row(row["id"])), target=f"node {row['id']}")

    def _versions(self, request: Request) -> Reply:
        row = self._node(int(request.args["id"]), request, "viewer", "file")
        return Reply({"items": self._tree.history(row["id"])}, target=f"node {row['id']}")

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
        return self._tree.insert(parent, kind, name, request.user)

    def _may_add(self, request: Request, parent: int) -> None:
        if parent:
            self._node(parent, request, "editor", "folder")

    def _free(self, parent: int, name: str) -> None:
        if self._db.query("SELECT 1 FROM nodes WHERE parent = ? AND name = ?", parent, name):
            raise ApiError(409, "exists", f"there is a {name!r} already")

    def _node(self, number: int, request: Request, role: str, kind: str = "") -> Row:
        """The node, if the user has at least that role there; what one may not see is not there."""
        row = self._tree.row(number)
        held = self._tree.role(row, request.user)
        if not held:
            raise ApiError(404, "not_found", f"no node {number}")
        if role == "editor" and held == "viewer":
            raise ApiError(403, "read_only", f"{row['name']!r} is only shared for reading")
        if kind and row["kind"] != kind:
            raise ApiError(409, "wrong_kind", f"{row['name']!r} is a {row['kind']}")
        return row


def _name(text: str) -> str:
    if not text.strip() or text in (".", "..") or "/" in text or len(text) > 200 or "\0" in text:
        raise ApiError(422, "bad_name", "a name has 1 to 200 characters and no slash")
    return text
