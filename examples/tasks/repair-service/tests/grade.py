"""Talk to the service that the agent left running. Needs the level `live`."""

import http.client
import json
import os
import random
from pathlib import Path
from typing import Any

ROOT = os.environ.get("RAMIFY_ROOT", "")


def ask(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read(10_000))
    finally:
        connection.close()


def works(port: int) -> bool:
    draw = random.SystemRandom()
    if ask(port, "/health") != (200, {"status": "ok"}):
        return False
    for _ in range(5):
        celsius = draw.randrange(-4000, 4000) / 10
        status, body = ask(port, f"/convert?c={celsius}")
        if status != 200 or abs(body["f"] - (celsius * 9 / 5 + 32)) > 0.006:
            return False
    refused = [ask(port, path)[0] for path in ("/convert", "/convert?c=warm", "/nothing")]
    return refused == [400, 400, 404]


def main() -> None:
    try:
        reward = int(works(int(Path("run/port").read_text())))
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        print(f"the service does not answer as it should: {error!r}")
        reward = 0
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text(f"{reward}\n")


main()
