"""A rubric: weighted functions, a metric, a format reward, and one that compares siblings.

python examples/10_rubric.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ramify
from ramify.testing.scripted_model import ScriptedModel

ROWS = [
    {"task_id": "sums:small", "question": "2 + 2", "answer": "4", "digits": 1},
    {"task_id": "sums:wrong", "question": "1 + 1", "answer": "3", "digits": 1},
]


def right(completion: Sequence[ramify.Message], answer: str, parser: ramify.Parser) -> float:
    """Arguments are injected by name: here the messages, the task's target and the parser."""
    return float(parser.parse_answer(completion) == answer)


def too_long(completion: Sequence[ramify.Message], digits: int, parser: ramify.Parser) -> float:
    """`digits` is a column of the task."""
    return float(len(parser.parse_answer(completion) or "") > digits)


def shortest(completions: Sequence[Sequence[ramify.Message]]) -> list[float]:
    """A plural name makes it a function over siblings: the leaves of the same task."""
    lengths = [sum(len(message.content) for message in each) for each in completions]
    return [float(length == min(lengths)) for length in lengths]


def rubric() -> ramify.Rubric:
    parser = ramify.XMLParser(["answer"])
    made = ramify.Rubric([right, shortest], [1.0, 0.1], parser=parser, columns=["digits"])
    made.add(parser.get_format_reward(), weight=0.2)
    made.add(too_long, weight=0)  # a metric
    return made


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = ScriptedModel(["It is even: <answer>4</answer>"])
        options = ramify.RunOptions(model=model, repeats=2, out=Path(folder) / "job")
        tasks = ramify.from_dataset(ROWS, "sums")
        report = await ramify.run(
            tasks, agent="chat", sandbox=sandbox, reward=rubric(), options=options
        )
        for result in sorted(report.results, key=lambda r: (r.task_id, r.repeat)):
            print(f"{result.task_id} {result.reward:.1f}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
