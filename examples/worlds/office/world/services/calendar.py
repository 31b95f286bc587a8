"""Calendar: events with attendees and rooms, answers, conflicts, free and busy times."""

from __future__ import annotations

from typing import Any

from .agenda import BUSY, Agenda
from .database import Database, Row, next_id
from .desk import Clock, Route
from .seed import Seed
from .web import ApiError, Reply, Request, page

ANSWERS = ("accepted", "declined", "tentative", "pending")


class Calendar:
    """The routes of the calendar service. Times are UTC; an event ends before the next begins."""

    def __init__(self, db: Database, clock: Clock, people: dict[str, str]) -> None:
        self._db = db
        self._clock = clock
        self._people = people
        self._agenda = Agenda(db)

    def routes(self) -> list[Route]:
        """The table of this service."""
        return [
            Route("GET", "/events", "calendar.list", self._list),
            Route("POST", "/events", "calendar.create", self._create),
            Route("GET", "/events/{id}", "calendar.read", self._read),
            Route("PATCH", "/events/{id}", "calendar.change", self._change),
            Route("DELETE", "/events/{id}", "calendar.cancel", self._cancel),
            Route("POST", "/events/{id}/answer", "calendar.answer", self._answer),
            Route("GET", "/conflicts", "calendar.conflicts", self._conflicts),
            Route("GET", "/freebusy", "calendar.freebusy", self._freebusy),
            Route("GET", "/rooms", "calendar.rooms", self._rooms),
        ]

    def seed(self, seed: Seed) -> None:
        """Enter the events that the office begins with."""
        self._agenda.seed(seed)

    def _list(self, request: Request) -> Reply:
        wheres, params = ["status = 'confirmed'"], list[Any]()
        address = request.asked("attendee", request.user)
        self._known([address])
        wheres.append("id IN (SELECT event FROM attendees WHERE address = ?)")
        params.append(address)
        start, end = request.moment("start"), request.moment("end")
        if start:
            wheres.append("ends > ?")
            params.append(start)
        if end:
            wheres.append("begins < ?")
            params.append(end)
        if text := request.asked("q").lower():
            wheres.append("LOWER(title || ' ' || description) LIKE ?")
            params.append(f"%{text}%")

        def rows(after: int, count: int) -> list[Row]:
            found = self._db.query(
                f"SELECT * FROM events WHERE {' AND '.join(wheres)} AND id > ?"
                " ORDER BY id LIMIT ?",
                *params, after, count,
            )  # fmt: skip
            return [self._agenda.shown(row, request.user) for row in found]

        return Reply(page(request, rows))

    def _read(self, request: Request) -> Reply:
        row = self._event(request)
        return Reply(self._agenda.shown(row, request.user), target=f"event {row['id']}")

    def _create(self, request: Request) -> Reply:
        fields = request.fields()
        title = fields.text("title")
        begins, ends = fields.moment("start"), fields.moment("end")
        guests = [text.lower() for text in fields.texts("attendees", [])]
        room = self._agenda.room(fields.text("room", ""), len({*guests, request.user}))
        description = fields.text("description", "", longest=5000)
        force = fields.flag("allow_conflicts", default=False)
        fields.done()
        attendees = list(dict.fromkeys([request.user, *guests]))
        self._known(attendees)
        _check_times(begins, ends)
        self._refuse_conflicts(begins, ends, attendees, room, 0, force=force)
        number = next_id(self._db, "events")
        self._db.query(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, 'confirmed', ?)",
            number, request.user, title, description, begins, ends, room, self._clock.now(),
        )  # fmt: skip
        for address in attendees:
            answer = "accepted" if address == request.user else "pending"
            self._db.query("INSERT INTO attendees VALUES (?, ?, ?)", number, address, answer)
        [row] = self._db.query("SELECT * FROM events WHERE id = ?", number)
        return Reply(self._agenda.shown(row, request.user), 201, f"event {number}")

    def _change(self, request: Request) -> Reply:
        row = self._organized(request)
        fields = request.fields()
        old = self._agenda.attendees(row["id"])
        after = {
            "title": fields.text("title", row["title"]),
            "description": fields.text("description", row["description"], longest=5000),
            "begins": fields.moment("start") if "start" in fields else row["begins"],
            "ends": fields.moment("end") if "end" in fields else row["ends"],
        }
        guests = [text.lower() for text in fields.texts("attendees", [*old])]
        attendees = list(dict.fromkeys([request.user, *guests]))
        after["room"] = self._agenda.room(fields.text("room", row["room"]), len(attendees))
        force = fields.flag("allow_conflicts", default=False)
        fields.done()
        self._known(attendees)
        _check_times(after["begins"], after["ends"])
        times = after["begins"], after["ends"]
        self._refuse_conflicts(*times, attendees, after["room"], row["id"], force=force)
        self._db.query(
            "UPDATE events SET title = ?, description = ?, begins = ?, ends = ?, room = ?,"
            " updated_at = ? WHERE id = ?",
            *after.values(), self._clock.now(), row["id"],
        )  # fmt: skip
        moved = times != (row["begins"], row["ends"])
        self._db.query("DELETE FROM attendees WHERE event = ?", row["id"])
        for address in attendees:
            kept = address == request.user or not moved
            answer = old.get(address, "pending") if kept else "pending"
            self._db.query("INSERT INTO attendees VALUES (?, ?, ?)", row["id"], address, answer)
        shown = self._agenda.shown(self._event(request), request.user)
        return Reply(shown, target=f"event {row['id']}")

    def _cancel(self, request: Request) -> Reply:
        row = self._organized(request)
        self._db.query(
            "UPDATE events SET status = 'cancelled', updated_at = ? WHERE id = ?",
            self._clock.now(), row["id"],
        )  # fmt: skip
        return Reply(None, 204, f"event {row['id']}")

    def _answer(self, request: Request) -> Reply:
        row = self._event(request)
        fields = request.fields()
        answer = fields.text("answer")
        fields.done()
        if answer not in ANSWERS[:3]:
            raise ApiError(422, "bad_field", f"choose from {', '.join(ANSWERS[:3])}")
        if request.user not in self._agenda.attendees(row["id"]):
            raise ApiError(403, "not_invited", "only attendees answer")
        self._db.query(
            "UPDATE attendees SET answer = ? WHERE event = ? AND address = ?",
            answer, row["id"], request.user,
        )  # fmt: skip
        shown = self._agenda.shown(self._event(request), request.user)
        return Reply(shown, target=f"event {row['id']}")

    def _conflicts(self, request: Request) -> Reply:
        """Pairs of events of this user that overlap within a window."""
        start, end = _window(request)
        rows = self._agenda.busy(start, end, request.user)
        pairs = [
            [self._agenda.shown(one, request.user), self._agenda.shown(two, request.user)]
            for number, one in enumerate(rows)
            for two in rows[number + 1 :]
            if one["begins"] < two["ends"] and two["begins"] < one["ends"]
        ]
        return Reply({"items": pairs})

    def _freebusy(self, request: Request) -> Reply:
        start, end = _window(request)
        who = request.asked_all("attendee") or [request.user]
        rooms = request.asked_all("room")
        self._known(who)
        busy: dict[str, list[dict[str, str]]] = {}
        for address in who:
            rows = self._agenda.busy(start, end, address)
            busy[address] = [{"start": row["begins"], "end": row["ends"]} for row in rows]
        for name in rooms:
            self._agenda.room(name, 0)
            rows = self._db.query(f"{BUSY} AND e.room = ?", end, start, 0, name)
            taken = sorted((row["begins"], row["ends"]) for row in rows)
            busy[name] = [{"start": begins, "end": ends} for begins, ends in taken]
        return Reply({"start": start, "end": end, "busy": busy})

    def _rooms(self, request: Request) -> Reply:
        return Reply({"items": self._db.query("SELECT * FROM rooms ORDER BY name")})

    def _refuse_conflicts(
        self, begins: str, ends: str, who: list[str], room: str, but: int, *, force: bool
    ) -> None:
        """A taken room is always refused, taken people unless the organizer insists."""
        if room and self._db.query(f"{BUSY} AND e.room = ?", ends, begins, but, room):
            raise ApiError(409, "room_taken", f"{room} is taken then", room=room)
        taken = [
            a for a in who if any(row["id"] != but for row in self._agenda.busy(begins, ends, a))
        ]
        if taken and not force:
            message = "somebody is busy then; choose another time or set `allow_conflicts`"
            raise ApiError(409, "conflict", message, attendees=taken)

    def _known(self, addresses: list[str]) -> None:
        for address in addresses:
            if address not in self._people:
                raise ApiError(422, "unknown_attendee", f"nobody here is {address!r}")

    def _event(self, request: Request) -> Row:
        number = int(request.args["id"])
        rows = self._db.query("SELECT * FROM events WHERE id = ?", number)
        if not rows:
            raise ApiError(404, "not_found", f"no event {number}")
        return rows[0]

    def _organized(self, request: Request) -> Row:
        row = self._event(request)
        if row["organizer"] != request.user:
            raise ApiError(403, "not_organizer", f"{row['organizer']} organizes it")
        if row["status"] != "confirmed":
            raise ApiError(409, "cancelled", "the event is cancelled")
        return row


def _check_times(begins: str, ends: str) -> None:
    if begins >= ends:
        raise ApiError(422, "bad_times", "`end` must be later than `start`", field="end")


def _window(request: Request) -> tuple[str, str]:
    start, end = request.moment("start"), request.moment("end")
    if start is None or end is None or start >= end:
        raise ApiError(400, "bad_parameter", "give `start` and a later `end`")
    return start, end
