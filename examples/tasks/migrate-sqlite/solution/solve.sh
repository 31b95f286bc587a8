#!/bin/sh
set -e
python3 -I - <<'END'
import sqlite3

database = sqlite3.connect("library.db")
database.executescript(
    """
    BEGIN;
    ALTER TABLE loans RENAME TO old_loans;
    CREATE TABLE books (
        id INTEGER PRIMARY KEY, title TEXT NOT NULL, author TEXT NOT NULL, UNIQUE (title, author)
    );
    CREATE TABLE loans (
        id INTEGER PRIMARY KEY, book_id INTEGER NOT NULL REFERENCES books(id),
        reader TEXT NOT NULL, day TEXT NOT NULL
    );
    INSERT INTO books (title, author)
        SELECT DISTINCT trim(book_title), trim(book_author) FROM old_loans;
    INSERT INTO loans
        SELECT o.id, b.id, o.reader, o.day FROM old_loans o
        JOIN books b ON b.title = trim(o.book_title) AND b.author = trim(o.book_author);
    DROP TABLE old_loans;
    COMMIT;
    """
)
database.close()
END
