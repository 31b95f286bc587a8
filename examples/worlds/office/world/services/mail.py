"""Mail: one mailbox per user with folders, threads, labels, search, replies and forwards."""

from __future__ import annotations

import json
import re

from .database import Database, Row, next_id
from .desk import DOMAIN, Clock, Route
from .mailboxes import Mailboxes
from .seed import Seed
from .web import ApiError, Fields, Reply, Request, page

FOLDERS = ("inbox", "sent", "archive", "trash")
_ADDRESS = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}@[a-z0-9][a-z0-9.-]{0,251}\.[a-z]{2,24}")
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Mail:
    """The routes of the mail service. A letter is what was sent; each mailbox has its own copy."""

    def __init__(self, db: Database, clock: Clock, people: dict[str, str]) -> None:
        self._db = db
        self._people = people
        self._box = Mailboxes(db, clock, people)

    def routes(self) -> list[Route]:
        """The table of this service."""
        return [
            Route("GET", "/folders", "mail.folders", self._folders),
            Route("GET", "/messages", "mail.list", self._list),
            Route("POST", "/messages", "mail.send", self._send),
            Route("GET", "/messages/{id}", "mail.read", self._read),
            Route("PATCH", "/messages/{id}", "mail.change", self._change),
            Route("DELETE", "/messages/{id}", "mail.delete", self._delete),
            Route("POST", "/messages/{id}/reply", "mail.reply", self._reply),
            Route("POST", "/messages/{id}/forward", "mail.forward", self._forward),
            Route("GET", "/threads/{id}", "mail.thread", self._thread),
            Route("GET", "/labels", "mail.labels", self._labels),
            Route("POST", "/labels", "mail.label_create", self._create_label),
            Route("DELETE", "/labels/{name}", "mail.label_delete", self._delete_label),
        ]

    def seed(self, seed: Seed) -> None:
        """Deliver the letters that the office begins with."""
        self._box.seed(seed)

    def _folders(self, request: Request) -> Reply:
        rows = self._db.query(
            "SELECT folder, COUNT(*) AS total, SUM(unread) AS unread FROM messages"
            " WHERE owner = ? GROUP BY folder",
            request.user,
        )
        counts = {row["folder"]: row for row in rows}
        empty = {"total": 0, "unread": 0}
        found = [{"name": name, **{key: counts.get(name, empty)[key] for key in empty}}
                 for name in FOLDERS]  # fmt: skip
        return Reply({"items": found})

    def _list(self, request: Request) -> Reply:
        wheres, params = ["owner = ?"], [request.user]
        if folder := request.asked("folder"):
            wheres.append("folder = ?")
            params.append(_folder(folder))
        if label := request.asked("label"):
            wheres.append("id IN (SELECT message FROM message_labels WHERE label = ?)")
            params.append(label)
        if sender := request.asked("from"):
            wheres.append("sender = ?")
            params.append(sender)
        if request.asked("unread") == "true":
            wheres.append("unread = 1")
        for word in request.asked("q").lower().split():
            text = re.sub(r"([\\%_])", r"\\\1", word)
            wheres.append("LOWER(subject || ' ' || body || ' ' || sender) LIKE ? ESCAPE '\\'")
            params.append(f"%{text}%")
        before, after = request.moment("before"), request.moment("after")
        if before:
            wheres.append("sent_at < ?")
            params.append(before)
        if after:
            wheres.append("sent_at >= ?")
            params.append(after)

        def rows(last: int, count: int) -> list[Row]:
            older = "AND id < ?" if last else ""
            found = self._db.query(
                f"SELECT * FROM messages WHERE {' AND '.join(wheres)} {older}"
                " ORDER BY id DESC LIMIT ?",
                *params, *([last] if last else []), count,
            )  # fmt: skip
            return [self._box.shown(row, short=True) for row in found]

        return Reply(page(request, rows))

    def _read(self, request: Request) -> Reply:
        row = self._own(request)
        return Reply(self._box.shown(row), target=f"message {row['id']}")

    def _thread(self, request: Request) -> Reply:
        number = int(request.args["id"])
        rows = self._db.query(
            "SELECT * FROM messages WHERE owner = ? AND thread = ? ORDER BY id LIMIT 500",
            request.user, number,
        )  # fmt: skip
        if not rows:
            raise ApiError(404, "not_found", f"no thread {number} in this mailbox")
        return Reply({"id": number, "items": [self._box.shown(row) for row in rows]})

    def _send(self, request: Request) -> Reply:
        fields = request.fields()
        to, cc = _addresses(fields, "to", None), _addresses(fields, "cc", [])
        subject = fields.text("subject", longest=300)
        body = fields.text("body", "", longest=100_000)
        fields.done()
        return self._sent(request, to, cc, subject, body, next_id(self._db, "threads"))

    def _reply(self, request: Request) -> Reply:
        row = self._own(request)
        fields = request.fields()
        body = fields.text("body", longest=100_000)
        everyone = fields.flag("all", default=False)
        fields.done()
        to = [row["sender"]] if row["sender"] != request.user else json.loads(row["recipients"])
        others = [*json.loads(row["recipients"]), *json.loads(row["cc"])] if everyone else []
        cc = [a for a in dict.fromkeys(others) if a not in (*to, request.user)]
        subject = row["subject"] if row["subject"].startswith("Re: ") else f"Re: {row['subject']}"
        return self._sent(request, to, cc, subject, body, row["thread"])

    def _forward(self, request: Request) -> Reply:
        row = self._own(request)
        fields = request.fields()
        to, note = _addresses(fields, "to", None), fields.text("note", "", longest=20_000)
        fields.done()
        body = f"{note}\n\n--- {row['sender']} wrote on {row['sent_at']}:\n{row['body']}"
        return self._sent(
            request, to, [], f"Fwd: {row['subject']}", body.lstrip(), next_id(self._db, "threads"),
            source=row["letter"],
        )  # fmt: skip

    def _sent(
        self, request: Request, to: list[str], cc: list[str], subject: str, body: str, thread: int,
        source: int | None = None,
    ) -> Reply:  # fmt: skip
        unknown = [a for a in (*to, *cc) if a.endswith(f"@{DOMAIN}") and a not in self._people]
        if unknown:
            raise ApiError(422, "unknown_recipient", f"nobody here is {unknown[0]}")
        copies = self._box.deliver(
            request.user, to, cc, subject, body, thread=thread, source=source
        )
        [row] = self._db.query("SELECT * FROM messages WHERE id = ?", copies[request.user])
        return Reply(self._box.shown(row), 201, f"message {row['id']}")

    def _change(self, request: Request) -> Reply:
        row = self._own(request)
        fields = request.fields()
        if "folder" in fields:
            self._box.set(row["id"], "folder", _folder(fields.text("folder"), sent=row["folder"]))
        if "unread" in fields:
            self._box.set(row["id"], "unread", int(fields.flag("unread")))
        for label in fields.texts("add_labels", []):
            self._box.add_label(request.user, row["id"], _label(label))
        for label in fields.texts("remove_labels", []):
            self._db.query(
                "DELETE FROM message_labels WHERE message = ? AND label = ?", row["id"], label
            )
        fields.done()
        return Reply(self._box.shown(self._own(request)), target=f"message {row['id']}")

    def _delete(self, request: Request) -> Reply:
        """Into the trash first; out of the trash for good."""
        row = self._own(request)
        if row["folder"] != "trash":
            self._box.set(row["id"], "folder", "trash")
            return Reply(self._box.shown(self._own(request)), target=f"message {row['id']}")
        self._db.query("DELETE FROM message_labels WHERE message = ?", row["id"])
        self._db.query("DELETE FROM messages WHERE id = ?", row["id"])
        return Reply(None, 204, f"message {row['id']}")

    def _labels(self, request: Request) -> Reply:
        rows = self._db.query(
            "SELECT l.name, COUNT(m.id) AS messages FROM labels l"
            " LEFT JOIN message_labels x ON x.label = l.name"
            " LEFT JOIN messages m ON m.id = x.message AND m.owner = l.owner"
            " WHERE l.owner = ? GROUP BY l.name ORDER BY l.name",
            request.user,
        )
        return Reply({"items": rows})

    def _create_label(self, request: Request) -> Reply:
        fields = request.fields()
        name = _label(fields.text("name"))
        fields.done()
        if self._box.has_label(request.user, name):
            raise ApiError(409, "exists", f"there is a label {name} already")
        self._db.query("INSERT INTO labels VALUES (?, ?)", request.user, name)
        return Reply({"name": name}, 201, f"label {name}")

    def _delete_label(self, request: Request) -> Reply:
        name = request.args["name"]
        if not self._box.has_label(request.user, name):
            raise ApiError(404, "not_found", f"no label {name}")
        self._db.query(
            "DELETE FROM message_labels WHERE label = ?"
            " AND message IN (SELECT id FROM messages WHERE owner = ?)",
            name, request.user,
        )  # fmt: skip
        self._db.query("DELETE FROM labels WHERE owner = ? AND name = ?", request.user, name)
        return Reply(None, 204, f"label {name}")

    def _own(self, request: Request) -> Row:
        number = int(request.args["id"])
        rows = self._db.query(
            "SELECT * FROM messages WHERE id = ? AND owner = ?", number, request.user
        )
        if not rows:
            raise ApiError(404, "not_found", f"no message {number} in this mailbox")
        return rows[0]


def _addresses(fields: Fields, name: str, default: list[str] | None) -> list[str]:
    found = [text.lower() for text in fields.texts(name, default)]
    for address in found:
        if not _ADDRESS.fullmatch(address):
            raise ApiError(422, "bad_address", f"{address!r} is no address", field=name)
    return found


def _folder(name: str, sent: str = "") -> str:
    if name not in FOLDERS or (name == "sent" and sent != "sent" and sent):
        raise ApiError(422, "bad_folder", f"choose from {', '.join(FOLDERS)}", field="folder")
    return name


def _label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise ApiError(422, "bad_label", "a label is lower case letters, digits and -")
    return name
