"""Tasks from rows of data, an agent that is any command line, and a plain function as reward.

python examples/03_function_reward.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ramify

ROWS = [
    {"task_id": "sums:small", "question": "2 + 2", "answer": "4"},
    {"task_id": "sums:large", "question": "20 * 40 + 1", "answer": "801"},
    {"task_id": "sums:wrong", "question": "1 + 1", "answer": "3"},
]


def exact(completion: Sequence[ramify.Message], answer: str) -> float:
    """1.0 when the last message is the expected answer. Arguments are injected by name."""
    return float(completion[-1].content.strip() == answer)


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(
            agent_options={"command": "sh -c 'read sum; echo $(($sum))'"},
            out=Path(folder) / "job",
            image="python:3.12-slim" if sandbox == "docker" else None,
        )
        report = await ramify.run(
            ramify.from_dataset(ROWS, "sums"),
            agent="program",
            sandbox=sandbox,
            reward=exact,
            options=options,
        )
        for result in sorted(report.results, key=lambda r: r.task_id):
            print(f"{result.task_id:<12} {result.reward}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
