"""The agenda as it is kept: events, attendees, rooms, and who is busy when."""

from __future__ import annotations

from .database import COUNTERS, Database, Row, next_id
from .seed import Seed
from .web import ApiError

TABLES = {"events": "id", "attendees": "event, address", "rooms": "name"}
"""Table → its key, for dumps."""
SCHEMA = (
    COUNTERS,
    """CREATE TABLE IF NOT EXISTS events (
        id INTEGER PRIMARY KEY, organizer TEXT NOT NULL, title TEXT NOT NULL,
        description TEXT NOT NULL, begins TEXT NOT NULL, ends TEXT NOT NULL, room TEXT NOT NULL,
        status TEXT NOT NULL, updated_at TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS by_time ON events (begins, ends)",
    "CREATE TABLE IF NOT EXISTS attendees (event INTEGER NOT NULL, address TEXT NOT NULL,"
    " answer TEXT NOT NULL, PRIMARY KEY (event, address))",
    "CREATE TABLE IF NOT EXISTS rooms (name TEXT PRIMARY KEY, seats INTEGER NOT NULL)",
)
BUSY = (
    "SELECT DISTINCT e.* FROM events e LEFT JOIN attendees a ON a.event = e.id"
    " WHERE e.status = 'confirmed' AND e.begins < ? AND e.ends > ? AND e.id <> ?"
)


class Agenda:
    """Events with their attendees."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def seed(self, seed: Seed) -> None:
        """Enter the events that the office begins with."""
        self._db.query("INSERT INTO counters (name, value) VALUES ('events', 0)")
        for room in seed.list("rooms"):
            self._db.query("INSERT INTO rooms VALUES (?, ?)", room["name"], room["seats"])
        for event in seed.list("events"):
            number = next_id(self._db, "events")
            self._db.query(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, 'confirmed', ?)",
                number, event["organizer"], event["title"], event.get("description", ""),
                event["start"], event["end"], event.get("room", ""), "2026-02-20T09:00:00Z",
            )  # fmt: skip
            for address in event["attendees"]:
                answer = event.get("answers", {}).get(address, "accepted")
                self._db.query("INSERT INTO attendees VALUES (?, ?, ?)", number, address, answer)

    def busy(self, start: str, end: str, address: str) -> list[Row]:
        """Events in a span that an attendee has not declined, in order."""
        sql = f"{BUSY} AND a.address = ? AND a.answer <> 'declined'"
        rows = self._db.query(sql, end, start, 0, address)
        return sorted(rows, key=lambda row: (row["begins"], row["id"]))

    def attendees(self, number: int) -> dict[str, str]:
        """Address → answer."""
        rows = self._db.query(
            "SELECT address, answer FROM attendees WHERE event = ? ORDER BY address", number
        )
        return {row["address"]: row["answer"] for row in rows}

    def shown(self, row: Row, user: str) -> Row:
        """An event as a user sees it: only its time, unless invited."""
        attendees = self.attendees(row["id"])
        times = {"id": row["id"], "start": row["begins"], "end": row["ends"]}
        if user not in attendees and user != row["organizer"]:
            return {**times, "title": "busy"}
        rest = {key: row[key] for key in ("title", "description", "organizer", "room", "status")}
        return {**times, **rest, "attendees": attendees}

    def room(self, name: str, people: int) -> str:
        """The name of a room with that many seats; an empty one passes. Raises ApiError."""
        rows = self._db.query("SELECT seats FROM rooms WHERE name = ?", name)
        if name and not rows:
            raise ApiError(422, "unknown_room", f"there is no room {name!r}")
        if name and rows[0]["seats"] < people:
            raise ApiError(422, "room_too_small", f"{name} has {rows[0]['seats']} seats")
        return name
