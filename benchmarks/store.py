"""How fast the store writes, acknowledges and reads. One command: `python benchmarks/store.py`.

Every figure stands beside a floor measured in the same run on the same disk: `json.dumps` and
`write` per step for writing, an fdatasync per 200 records for acknowledgements, `json.loads` per
line for reading. Ratios travel between machines, absolute figures do not. Steps are about 5 KB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramify.contracts.events import LeaseEvent, NodeEvent
from ramify.contracts.messages import Message, ToolCall, Usage
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome, Step
from ramify.engine.blobs import BlobStore
from ramify.engine.index import INDEX_FILE
from ramify.engine.journal import Journal
from ramify.engine.reading import JobRecord, Plan, read_events
from ramify.engine.store import Store

WORDS = ["the", "agent", "reads", "file,", "runs", "tests:", "assertion", "\n", "\t", "line", "é"]
PLAN = Plan(("bench:1",), 1, "bench", None, "local", 0)
JOB = JobRecord("bench", "hash", 0.0, PLAN, {}, {})
ROLLOUTS = 100
WRITERS = 200


def text(rng: random.Random, size: int) -> str:
    return " ".join(rng.choices(WORDS, k=size // 5))[:size]


def make_steps(count: int) -> list[NodeEvent]:
    rng = random.Random(0)
    steps: list[NodeEvent] = []
    for number in range(count):
        call = ToolCall(f"call-{number}", "shell", json.dumps({"command": text(rng, 300)}))
        asked = Message("assistant", text(rng, 700), (call,), reasoning=text(rng, 900))
        seen = Message("tool", text(rng, 2800), tool_call_id=call.id)
        step = Step((asked, seen), "shell", usage=Usage(9000, 300, 8000, 1), started_at=1.5)
        steps.append(NodeEvent(f"task-{number % ROLLOUTS}", 2.5, number, number - 1, step))
    return steps


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Cost(NamedTuple):
    """Seconds of wall time, and of processor time of all threads."""

    wall: float
    cpu: float


class Stopwatch:
    """Started when made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Cost:
        return Cost(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def floor_write(path: Path, steps: list[NodeEvent]) -> Cost:
    """`json.dumps` and one write per step; the records as plain dicts are made beforehand."""
    records = [msgspec.to_builtins(step) for step in steps]
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch = Stopwatch()
    for record in records:
        os.write(handle, json.dumps(record).encode() + b"\n")
    cost = watch.stop()
    os.close(handle)
    return cost


async def journal_write(path: Path, steps: list[NodeEvent]) -> Cost:
    """As the store's observer writes, with backpressure, until the last byte is written."""
    journal = Journal(path, BlobStore(path.parent / "blobs"))
    watch = Stopwatch()
    for step in steps:
        journal.append(step)
        await journal.ready()
    journal.close()
    return watch.stop()


async def journal_stalls(path: Path, steps: list[NodeEvent]) -> list[float]:
    """Seconds that single appends took on the caller's side, writer thread included."""
    journal = Journal(path, BlobStore(path.parent / "blobs"))
    taken: list[float] = []
    for step in steps:
        taken.append(timed(lambda step=step: journal.append(step)))
        await journal.ready()
    await journal.aclose()
    return taken


def floor_sync(path: Path, line: bytes, rounds: int) -> list[float]:
    """Seconds of an fdatasync after a write of as much as all waiting writers append."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        os.write(handle, line * WRITERS)
        os.fdatasync(handle)

    taken = [timed(work) for _ in range(rounds)]
    os.close(handle)
    return taken


async def acks(path: Path, records: list[NodeEvent], rounds: int) -> tuple[float, list[float]]:
    """Durable appends by many writers, each waiting for its own: seconds, and each one's."""
    journal = Journal(path)
    taken: list[float] = []

    async def writer(number: int) -> None:
        for turn in range(rounds):
            start = time.perf_counter()
            await journal.append_durable(records[(number + turn) % len(records)])
            taken.append(time.perf_counter() - start)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(writer(number))
    seconds = time.perf_counter() - start
    await journal.aclose()
    return seconds, taken


async def job(path: Path, steps: list[NodeEvent], each: int) -> tuple[float, list[float]]:
    """Whole rollouts through the store: lease, steps, durable result. Seconds, and per result."""
    store = await Store.create_or_open(path, JOB)
    taken: list[float] = []

    async def rollout(number: int) -> None:
        key, fence = f"task-{number}", store.next_fence()
        store.observer.emit(LeaseEvent(key, 0.0, 1, fence, 0))
        for step in steps[number * each : (number + 1) * each]:
            store.observer.emit(msgspec.structs.replace(step, rollout_id=key))
            await store.ready()
            await asyncio.sleep(0)
        done = RolloutResult(key, "bench", "bench:1", 0, 1, fence, Outcome.SCORED, "hash", 0, 1.0)
        start = time.perf_counter()
        await store.record(done)
        taken.append(time.perf_counter() - start)

    async def chain(first: int) -> None:
        for number in range(first, len(steps) // each, WRITERS):
            await rollout(number)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(WRITERS):
            group.create_task(chain(first))
    seconds = time.perf_counter() - start
    await store.aclose()
    return seconds, taken


def count(events: Iterable[object]) -> int:
    return sum(1 for _ in events)


def floor_read(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if json.loads(line))


def best(work: Callable[[Path], Cost], root: Path, repeats: int) -> Cost:
    """The cheapest of some rounds, wall and processor time apart: noise only ever adds."""
    taken: list[Cost] = []
    for number in range(repeats):
        folder = root / f"round-{number}"
        folder.mkdir()
        taken.append(work(folder))
        shutil.rmtree(folder)
    return Cost(min(cost.wall for cost in taken), min(cost.cpu for cost in taken))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3


def show(name: str, value: str, ratio: str = "") -> None:
    print(f"{name:<58}{value:>24}  {ratio}")


def writing(root: Path, steps: list[NodeEvent], repeats: int) -> None:
    size = sum(len(msgspec.json.encode(step)) for step in steps) / len(steps)
    floor = best(lambda folder: floor_write(folder / "f.jsonl", steps), root, repeats)
    ours = best(lambda folder: asyncio.run(journal_write(folder / "j.jsonl", steps)), root, repeats)
    (root / "stall").mkdir()
    stalls = asyncio.run(journal_stalls(root / "stall" / "j.jsonl", steps))
    n = len(steps)
    show(
        f"floor: json.dumps + write ({size / 1e3:.1f} KB a step)", f"{n / floor.wall:,.0f} steps/s"
    )
    show(
        "journal, unsynced (goal 40,000)",
        f"{n / ours.wall:,.0f} steps/s",
        f"{floor.wall / ours.wall:.2f} x floor, {n * size / ours.wall / 1e6:,.0f} MB/s",
    )
    show(
        "  processor time a step: floor / journal",
        f"{floor.cpu / n * 1e6:.1f} / {ours.cpu / n * 1e6:.1f} us",
        f"{floor.cpu / ours.cpu:.2f} x floor",
    )
    show(
        "  one append, caller's side: p50 / p99 / max",
        " / ".join(f"{quantile(stalls, share):.3f}" for share in (0.5, 0.99, 1)) + " ms",
    )


def acknowledging(root: Path, steps: list[NodeEvent], rounds: int) -> None:
    line = msgspec.json.encode(steps[0]) + b"\n"
    syncs = floor_sync(root / "sync.jsonl", line, rounds)
    seconds, taken = asyncio.run(acks(root / "acks.jsonl", steps, rounds))
    rate, floor = len(taken) / seconds, WRITERS * len(syncs) / sum(syncs)
    show(
        f"floor: write {WRITERS} lines + fdatasync, p50 / p99",
        f"{quantile(syncs, 0.5):.1f} / {quantile(syncs, 0.99):.1f} ms",
        f"{floor:,.0f} lines/s",
    )
    show(
        f"durable appends, {WRITERS} writers (goal 3,000)",
        f"{rate:,.0f} acks/s",
        f"{rate / floor:.2f} x floor",
    )
    show(
        "  acknowledged after p50 / p99 (goal p99 60 ms)",
        f"{quantile(taken, 0.5):.1f} / {quantile(taken, 0.99):.1f} ms",
    )
    seconds, taken = asyncio.run(job(root / "many", steps, 4))
    show(
        f"rollouts of 4 steps with a durable result, {WRITERS} at once",
        f"{len(taken) / seconds:,.0f} rollouts/s",
        f"record() p50 / p99: {quantile(taken, 0.5):.1f} / {quantile(taken, 0.99):.1f} ms",
    )


def reading(root: Path, steps: list[NodeEvent]) -> None:
    path = root / "read"
    each = len(steps) // ROLLOUTS
    asyncio.run(job(path, steps[: each * ROLLOUTS], each))
    lines = floor_read(path / "events-1.jsonl")
    floor = timed(lambda: floor_read(path / "events-1.jsonl"))
    building = timed(lambda: count(read_events(path, "nobody")))
    opening = timed(lambda: count(read_events(path, "nobody")))
    whole = timed(lambda: count(read_events(path)))
    one = timed(lambda: count(read_events(path, "task-7")))
    index = (path / INDEX_FILE).stat().st_size
    show("floor: json.loads of each line", f"{lines / floor:,.0f} events/s")
    show(
        "reading a job, typed and checked",
        f"{lines / whole:,.0f} events/s",
        f"{floor / whole:.2f} x floor",
    )
    show(
        "making the index",
        f"{lines / building:,.0f} events/s",
        f"{floor / building:.2f} x floor, {index / lines:.0f} B an event",
    )
    show("opening with the index there", f"{opening * 1e3:.1f} ms")
    show(
        f"reading one rollout of {ROLLOUTS} ({each} steps)",
        f"{one * 1e3:.1f} ms",
        f"{whole / one:.0f} x faster than the whole job",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: TMPDIR)")
    given = parser.parse_args()
    steps = make_steps(given.steps)
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="ramify-bench-") as folder:
        writing(Path(folder), steps, given.repeats)
        acknowledging(Path(folder), steps, max(10, given.steps // 400))
        reading(Path(folder), steps)


if __name__ == "__main__":
    main()
