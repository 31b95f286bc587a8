"""Print what the databases hold, row by row: `python3 -m services.dump [--pristine TASK]`.

As JSON: table → key → row, over all four services. Asks the running services where their databases
are; with `--pristine` it shows the world as that task begins, made afresh.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from . import PORTS, agenda, mailboxes, tree
from .__main__ import open_service
from .database import Row, open_database
from .desk import Clock
from .documents import KINDS, open_documents
from .seed import Seed

_SQL = {"mail": mailboxes.TABLES, "calendar": agenda.TABLES, "files": tree.TABLES}
Dump = dict[str, dict[str, Row]]


def dump(service: str, url: str) -> Dump:
    """Every row of one service's database, by table and key."""
    if service == "chat":
        documents = open_documents(url)
        kinds = [kind for kind in KINDS if kind != "meta"]
        return {kind: {str(d["id"]): d for d in documents.all(kind)} for kind in kinds}
    db = open_database(url)
    found: Dump = {}
    for table, key in _SQL[service].items():
        rows = db.query(f"SELECT * FROM {table} ORDER BY {key}")
        found[table] = {"|".join(str(row[k]) for k in key.split(", ")): row for row in rows}
    return found


def about(service: str) -> dict[str, Any]:
    """What a running service says of itself to root."""
    connection = http.client.HTTPConnection("127.0.0.1", PORTS[service], timeout=30)
    try:
        connection.request("GET", "/_about")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def pristine(task: str) -> Dump:
    """The world of a task before anybody did anything."""
    seed, clock = Seed(task), Clock("2026-03-02T09:00:00+00:00")
    found: Dump = {}
    with tempfile.TemporaryDirectory() as folder:
        for service in PORTS:
            url = f"sqlite:{folder}/{service}.db"
            open_service(service, url, Path(folder), seed, clock, threading.Lock())
            found |= dump(service, url)
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="services.dump", description=__doc__)
    parser.add_argument("--pristine", metavar="TASK", default=None)
    given = parser.parse_args()
    found: Dump = {}
    if given.pristine is not None:
        found = pristine(given.pristine)
    else:
        for service in PORTS:
            found |= dump(service, about(service)["database"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
