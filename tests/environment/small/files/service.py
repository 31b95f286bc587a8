"""A small service for tests: notes in SQLite (WAL), and a log of actions in memory alone."""

import json
import os
import signal
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NAME, PORT, PLACE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(os.path.dirname(PLACE), exist_ok=True)
LOG = []


def database():
    connection = sqlite3.connect(PLACE, timeout=10, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
    return connection


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if url.path == "/health":
            self.say({"ok": True, "nonce": self.headers.get("X-Ramify-Nonce")})
        elif url.path == "/notes":
            rows = database().execute("SELECT text FROM notes ORDER BY id").fetchall()
            self.say([row[0] for row in rows])
        elif url.path == "/log":
            self.say(LOG)
        elif url.path == "/environ":
            self.say(os.environ.get(asked["name"][0]))
        else:
            self.send_error(404)

    def do_POST(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path == "/add":
            database().execute("INSERT INTO notes (text) VALUES (?)", (body.decode(),))
            LOG.append(f"add {body.decode()}")
            self.say({"log": len(LOG)})
        elif url.path == "/_log/save":
            self.say(LOG)
        elif url.path == "/_log/load":
            LOG[:] = json.loads(body)
            self.say({"log": len(LOG)})
        elif url.path == "/_log/change":
            LOG.append("changed by a check")
            self.say({"log": len(LOG)})
        elif url.path == "/crash":
            print(f"{NAME} crashes as it was told", flush=True)
            os._exit(3)
        else:
            self.send_error(404)

    def say(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, form, *arguments):
        print(NAME, form % arguments, flush=True)


def leave(number, frame):
    print(f"{NAME} leaves", flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, leave)
database().close()
print(f"{NAME} serves on {PORT}", flush=True)
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
