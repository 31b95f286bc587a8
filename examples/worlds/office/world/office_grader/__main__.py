"""Grade one task, as root: `python3 -m office_grader TASK`. Writes the reward for the verifier."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .evidence import gather
from .tasks import GRADERS


def main(task: str) -> None:
    """Say every problem, and write 1 or 0. A service that does not answer has no reward."""
    found = gather(task)
    GRADERS[task](found)
    problems = found.finish()
    for problem in problems:
        print(f"- {problem}")
    logs = Path(f"{os.environ.get('RAMIFY_ROOT', '')}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text("0\n" if problems else "1\n")


main(sys.argv[1])
