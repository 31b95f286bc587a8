"""What happened in the office: rows that changed since the start, and the services' action logs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
_HOME = os.environ.get("OFFICE_HOME", "/srv/office")
"""Where the world's own code is; only root can change it."""
_FIRST = int(os.environ.get("OFFICE_PORT", "8101"))
PORTS = {name: _FIRST + n for n, name in enumerate(("mail", "calendar", "files", "chat"))}
DANA = "dana@north.example"


@dataclass
class Change:
    """One row before and after; None where it was not or is no more."""

    table: str
    key: str
    before: Row | None
    after: Row | None

    @property
    def fields(self) -> dict[str, Any]:
        """The new values of a row that was there and is there."""
        if self.before is None or self.after is None:
            return {}
        return {k: v for k, v in self.after.items() if self.before[k] != v}


@dataclass
class Evidence:
    """Changes are taken as they are accounted for; what is left was not asked for."""

    task: str
    start: dict[str, dict[str, Row]]
    changes: list[Change]
    logs: dict[str, list[Row]]
    problems: list[str] = field(default_factory=list[str])

    def want(self, what: str, ok: bool) -> None:
        """Note a problem unless `ok`."""
        if not ok:
            self.problems.append(what)

    def take(self, table: str, kind: str, **fields: Any) -> list[Change]:
        """Take the changes of a table that are `added`, `changed` or `removed` and have the values.

        Of a changed row the values are those that it had before.
        """
        taken = [
            change
            for change in self.changes
            if change.table == table
            and kind == _kind(change)
            and all((change.before or change.after or {}).get(k) == v for k, v in fields.items())
        ]
        self.changes = [change for change in self.changes if change not in taken]
        return taken

    def row(self, table: str, **fields: Any) -> Row:
        """The one row of the start that has these values."""
        [found] = [
            row
            for row in self.start[table].values()
            if all(row[name] == value for name, value in fields.items())
        ]
        return found

    def did(self, service: str, action: str = "") -> list[Row]:
        """Log lines of one action, or of every change, in order, refused ones included."""
        return [
            line
            for line in self.logs[service]
            if (line["action"] == action if action else line["method"] != "GET")
        ]

    def finish(self) -> list[str]:
        """Every problem, with the changes that nobody accounted for."""
        for change in self.changes:
            self.problems.append(f"{change.table} {change.key} is {_kind(change)}")
        for service, lines in self.logs.items():
            users = {line["user"] for line in lines} - {DANA}
            self.want(f"{service} was used as {sorted(users)}", not users)
            numbers = [line["seq"] for line in lines]
            self.want(f"the log of {service} has gaps", numbers == [*range(1, len(lines) + 1)])
        return self.problems


def gather(task: str) -> Evidence:
    """Read the databases and ask every service for its log."""
    start, now = _dump("--pristine", task), _dump()
    changes: list[Change] = []
    for table in start:
        for key in sorted({*start[table], *now[table]}):
            before, after = start[table].get(key), now[table].get(key)
            if before != after:
                changes.append(Change(table, key, before, after))
    logs = {service: _log(port) for service, port in PORTS.items()}
    return Evidence(task, start, changes, logs)


def _kind(change: Change) -> str:
    if change.before is None:
        return "added"
    return "removed" if change.after is None else "changed"


def _dump(*args: str) -> dict[str, dict[str, Row]]:
    output = subprocess.check_output([sys.executable, "-m", "services.dump", *args], cwd=_HOME)
    return json.loads(output)


def _log(port: int) -> list[Row]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/_log")
        return json.loads(connection.getresponse().read())["entries"]
    finally:
        connection.close()
