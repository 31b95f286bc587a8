"""Grade durations.py on the hidden fixtures and on durations drawn anew each time."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = os.environ.get("RAMIFY_ROOT", "")
CANDIDATE = Path("durations.py")


def drawn() -> list[tuple[str, int]]:
    draw = random.SystemRandom()
    cases: list[tuple[str, int]] = []
    for _ in range(10):
        days, hours, minutes = (draw.randrange(1, 100) for _ in range(3))
        cases.append((f"{days}d{hours}h{minutes}m", days * 86400 + hours * 3600 + minutes * 60))
    return cases


def answers(texts: list[str]) -> list[Any]:
    nothing: list[Any] = ["no answer"] * len(texts)
    if CANDIDATE.is_symlink() or not CANDIDATE.is_file():
        return nothing
    try:
        done = subprocess.run(  # noqa: TID251  (a script of its own, without an event loop)
            [sys.executable, "-I", f"{ROOT}/tests/call.py"],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            timeout=20,
        )
        given: list[Any] = list(json.loads(done.stdout))
    except (TypeError, ValueError, subprocess.TimeoutExpired):
        return nothing
    return given if len(given) == len(texts) else nothing


def main() -> None:
    hidden: list[tuple[str, int | None]] = [
        (text, seconds)
        for text, seconds in json.loads(Path(f"{ROOT}/tests/fixtures.json").read_bytes())
    ]
    cases = [*hidden, *drawn()]
    given = answers([text for text, _ in cases])
    right = [
        type(answer) is type(expected) and answer == expected
        for answer, (_, expected) in zip(given, cases, strict=True)
    ]
    reward = {
        "reward": float(all(right)),
        "metrics": {
            "valid": sum(r for r, (_, e) in zip(right, cases, strict=True) if e is not None),
            "refused": sum(r for r, (_, e) in zip(right, cases, strict=True) if e is None),
            "cases": len(cases),
        },
    }
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.json").write_text(json.dumps(reward))
    print(reward["metrics"])


main()
