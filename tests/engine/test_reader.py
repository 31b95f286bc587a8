"""A reader that follows a job, and several that read and save its index at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from job_records import JOB, lease, node, result, texts

from ramify.engine.reading import JobReader
from ramify.engine.store import Store


async def finish(store: Store, key: str, *words: str) -> None:
    fence = lease(store, key)
    for number, word in enumerate(words):
        store.observer.emit(node(key, number, word))
    assert await store.record(result(key, fence))


async def test_a_reader_follows_a_job_that_runs(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    await finish(store, "r0", "a", "b")
    reader = JobReader(tmp_path / "job")
    for number in range(1, 40):
        key = f"r{number}"
        assert key not in reader.results
        await finish(store, key, f"{number}.0", f"{number}.1")
        reader.update()
        assert texts(reader.events(key)) == [f"{number}.0", f"{number}.1"]
        assert texts(reader.events("r0")) == ["a", "b"]
    assert len(reader.results) == 40
    await store.aclose()


async def test_readers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "job"
    store = await Store.create_or_open(path, JOB)
    await finish(store, "r0", "a")

    def read(number: int) -> list[list[str]]:
        reader = JobReader(path)  # extends the index, and saves it when that is worth it
        return [texts(reader.events(key)) for key in sorted(reader.results)]

    async def keep_reading(number: int) -> None:
        for _ in range(15):
            found = await asyncio.to_thread(read, number)
            assert all(found), "every rollout that has a result has its events"

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(keep_reading(number)) for number in range(6)]
        number = 0
        while not all(reader.done() for reader in readers):
            number += 1
            await finish(store, f"r{number}", "x", "y")
    await store.aclose()
