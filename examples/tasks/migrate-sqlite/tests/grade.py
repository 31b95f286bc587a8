"""Open a copy of the migrated database and compare it with the loans as they were made."""

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

ROOT = os.environ.get("RAMIFY_ROOT", "")
ANSWER = Path("library.db")
BOOKS = [
    ("Emma", "Jane Austen"),
    ("Emma", "Jane Austen"),
    ("Solaris", "Stanislaw Lem"),
    ("Solaris", "Stanislaw Lem"),
    ("Middlemarch", "George Eliot"),
    ("Collected Poems", "W. H. Auden"),
    ("Collected Poems", "Philip Larkin"),
]
READERS = ["Ines", "Tomas", "Yuki", "O'Brien"]


def expected_loans() -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for number in range(1, 81):
        title, author = BOOKS[number * number * 3 % 7 if number % 2 else number % 7]
        day = f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
        rows.append((number * 5, title, author, READERS[number * 7 % 4], day))
    return rows


def is_migrated(database: sqlite3.Connection) -> bool:
    kinds = database.execute(
        "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    ).fetchall()
    if [row for row in kinds if row[0] != "index"] != [("table", "books"), ("table", "loans")]:
        return False
    loans = database.execute(
        "SELECT l.id, b.title, b.author, l.reader, l.day"
        " FROM loans l JOIN books b ON b.id = l.book_id ORDER BY l.id LIMIT 1000"
    ).fetchall()
    columns = [
        [(row[1], row[2], bool(row[3])) for row in database.execute(f"PRAGMA table_info({name})")]
        for name in ("books", "loans")
    ]
    wanted = [
        [("id", "INTEGER", False), ("title", "TEXT", True), ("author", "TEXT", True)],
        [
            ("id", "INTEGER", False),
            ("book_id", "INTEGER", True),
            ("reader", "TEXT", True),
            ("day", "TEXT", True),
        ],
    ]
    books = database.execute("SELECT title, author FROM books ORDER BY 1, 2 LIMIT 1000").fetchall()
    references = [row[2:5] for row in database.execute("PRAGMA foreign_key_list(loans)")]
    unique = [
        [column[2] for column in database.execute(f"PRAGMA index_info({index[1]})")]
        for index in database.execute("PRAGMA index_list(books)")
        if index[2] and index[1].replace("_", "").isalnum()
    ]
    return (
        loans == expected_loans()
        and columns == wanted
        and books == sorted(set(BOOKS))
        and references == [("books", "book_id", "id")]
        and any(sorted(names) == ["author", "title"] for names in unique)
    )


def main() -> None:
    reward = 0
    if ANSWER.is_file() and not ANSWER.is_symlink():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(ANSWER, f"{folder}/library.db")
            database = sqlite3.connect(f"{folder}/library.db")
            try:
                reward = int(is_migrated(database))
            except sqlite3.Error as error:
                print(f"not the database that was asked for: {error}")
            finally:
                database.close()
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text(f"{reward}\n")


main()
