"""Branch a live rollout: three children of one state, side by side; go on with the best.

Each child has its own copy of everything. The tree says what the state was worth before it was
known which child would win.

python examples/09_branch.py [local|docker]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import ramify

TASK = Path(__file__).parent / "tasks" / "top-clients"
COUNT = "awk '$(NF-1) >= 400 { n[$1]++ } END { for (ip in n) print n[ip], ip }' access.log"
SORTED = f"{COUNT} | LC_ALL=C sort -k1,1nr -k2,2"
IDEAS = {
    "all of them": f"{SORTED} > top.txt",
    "the first five": f"{SORTED} | head -n 5 > top.txt",
    "the last five": f"{SORTED} | tail -n 5 > top.txt",
}


async def attempt(child: ramify.LiveRollout, idea: str):
    """One continuation: act, keep the state for later, then let it be scored."""
    sandbox = await child.sandbox()
    await sandbox.exec(IDEAS[idea])
    kept = await child.checkpoint()
    found = await child.score()
    return found.reward or 0.0, idea, kept


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(out=Path(folder) / "job")
        async with ramify.open_rollout(
            TASK, agent="nop", sandbox=sandbox, options=options
        ) as rollout:
            await rollout.prompt()
            children = await rollout.branch(len(IDEAS), reason="ideas")
            async with asyncio.TaskGroup() as group:
                pairs = zip(children, IDEAS, strict=True)
                tasks = [group.create_task(attempt(*pair)) for pair in pairs]
            scores = [task.result() for task in tasks]
            for reward, idea, _ in scores:
                print(f"{reward:.1f}  {idea}")
            reward, idea, kept = max(scores, key=lambda score: score[0])
            winner = await rollout.restore(kept, reason="winner")
            seen = await (await winner.sandbox()).exec("wc -l < top.txt")
            print(f"going on with {idea!r}: top.txt has {seen.stdout.decode().strip()} lines")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
