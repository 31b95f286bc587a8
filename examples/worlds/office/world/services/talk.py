"""What chat keeps besides channels and messages: numbers, and what was said before it opened."""

from __future__ import annotations

from .documents import Document, Documents
from .seed import Seed

_NUMBERS = 1
"""The document of kind `meta` with the last number of each kind."""
_CHANGES = 2
"""That with the number of changes."""


class Counts:
    """The last number of each kind of document, and how many changes were made."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def next(self, kind: str) -> int:
        """The next number of a kind; numbers are never used twice."""
        numbers = self._documents.get("meta", _NUMBERS) or {}
        numbers[kind] += 1
        self._documents.put("meta", _NUMBERS, numbers)
        return numbers[kind]

    def recall(self) -> int:
        """How many changes were made."""
        found = self._documents.get("meta", _CHANGES)
        return found["count"] if found else 0

    def remember(self, count: int) -> None:
        """Keep how many changes were made."""
        self._documents.put("meta", _CHANGES, {"count": count})


def begin_chat(documents: Documents, seed: Seed) -> None:
    """Say what was said before the office opened."""
    numbers = {"channels": 0, "posts": 0}
    channels: dict[int, Document] = {}
    by_name: dict[str, int] = {}
    by_key: dict[str, int] = {}
    for channel in seed.list("channels"):
        numbers["channels"] += 1
        number = by_name[channel["name"]] = numbers["channels"]
        given: Document = {
            "topic": "",
            "private": False,
            "archived": False,
            **channel,
            "pins": [],
        }
        channels[number] = given | {"id": number}
    for post in sorted(seed.list("posts"), key=lambda each: each["at"]):
        numbers["posts"] += 1
        number = by_key[post.get("key", "")] = numbers["posts"]
        documents.put("posts", number, {
            "id": number, "channel": by_name[post["channel"]], "user": post["user"],
            "text": post["text"], "at": post["at"], "edited": False,
            "thread": by_key[post["thread"]] if "thread" in post else None,
            "reactions": post.get("reactions", {}),
        })  # fmt: skip
        if post.get("pinned"):
            channels[by_name[post["channel"]]]["pins"].append(number)
    for number, channel in channels.items():
        documents.put("channels", number, channel)
    documents.put("meta", _NUMBERS, numbers)
