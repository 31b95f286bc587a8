"""Start one service: `python3 -m services mail`.

Environment:
    OFFICE_TASK_ID: whose world it is ("" for the common one); only read where the database is new.
    OFFICE_CLOCK: `real`, or the moment at which this office begins; then every change takes one
        second. Default: 2026-03-02T09:00:00+00:00.
    OFFICE_DB: `sqlite:PATH`, `postgresql://user:password@host:port/database`, or, for chat,
        `redis://:password@host:port`. Default: an SQLite file in the directory for state.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from . import PORTS, agenda, mailboxes, tree
from .calendar import Calendar
from .chat import Chat
from .database import Database, change_counter, open_database
from .desk import Clock, Desk, Route, Store
from .documents import open_documents
from .files import Files
from .mail import Mail
from .seed import Seed
from .talk import Counts, begin_chat
from .web import Server

_Opened = tuple[list[Route], Store]


def main() -> None:
    """Read the arguments, open the database and serve until killed."""
    parser = argparse.ArgumentParser(prog="services", description=__doc__)
    parser.add_argument("service", choices=PORTS)
    parser.add_argument("--data", type=Path, default=Path("/data"), help="directory for state")
    parser.add_argument("--port", type=int, default=0, help="default: the service's own")
    given = parser.parse_args()
    os.umask(0o077)
    given.data.mkdir(parents=True, exist_ok=True)
    task = os.environ.get("OFFICE_TASK_ID", "")
    seed = Seed(task)
    clock = Clock(os.environ.get("OFFICE_CLOCK", "2026-03-02T09:00:00+00:00"))
    lock = threading.Lock()
    name: str = given.service
    url: str = os.environ.get("OFFICE_DB") or f"sqlite:{given.data / name}.db"
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
    db = open_database(url)
    if name == "mail":
        service, schema = Mail(db, clock, people), mailboxes.SCHEMA
    elif name == "calendar":
        service, schema = Calendar(db, clock, people), agenda.SCHEMA
    else:
        blobs = data / "blobs"
        blobs.mkdir(exist_ok=True)
        service, schema = Files(db, clock, people, blobs), tree.SCHEMA
    with db.transaction():
        db.alone()
        for statement in schema:
            db.query(statement)
        if _is_new(db, f"seeded-{name}"):
            service.seed(seed)
    return service.routes(), Store(db.transaction, *change_counter(db, name))


def _open_chat(
    url: str, seed: Seed, clock: Clock, people: dict[str, str], lock: threading.Lock
) -> _Opened:
    documents = open_documents(url)
    counts = Counts(documents)
    chat = Chat(documents, clock, people, lock)
    with documents.transaction():
        if documents.get("meta", 1) is None:
            begin_chat(documents, seed)

    @contextmanager
    def transaction() -> Generator[None]:
        with documents.transaction():
            yield
        chat.committed()

    return chat.routes(), Store(transaction, counts.recall, counts.remember)


def _is_new(db: Database, name: str) -> bool:
    """Whether nobody has asked for this name before."""
    asked = "INSERT INTO counters VALUES (?, 1) ON CONFLICT DO NOTHING RETURNING name"
    return bool(db.query(asked, name))


if __name__ == "__main__":
    main()
