"""Two programs that run inside an office: one that writes as fast as it may, one that holds on.

`hammer.py write`: for each byte on standard input one numbered message is sent by mail, said in
chat and appended to a file; then its number is printed. `hammer.py hold`: keeps a nonce in memory,
a connection on which it goes on asking, and a chunked answer read by half; each line on
standard input is a wish: `nonce`, `ask` or `finish`.
"""

from __future__ import annotations

import http.client
import json
import secrets
import sys
from typing import Any

HEADERS = {"Authorization": "Bearer dana-desk-7f31", "Content-Type": "application/json"}
HELD_CHANNEL = "/channels/3"
SAID = ("first half", "second half", "the end")


class Line:
    """One connection to a service that is never closed and never opened again."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.auto_open = 0
        self.connection.connect()
        self.name: tuple[str, int] = self.connection.sock.getsockname()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        self.connection.request(method, path, json.dumps(body) if body else None, HEADERS)
        response = self.connection.getresponse()
        answer = json.load(response)
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer}")
        return answer


def write() -> None:
    mail, chat = Line(8101), Line(8104)
    number = 0
    with open("/srv/office/hammered.txt", "a", encoding="ascii") as file:
        while sys.stdin.buffer.read(1):
            number += 1
            text = f"number {number}"
            letter = {"to": ["bo@north.example"], "subject": text, "body": text}
            mail.ask("POST", "/messages", letter)
            chat.ask("POST", "/channels/1/messages", {"text": text})
            file.write(f"{number}\n")
            file.flush()
            print(number, flush=True)


def hold() -> None:
    nonce = secrets.token_hex(16)
    mail, chat, feed = Line(8101), Line(8104), Line(8104)
    begin = chat.ask("POST", f"{HELD_CHANNEL}/messages", {"text": SAID[0]})["id"]
    path = f"{HELD_CHANNEL}/stream?after={begin - 1}&limit={len(SAID)}"
    feed.connection.request("GET", path, None, HEADERS)
    half = feed.connection.getresponse()
    heard = [json.loads(half.readline())["text"]]
    print("holding", flush=True)
    for wish in sys.stdin:
        match wish.strip():
            case "nonce":
                print(nonce, flush=True)
            case "ask":
                mail.ask("GET", "/folders")
                print(mail.name[1], flush=True)
            case "finish":
                for text in SAID[1:]:
                    chat.ask("POST", f"{HELD_CHANNEL}/messages", {"text": text})
                heard += [json.loads(line)["text"] for line in half]
                print(json.dumps(heard), flush=True)
            case other:
                raise SystemExit(f"unknown wish {other!r}")


if __name__ == "__main__":
    {"write": write, "hold": hold}[sys.argv[1]]()
