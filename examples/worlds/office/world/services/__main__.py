"""Start one service: `python3 -m services mail`.

Environment:
    OFFICE_TASK_ID: whose world it is ("" for the common one); only read where the database is new.
    OFFICE_CLOCK: `real`, or the moment at which this office begins; then every change takes one
        second. Default: 2026-03-02T09:00:00+00:00.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from . import PORTS, calendar, files, mail
from .chat import Chat
from .database import Database, change_counter, open_database
from .desk import Clock, Desk, Route, Store
from .documents import open_documents
from .seed import Seed
from .web import Server

_PATIENCE_SEC = 60.0
_Opened = tuple[list[Route], Store]


def main() -> None:
    """Read the arguments, open the database and serve until killed."""
    parser = argparse.ArgumentParser(prog="services", description=__doc__)
    parser.add_argument("service", choices=PORTS)
    parser.add_argument("--data", type=Path, default=Path("/data"), help="directory for state")
    parser.add_argument("--db", default="", help="database URL (default: sqlite in --data)")
    parser.add_argument("--port", type=int, default=0, help="default: the service's own")
    given = parser.parse_args()
    os.umask(0o077)
    given.data.mkdir(parents=True, exist_ok=True)
    task = os.environ.get("OFFICE_TASK_ID", "")
    seed = Seed(task)
    clock = Clock(os.environ.get("OFFICE_CLOCK", "2026-03-02T09:00:00+00:00"))
    lock = threading.Lock()
    name: str = given.service
    url: str = given.db or f"sqlite:{given.data / name}.db"
    routes, store = open_service(name, url, given.data, seed, clock, lock)
    about = {"service": name, "database": url, "task": task}
    desk = Desk(name, routes, store, clock, seed.people(), lock, about)
    with Server(given.port or PORTS[name], desk.answer, desk.who) as server:
        server.serve_forever()


def open_service(
    name: str, url: str, data: Path, seed: Seed, clock: Clock, lock: threading.Lock
) -> _Opened:
    """Open a service's database, seeded where it is new: its routes and its transactions."""
    people = seed.people()
    if name == "chat":
        return _open_chat(url, seed, clock, people, lock)
    db = _patiently(lambda: open_database(url))
    if name == "mail":
        service, schema = mail.Mail(db, clock, people), mail.SCHEMA
    elif name == "calendar":
        service, schema = calendar.Calendar(db, clock, people), calendar.SCHEMA
    else:
        blobs = data / "blobs"
        blobs.mkdir(exist_ok=True)
        service, schema = files.Files(db, clock, people, blobs), files.SCHEMA
    with db.transaction():
        for statement in schema:
            db.query(statement)
        if _is_new(db, f"seeded-{name}"):
            service.seed(seed)
    return service.routes(), Store(db.transaction, *change_counter(db, name))


def _open_chat(
    url: str, seed: Seed, clock: Clock, people: dict[str, str], lock: threading.Lock
) -> _Opened:
    documents = _patiently(lambda: open_documents(url))
    chat = Chat(documents, clock, people, lock)
    with documents.transaction():
        if documents.get("meta", 1) is None:
            chat.seed(seed)

    @contextmanager
    def transaction() -> Generator[None]:
        with documents.transaction():
            yield
        chat.committed()

    return chat.routes(), Store(transaction, chat.recall, chat.remember)


def _is_new(db: Database, name: str) -> bool:
    """Whether nobody has asked for this name before."""
    asked = "INSERT INTO counters VALUES (?, 1) ON CONFLICT DO NOTHING RETURNING name"
    return bool(db.query(asked, name))


_T = TypeVar("_T")


def _patiently(opened: Callable[[], _T]) -> _T:
    """Wait for a database server that is still coming up."""
    deadline = time.monotonic() + _PATIENCE_SEC
    while True:
        try:
            return opened()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
