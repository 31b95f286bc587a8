"""Kills a writing store many times at random moments and checks what it left. A program.

Usage: killed_writer.py DIRECTORY KILLS SEED. Prints one JSON object. Each round forks a process
that opens the job directory and records rollouts; the parent reads acknowledgements from a pipe,
kills the child with SIGKILL at a random moment, and then reads the directory as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from ramify.contracts.events import LeaseEvent, NodeEvent
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome, Step
from ramify.engine.reading import JobRecord, Plan, read_events, read_results
from ramify.engine.store import Store

STEPS = 3
JOB = JobRecord("job", "hash", 1.0, Plan(("set:1",), 1, "nop", None, "local", 0), {}, {})


async def write(path: Path, acks: int, seed: int) -> None:
    rng = random.Random(seed)
    store = await Store.create_or_open(path, JOB)

    async def rollout(number: int) -> None:
        key = f"r-{store.next_fence()}-{number}"
        fence = store.next_fence()
        store.observer.emit(LeaseEvent(key, 1.0, 1, fence, 0))
        for node in range(STEPS):
            size = rng.choice([10, 3_000, 20_000])
            text = f"{key} {node} " + rng.randbytes(size // 2).hex()
            store.observer.emit(NodeEvent(key, 1.0, node, node - 1, Step((Message("tool", text),))))
            await store.ready()
        done = RolloutResult(key, "job", "set:1", 0, 1, fence, Outcome.SCORED, "hash", 0, 1.0)
        assert await store.record(done)
        os.write(acks, f"{key}\n".encode())

    async def chain(number: int) -> None:
        while True:
            await rollout(number)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(chain(number))


def child(path: Path, acks: int, seed: int) -> None:
    try:
        asyncio.run(write(path, acks, seed))
    except BaseException as error:
        os.write(acks, f"!{error!r}\n".encode())
    finally:
        os._exit(1)


def one_round(path: Path, seed: int, rng: random.Random) -> list[str]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(path, writer, seed)
    os.close(writer)
    received = b""
    # One in four is killed while it opens the directory, the others some time after.
    if rng.random() > 0.25:
        received = os.read(reader, 65536)
        assert received
    deadline = time.monotonic() + rng.random() * 0.03
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            received += os.read(reader, 65536)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while chunk := os.read(reader, 65536):
        received += chunk
    os.close(reader)
    return received.decode().split("\n")[:-1]


def main() -> None:
    path, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    acked: list[str] = []
    lost: list[str] = []
    wrong: list[str] = []
    for number in range(kills):
        fresh = one_round(path, seed + number, rng)
        wrong += [line for line in fresh if line.startswith("!")]
        acked += fresh
        if not (path / "job.json").exists():
            continue
        results = read_results(path)
        lost += [key for key in acked if key not in results]
        for key in fresh[:2] + fresh[-2:]:
            nodes = [e for e in read_events(path, key) if isinstance(e, NodeEvent)]
            texts = [e.step.messages[0].content for e in nodes if e.step]
            if not all(t.startswith(f"{key} {i} ") for i, t in enumerate(texts)):
                wrong.append(f"texts of {key}")
            if len(texts) != STEPS:
                lost.append(f"nodes of {key}")
    everything = sum(1 for _ in read_events(path))
    files = sorted(path.glob("events-*.jsonl"))
    torn = sum(not f.read_bytes().endswith(b"\n") for f in files if f.stat().st_size)
    counts = {"kills": kills, "acked": len(acked), "torn": torn, "events": everything}
    print(json.dumps({**counts, "lost": lost, "wrong": wrong}))


if __name__ == "__main__":
    main()
