"""Run the example tasks with their reference solutions, and read the result.

python examples/01_run.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import ramify

TASKS = Path(__file__).parent / "tasks"


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(limit=3, out=Path(folder) / "job")
        report = await ramify.run(TASKS, agent="oracle", sandbox=sandbox, options=options)
        for result in report.results:
            print(f"{result.task_id:<24} {result.outcome:<10} {result.reward}")
        print(f"mean reward {report.summary.mean}, standard error {report.summary.stderr}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
