"""What a rollout leaves behind is durable before its result is."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partial
from pathlib import Path

import pytest
from job_records import JOB, lease, result

from ramify.contracts.errors import StoreError
from ramify.engine import store as store_module
from ramify.engine.flush import Flusher, sync_file_system
from ramify.engine.reading import read_results
from ramify.engine.store import Store


class Disk:
    """Notes what was written by the time of each sync. Waits for `go` in the first."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.synced: list[list[int]] = []
        self.broken = False
        self.go = threading.Event()

    def sync(self, handle: int) -> None:
        os.fstat(handle)
        before = list(self.written)
        assert self.go.wait(30)
        if self.broken:
            raise OSError(5, "Input/output error")
        self.synced.append(before)


async def test_those_who_ask_meanwhile_share_the_next_sync(tmp_path: Path) -> None:
    disk = Disk()
    flusher = Flusher(tmp_path, disk.sync)

    async def rollout(number: int) -> None:
        disk.written.append(number)
        await flusher.flush()
        assert any(number in covered for covered in disk.synced)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(rollout(number))
            await asyncio.sleep(0)
        disk.go.set()
    assert len(disk.synced) == 2, "the one under way may have begun too early, the next has all"
    await flusher.aclose()
    await flusher.aclose()


async def test_after_a_failed_sync_nothing_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    disk.go.set()
    monkeypatch.setattr(store_module, "Flusher", partial(Flusher, sync=disk.sync))
    store = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(store, "r")
    (store.rollout_dir("r") / "out.txt").write_text("all of it")
    disk.broken = True
    for _ in range(2):
        with pytest.raises(StoreError, match="Input/output error"):
            await store.record(result("r", fence))
        disk.broken = False  # what was lost stays lost
    assert store.results() == {}
    bare = lease(store, "nothing-to-lose")
    assert await store.record(result("nothing-to-lose", bare))
    await store.aclose()
    assert set(read_results(tmp_path / "job")) == {"nothing-to-lose"}
    store = await Store.create_or_open(tmp_path / "job", JOB)
    store.rollout_dir("r")
    assert await store.record(result("r", lease(store, "r")))
    await store.aclose()


def test_a_handle_that_cannot_be_synced_says_so() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_file_system(-1)
