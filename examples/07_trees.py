"""Read a finished job: its trees, its trajectories, and records for a trainer.

python examples/07_trees.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import ramify
from ramify.edges.outbound.verifiers import export_verifiers
from ramify.engine.reading import read_events, read_results
from ramify.kernel.trajectory import trajectories
from ramify.kernel.tree import tree_from_events

TASKS = Path(__file__).parent / "tasks"


def show(job: Path) -> None:
    for rollout_id, result in read_results(job).items():
        tree = tree_from_events(read_events(job, rollout_id))
        print(f"{rollout_id}: {len(tree)} nodes, {result.outcome}, reward {result.reward}")
        for path in trajectories(tree):
            print(f"  leaf {path.leaf}: {[step.action for step in path.steps]}")
    for record in export_verifiers(job):
        roles = [message["role"] for message in record["completion"]]
        print(f"record {record['example_id']}: reward {record['reward']}, roles {roles}")


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(limit=2, out=Path(folder) / "job")
        report = await ramify.run(TASKS, agent="oracle", sandbox=sandbox, options=options)
        show(report.path)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
