"""Mailboxes as they are kept: a letter is what was sent, each mailbox has its own copy of it."""

from __future__ import annotations

import json
from typing import Any

from .database import COUNTERS, Database, Row, next_id
from .desk import Clock
from .seed import Seed

TABLES = {"messages": "id", "labels": "owner, name", "message_labels": "message, label"}
"""Table → its key, for dumps."""
SCHEMA = (
    COUNTERS,
    """CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY, owner TEXT NOT NULL, folder TEXT NOT NULL, thread INTEGER NOT NULL,
        letter INTEGER NOT NULL, sender TEXT NOT NULL, recipients TEXT NOT NULL, cc TEXT NOT NULL,
        subject TEXT NOT NULL, body TEXT NOT NULL, sent_at TEXT NOT NULL, unread INTEGER NOT NULL,
        forwarded_from INTEGER)""",
    "CREATE INDEX IF NOT EXISTS by_owner ON messages (owner, folder, id)",
    "CREATE TABLE IF NOT EXISTS labels (owner TEXT NOT NULL, name TEXT NOT NULL,"
    " PRIMARY KEY (owner, name))",
    "CREATE TABLE IF NOT EXISTS message_labels (message INTEGER NOT NULL, label TEXT NOT NULL,"
    " PRIMARY KEY (message, label))",
)


class Mailboxes:
    """The copies of letters, and their labels."""

    def __init__(self, db: Database, clock: Clock, people: dict[str, str]) -> None:
        self._db = db
        self._clock = clock
        self._people = people

    def seed(self, seed: Seed) -> None:
        """Deliver the letters that the office begins with, and put them where they belong."""
        for name in ("messages", "threads", "letters"):
            self._db.query("INSERT INTO counters (name, value) VALUES (?, 0)", name)
        threads: dict[str, int] = {}
        for letter in seed.list("letters"):
            key = letter.get("thread", letter["subject"])
            threads[key] = threads.get(key) or next_id(self._db, "threads")
            sender, to = letter["from"], letter["to"]
            copies = self.deliver(
                sender, to, letter.get("cc", []), letter["subject"], letter["body"],
                thread=threads[key], sent_at=letter["at"],
            )  # fmt: skip
            for owner, placed in letter.get("placed", {}).items():
                if folder := placed.get("folder"):
                    self.set(copies[owner], "folder", folder)
                self.set(copies[owner], "unread", int(placed.get("unread", False)))
                for label in placed.get("labels", []):
                    self.add_label(owner, copies[owner], label)

    def deliver(
        self, sender: str, to: list[str], cc: list[str], subject: str, body: str, *, thread: int,
        source: int | None = None, sent_at: str | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """One copy for the sender and for each recipient of this house; owner → message."""
        owners = [a for a in dict.fromkeys((*to, *cc)) if a in self._people and a != sender]
        letter = next_id(self._db, "letters")
        copies: dict[str, int] = {}
        for owner in ([sender] if sender in self._people else []) + owners:
            copies[owner] = next_id(self._db, "messages")
            self._db.query(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                copies[owner], owner, "sent" if owner == sender else "inbox", thread, letter,
                sender, json.dumps(to), json.dumps(cc), subject, body,
                sent_at or self._clock.now(), int(owner != sender), source,
            )  # fmt: skip
        return copies

    def shown(self, row: Row, *, short: bool = False) -> Row:
        """A message as clients see it; `short` without its body."""
        labels = self._db.query(
            "SELECT label FROM message_labels WHERE message = ? ORDER BY label", row["id"]
        )
        shown = {key: row[key] for key in ("id", "folder", "thread", "subject", "sent_at")}
        shown |= {"from": row["sender"], "to": json.loads(row["recipients"])}
        shown |= {"cc": json.loads(row["cc"]), "unread": bool(row["unread"])}
        shown["labels"] = [label["label"] for label in labels]
        return shown | ({"snippet": row["body"][:120]} if short else {"body": row["body"]})

    def has_label(self, owner: str, name: str) -> bool:
        """Whether a user has made that label."""
        return bool(
            self._db.query("SELECT 1 FROM labels WHERE owner = ? AND name = ?", owner, name)
        )

    def add_label(self, owner: str, message: int, label: str) -> None:
        """Put a label on a message; made where it is missing."""
        if not self.has_label(owner, label):
            self._db.query("INSERT INTO labels VALUES (?, ?)", owner, label)
        self._db.query(
            "INSERT INTO message_labels VALUES (?, ?) ON CONFLICT DO NOTHING", message, label
        )

    def set(self, message: int, column: str, value: Any) -> None:
        """Set one column of a message."""
        self._db.query(f"UPDATE messages SET {column} = ? WHERE id = ?", value, message)
