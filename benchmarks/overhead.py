"""What a rollout costs besides its own work: eight trivial tasks at concurrency 4.

    python benchmarks/overhead.py [ROUNDS]

Measured against its floor in the same run, in turns: `docker run --rm IMAGE sh -c …`, eight times
at concurrency 4. Ramify does more: it gives each rollout a supervised sandbox without network,
provisions, lets the agent act, runs the tests, and records everything durably. At level
`filesystem`, the default where nothing is known of a task, the tests run on the agent's file system
with none of its processes; at level `outputs` they get a second, fresh sandbox, so that there are
twice as many containers as in the floor.
Goals: on docker at most twice the floor at the default level, on local less than the floor at any;
`ramify --version` within 250 ms and `import ramify` within 150 ms (the least of the rounds counts:
it is a question of work, not of what else the machine does).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import ramify
from ramify.contracts.task import IsolationLevel

IMAGE = "debian:bookworm"
TASKS, CONCURRENCY = 8, 4
COMMAND = "mkdir -p /app && cd /app && echo 42 > answer.txt && test $(cat answer.txt) = 42"
TOML = f"""
version = "1.0"
[environment]
docker_image = "{IMAGE}"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
outputs = ["answer.txt"]
"""
TEST_SH = """#!/bin/sh
if [ "$(cat answer.txt)" = 42 ]; then r=1; else r=0; fi
echo $r > "$RAMIFY_ROOT/logs/verifier/reward.txt"
"""
Contest = Callable[[Path], Awaitable[None]]


def make_tasks(root: Path) -> Path:
    for number in range(TASKS):
        files = {
            "task.toml": TOML,
            "instruction.md": "Write 42 into answer.txt.\n",
            "tests/test.sh": TEST_SH,
            "solution/solve.sh": "echo 42 > answer.txt\n",
        }
        for name, text in files.items():
            place = root / f"task-{number}" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    return root


async def raw_docker(_: Path) -> None:
    """The floor."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one() -> None:
        async with slots:
            process = await asyncio.create_subprocess_exec(
                "docker", "run", "--rm", "--network", "none", IMAGE, "sh", "-c", COMMAND
            )
            if await process.wait() != 0:
                raise SystemExit("docker run failed")

    async with asyncio.TaskGroup() as group:
        for _number in range(TASKS):
            group.create_task(one())


def ours(sandbox: str, level: IsolationLevel, tasks: Path) -> Contest:
    async def contest(out: Path) -> None:
        options = ramify.RunOptions(out=out, concurrency=CONCURRENCY, isolation=level)
        report = await ramify.run(tasks, agent="oracle", sandbox=sandbox, options=options)
        if report.summary.mean != 1.0 or report.summary.counted != TASKS:
            raise SystemExit(f"{sandbox}: {report.summary}")
        seconds = report.summary.seconds
        PHASES[f"ramify {sandbox}, {level}"] = {k: v / TASKS for k, v in seconds.items()}

    return contest


PHASES: dict[str, dict[str, float]] = {}
"""Contest → mean seconds of a rollout by phase, of the latest round."""


def starting(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


async def main(rounds: int) -> int:
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as folder:
        place = Path(folder)
        os.environ["RAMIFY_HOME"] = str(place / "home")
        tasks = make_tasks(place / "tasks")
        contests: dict[str, Contest] = {"docker run (floor)": raw_docker} if has_docker() else {}
        for sandbox in ("docker", "local") if contests else ("local",):
            for level in (IsolationLevel.FILESYSTEM, IsolationLevel.OUTPUTS):
                contests[f"ramify {sandbox}, {level}"] = ours(sandbox, level, tasks)
        for turn in range(-1, rounds):  # turn -1 warms up: runtime volume, image, page cache
            for number, (name, contest) in enumerate(contests.items()):
                began = time.perf_counter()
                await contest(place / f"{turn}-{number}")
                if turn >= 0:
                    times[name].append(time.perf_counter() - began)
            for _again in range(3):
                times["python -c pass (floor)"].append(starting("-c", "pass"))
                times["import ramify"].append(starting("-c", "import ramify"))
                times["ramify --version"].append(starting("-m", "ramify.cli.main", "--version"))
    return report(times)


def has_docker() -> bool:
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True)
    if done.returncode != 0:
        print(f"no Docker engine with the image {IMAGE}: only `local` is measured")
    return done.returncode == 0


def report(times: dict[str, list[float]]) -> int:
    found = {name: statistics.median(values) for name, values in times.items()}
    floor = found.get("docker run (floor)")
    for name, seconds in found.items():
        values = times[name]
        spread = f"{min(values) * 1000:.0f}..{max(values) * 1000:.0f}"
        ratio = f"  {seconds / floor:5.2f} of the floor" if floor and "ramify " in name else ""
        ratio = "" if "--version" in name or name.startswith("import") else ratio
        print(f"{name:<26}{seconds * 1000:8.0f} ms  ({spread}){ratio}")
        if phases := PHASES.get(name):
            listed = ", ".join(f"{phase} {took * 1000:.0f}" for phase, took in phases.items())
            print(f"{'':<26}ms per rollout: {listed}")
    goals = {
        "import ramify ≤ 150 ms": min(times["import ramify"]) <= 0.150,
        "ramify --version ≤ 250 ms": min(times["ramify --version"]) <= 0.250,
    }
    if floor:
        goals["docker ≤ 2 × floor at the default level"] = (
            found["ramify docker, filesystem"] <= 2 * floor
        )
        goals["local < floor, two sandboxes per task"] = found["ramify local, outputs"] < floor
    for goal, held in goals.items():
        print(f"{'held  ' if held else 'MISSED'}  {goal}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
