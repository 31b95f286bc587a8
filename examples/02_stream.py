"""Stream results as they finish, with tasks drawn by weight, and watch events go by.

python examples/02_stream.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

import ramify
from ramify.contracts.events import PhaseEvent
from ramify.engine.sampler import TaskSampler

TASKS = Path(__file__).parent / "tasks"


def draw(task_ids: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Six draws with replacement; the first task comes three times as often."""
    return TaskSampler(task_ids, seed=7, weights={task_ids[0]: 3.0}, count=6)


def watch(event: PhaseEvent) -> None:
    if event.duration_sec is not None and event.phase == "verify":
        print(f"  {event.rollout_id} verified in {event.duration_sec:.2f} s")


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(limit=3, sampler=draw, out=Path(folder) / "job")
        stream = ramify.stream(TASKS, sandbox=sandbox, options=options, on_event=watch)
        async with aclosing(stream) as results:
            async for result in results:
                print(f"{result.task_id} #{result.repeat}: {result.reward}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
