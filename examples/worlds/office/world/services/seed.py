"""What the office holds at the start: a common world, and what one task adds to it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from .desk import DOMAIN

SEEDS = Path(__file__).parent.parent / "seeds"
_TRIED = "check"  # the task that `ramify env check` names where nobody names one
_TOPICS = (
    "Printer on floor 2", "Lunch order", "Parking permits", "Onboarding checklist",
    "Window cleaning", "Quarterly numbers", "Badge photos", "Laptop inventory",
    "Fire drill", "Coffee supplier", "Desk plan", "Visitor list",
)  # fmt: skip
_ASKS = (
    "could you have a look when you find the time?", "this is done from our side.",
    "please let me know by Friday.", "the list is attached in the usual folder.",
    "I moved it to next month, nothing for you to do.", "thanks for the quick answer!",
)  # fmt: skip
_SAID = (
    "morning all", "the build is green again", "anyone up for lunch at 12?", "pushed the fix",
    "who has the projector?", "merging after review", "customer call went well",
    "notes are in the shared folder", "out until 3", "back",
)  # fmt: skip


class Seed:
    """Lists of records by kind: people, letters, events, rooms, nodes, channels, posts."""

    def __init__(self, task: str = "") -> None:
        """`task` is a task id (`set:item` or `item`); "" and `check` are the common world alone."""
        self._records = _common()
        item = task.rpartition(":")[2]
        if item not in ("", _TRIED):
            path = SEEDS / f"{item}.json"
            if not path.is_file():
                known = ", ".join(sorted(p.stem for p in SEEDS.glob("*.json")))
                raise SystemExit(f"no world for the task {item!r}; known: {known}")
            added: dict[str, list[dict[str, Any]]] = json.loads(path.read_bytes())
            for kind, records in added.items():
                self._records[kind] = [*self._records[kind], *records]
        self._records["letters"].sort(key=lambda letter: letter["at"])

    def list(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in the order in which they come into the world."""
        return self._records[kind]

    def people(self) -> dict[str, str]:
        """Address → token; "" for those who cannot log in."""
        return {person["address"]: person.get("token", "") for person in self.list("people")}


def _common() -> dict[str, list[dict[str, Any]]]:
    base = cast("dict[str, list[dict[str, Any]]]", json.loads((SEEDS / "common" / "base.json")
                .read_bytes()))  # fmt: skip
    people = [person["address"] for person in base["people"]]
    base["letters"] += _small_talk(people)
    base["events"] += _routine(people)
    base["posts"] += _chatter(people)
    return base


def _small_talk(people: list[str]) -> list[dict[str, Any]]:
    """Ten weeks of ordinary letters, many of them read and put away."""
    begin = datetime.fromisoformat("2025-12-22T08:00:00+00:00")
    letters: list[dict[str, Any]] = []
    for number in range(72):
        sender = people[number * 5 % len(people)]
        reader = people[(number * 3 + 1) % len(people)]
        if sender == reader:
            reader = people[(number * 3 + 2) % len(people)]
        at = begin + timedelta(hours=22 * number + number * number % 7)
        folder = ("inbox", "archive", "archive")[number % 3]
        letters.append({
            "from": sender, "to": [reader], "subject": _TOPICS[number * 7 % len(_TOPICS)],
            "body": f"Hello {_name(reader)},\n{_ASKS[number % len(_ASKS)]}\n{_name(sender)}",
            "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "thread": f"small talk {number // 2}",
            "placed": {reader: {"folder": folder, "unread": number % 4 == 0}},
        })  # fmt: skip
    return letters


def _routine(people: list[str]) -> list[dict[str, Any]]:
    """Two weeks of stand-ups and one-to-ones."""
    monday = datetime.fromisoformat("2026-03-02T00:00:00+00:00")
    events: list[dict[str, Any]] = []
    for day in range(12):
        if day % 7 > 4:
            continue
        start = monday + timedelta(days=day, hours=8, minutes=30)
        events.append(_event("Stand-up", people[1], people[:5], start, 15))
        pair = [people[day % len(people)], people[(day + 3) % len(people)]]
        events.append(_event("One-to-one", pair[0], pair, start + timedelta(hours=9), 30))
    return events


def _event(
    title: str, organizer: str, attendees: list[str], start: datetime, minutes: int
) -> dict[str, Any]:
    end = start + timedelta(minutes=minutes)
    return {
        "title": title, "organizer": organizer, "attendees": attendees,
        "start": start.strftime("%Y-%m-%dT%H:%M:%SZ"), "end": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def _chatter(people: list[str]) -> list[dict[str, Any]]:
    begin = datetime.fromisoformat("2026-02-23T08:00:00+00:00")
    posts: list[dict[str, Any]] = []
    for number in range(60):
        at = begin + timedelta(minutes=47 * number)
        posts.append({
            "channel": "general" if number % 3 else "engineering",
            "user": people[(1, 2, 3, 0)[number % 4]], "text": _SAID[number * 3 % len(_SAID)],
            "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        })  # fmt: skip
    return posts


def _name(address: str) -> str:
    return address.removesuffix(f"@{DOMAIN}").capitalize()
