"""Compare the repaired functions with results computed here, on inputs drawn anew each time."""

import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = os.environ.get("RAMIFY_ROOT", "")
CANDIDATE = Path("stats.py")


def expected(name: str, values: list[int], p: int) -> float:
    if name == "median":
        return statistics.median(values)
    if name == "mode":
        return min(statistics.multimode(values))
    return sorted(values)[-(-len(values) * p // 100) - 1]


def passes(name: str, cases: list[tuple[list[int], int]]) -> bool:
    calls: list[list[Any]] = [
        [values, p] if name == "percentile" else [values] for values, p in cases
    ]
    try:
        done = subprocess.run(  # noqa: TID251  (a script of its own, without an event loop)
            [sys.executable, "-I", f"{ROOT}/tests/call.py"],
            input=json.dumps([name, calls]),
            capture_output=True,
            text=True,
            timeout=10,
        )
        answer: Any = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return False
    wanted = [
        {"result": expected(name, values, p), "arguments": call}
        for (values, p), call in zip(cases, calls, strict=True)
    ]
    return bool(answer == wanted)


def main() -> None:
    draw = random.SystemRandom()
    metrics: dict[str, float] = {}
    there = CANDIDATE.is_file() and not CANDIDATE.is_symlink()
    for name in ("median", "mode", "percentile"):
        cases = [
            ([draw.randrange(9) for _ in range(size)], draw.randrange(1, 101))
            for size in (1, 6, 9, 20)
        ]
        # Three that the original gets wrong, whatever was drawn.
        cases += [([2, 2, 1, 1], 50), ([5, 1, 4, 2], 50), ([3, 1, 2], 100)]
        metrics[name] = float(there and passes(name, cases))
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    reward = float(all(metrics.values()))
    (logs / "reward.json").write_text(json.dumps({"reward": reward, "metrics": metrics}))
    print(metrics)


main()
