#!/bin/sh
# Makes the database that is to be migrated.
exec python3 -I - <<'END'
import sqlite3

BOOKS = [
    ("Emma", "Jane Austen"),
    ("Emma ", "Jane Austen"),
    ("Solaris", "Stanislaw Lem"),
    (" Solaris", "Stanislaw Lem "),
    ("Middlemarch", "George Eliot"),
    ("Collected Poems", "W. H. Auden"),
    ("Collected Poems", "Philip Larkin"),
]
READERS = ["Ines", "Tomas", "Yuki", "O'Brien"]
database = sqlite3.connect("library.db")
with database:
    database.execute(
        "CREATE TABLE loans (id INTEGER PRIMARY KEY, book_title TEXT, book_author TEXT,"
        " reader TEXT, day TEXT)"
    )
    for number in range(1, 81):
        title, author = BOOKS[number * number * 3 % 7 if number % 2 else number % 7]
        day = f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
        row = (number * 5, title, author, READERS[number * 7 % 4], day)
        database.execute("INSERT INTO loans VALUES (?, ?, ?, ?, ?)", row)
database.close()
END
