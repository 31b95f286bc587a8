"""What a job of very many rollouts must not do again for each of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from job_records import JOB, lease, result

from ramify.contracts.result import RolloutResult
from ramify.engine.reading import JobReader
from ramify.engine.revisions import LeafScore, Revised, Revision, Revisions, read_revisions
from ramify.engine.store import Store

MANY = 40_000


class Counted(Mapping[str, RolloutResult]):
    """Results that count how often somebody looks through all of them."""

    def __init__(self, results: dict[str, RolloutResult]) -> None:
        self.results, self.passes = results, 0

    def __getitem__(self, key: str) -> RolloutResult:
        return self.results[key]

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)


def of_task(number: int, repeat: int) -> RolloutResult:
    one = result(f"r{number}-{repeat}", number + 1)
    return msgspec.structs.replace(one, task_id=f"set:{number}", repeat=repeat)


async def test_revisions_of_many_tasks_are_one_pass_over_the_results(tmp_path: Path) -> None:
    tasks, repeats = 40, 3
    results = {
        one.rollout_id: one
        for number in range(tasks)
        for one in (of_task(number, repeat) for repeat in range(repeats))
    }
    revisions = Revisions(tmp_path)
    for number in range(tasks):
        mine = [of_task(number, repeat) for repeat in range(repeats)]
        scored = [msgspec.structs.replace(one, reward=0.5) for one in mine]
        await revisions.record(
            Revised(
                f"set:{number}",
                1.0,
                tuple(Revision(one, (LeafScore(1, one.outcome),)) for one in scored),
                tuple((one.rollout_id, one.fence) for one in mine),
            )
        )
    await revisions.aclose()
    counted = Counted(results)
    found = read_revisions(tmp_path, counted)
    assert {key: one.result.reward for key, one in found.items()} == dict.fromkeys(results, 0.5)
    assert counted.passes == 1
    without = {key: one for key, one in results.items() if key != "r7-1"}
    assert len(read_revisions(tmp_path, without)) == (tasks - 1) * repeats, "whole or not at all"


async def test_a_reader_takes_in_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    for number in range(MANY):
        lease(store, f"r{number}")
    await store.record(result("r0", lease(store, "r0")))
    reader = JobReader(tmp_path / "job", revised=False)
    assert await store.record(result("r1", lease(store, "r1")))
    tracemalloc.start()
    try:
        reader.update()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(reader.results) == {"r0", "r1"}
    # The file is read in chunks of 1 MiB; a word on each other rollout would be more than another.
    assert taken < 2 << 20
    await store.aclose()
