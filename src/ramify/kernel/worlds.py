"""What differs between the worlds of two nodes: rows, files, services."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ramify.contracts.environment import WorldState


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `before` and `after` are contents as text; empty where there is none.

    Attributes:
        part: what it belongs to (`sqlite /data/mail.db`, `files /app`, `services`).
        key: a table and primary key, a path, a service.
        kind: what happened to it on the way from one node to the other.
    """

    part: str
    key: str
    kind: Literal["added", "removed", "changed"]
    before: str = ""
    after: str = ""


def changes(before: WorldState, after: WorldState) -> Iterator[Change]:
    """Differences in order of parts and keys. Equal worlds have none."""
    for part in sorted(before.parts.keys() | after.parts.keys()):
        old, new = before.parts.get(part, {}), after.parts.get(part, {})
        for key in sorted(old.keys() | new.keys()):
            if key not in new:
                yield Change(part, key, "removed", before=old[key])
            elif key not in old:
                yield Change(part, key, "added", after=new[key])
            elif old[key] != new[key]:
                yield Change(part, key, "changed", old[key], new[key])
