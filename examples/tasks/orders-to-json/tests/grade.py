"""Compare customers.json with the expected object; the order of keys does not matter."""

import json
import os
from pathlib import Path
from typing import Any

ROOT = os.environ.get("RAMIFY_ROOT", "")
ANSWER = Path("customers.json")


def answer() -> Any:
    if ANSWER.is_symlink() or not ANSWER.is_file() or ANSWER.stat().st_size > 1_000_000:
        return None
    try:
        return json.loads(ANSWER.read_bytes())
    except (ValueError, RecursionError):
        return None


def same(given: Any, expected: Any) -> bool:
    """Equal, also in type: 1 is neither 1.0 nor true."""
    return json.dumps(given, sort_keys=True) == json.dumps(expected, sort_keys=True)


def main() -> None:
    expected: Any = json.loads(Path(f"{ROOT}/tests/expected.json").read_bytes())
    reward = int(same(answer(), expected))
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text(f"{reward}\n")
    if not reward:
        print("customers.json is missing or not the expected object")


main()
