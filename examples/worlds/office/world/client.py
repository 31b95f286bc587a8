"""A client of the office: `python3 client.py SERVICE METHOD PATH [JSON]`, or `call(...)`.

`@FILE` in place of JSON sends the bytes of a file. Acts as Dana, or as whom OFFICE_USER names (only
root of this machine may).
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from pathlib import Path
from typing import Any

_FIRST = int(os.environ.get("OFFICE_PORT", "8101"))
PORTS = {name: _FIRST + n for n, name in enumerate(("mail", "calendar", "files", "chat"))}
TOKEN = "dana-desk-7f31"


class RefusedError(Exception):
    """The service answered with an error; `status` is HTTP's."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


def call(service: str, method: str, path: str, body: Any = None) -> Any:
    """Ask a service: JSON goes in (bytes go as they are) and comes out. Raises RefusedError."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if user := os.environ.get("OFFICE_USER"):
        headers = {"X-Act-As": user}
    data = body
    if body is not None and not isinstance(body, bytes):
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", PORTS[service], timeout=60)
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        raw = response.read()
        is_json = response.headers.get("Content-Type") == "application/json"
        answer: Any = json.loads(raw) if raw and is_json else raw
        if response.status >= 400:
            raise RefusedError(response.status, answer)
        return answer
    finally:
        connection.close()


def main(service: str, method: str, path: str, body: str | None = None) -> None:
    """Ask, and print the answer."""
    given: Any = None
    if body is not None:
        given = Path(body[1:]).read_bytes() if body.startswith("@") else json.loads(body)
    try:
        answer = call(service, method, path, given)
    except RefusedError as error:
        sys.exit(str(error))
    sys.stdout.write(answer.decode() if isinstance(answer, bytes) else json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
