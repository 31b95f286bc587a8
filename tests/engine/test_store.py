"""The job directory: one owner, one result per rollout, and reading what counts."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_records import JOB, lease, node, result, texts

from ramify.contracts.errors import StoreError, UsageError
from ramify.contracts.events import (
    LogEvent,
)
from ramify.contracts.messages import Usage
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome
from ramify.engine.reading import read_events, read_job, read_results
from ramify.engine.store import Store

# --- the directory ---------------------------------------------------------------------------


async def test_a_job_is_kept_as_it_was_created(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "job"
    store = await Store.create_or_open(path, JOB)
    assert store.path == path
    await store.aclose()
    await store.aclose()
    again = await Store.create_or_open(path, msgspec.structs.replace(JOB, job_id="other"))
    assert again.job == JOB == read_job(path)
    await again.aclose()
    assert sorted(p.name for p in path.iterdir()) == [
        "events-1.jsonl",
        "events-2.jsonl",
        "job.json",
        "lock",
        "results.jsonl",
    ]


async def test_another_configuration_is_refused_and_told_apart(tmp_path: Path) -> None:
    await (await Store.create_or_open(tmp_path / "job", JOB)).aclose()
    other = msgspec.structs.replace(
        JOB,
        config_hash="hash-2",
        plan=msgspec.structs.replace(JOB.plan, repeats=5),
        config={"model": {"name": "n"}, "new": True},
    )
    with pytest.raises(UsageError) as caught:
        await Store.create_or_open(tmp_path / "job", other)
    for part in (
        "config.model.name was 'm', now 'n'",
        "config.new was (not set), now True",
        "plan.repeats was 2, now 5",
        "--out",
    ):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="hash was hash-1, now hash-3"):
        await Store.create_or_open(
            tmp_path / "job", msgspec.structs.replace(JOB, config_hash="hash-3")
        )
    await (await Store.create_or_open(tmp_path / "job", JOB)).aclose()  # nothing was left locked


async def test_other_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"letter\.txt.*--out"):
        await Store.create_or_open(tmp_path / "home", JOB)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]
    with pytest.raises(UsageError, match="not a directory"):
        await Store.create_or_open(tmp_path / "home" / "letter.txt", JOB)
    with pytest.raises(UsageError, match="not a job directory"):
        read_job(tmp_path)
    with pytest.raises(UsageError, match="no such directory"):
        list(read_events(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    await (await Store.create_or_open(tmp_path / "empty", JOB)).aclose()


async def test_a_damaged_or_newer_job_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await (await Store.create_or_open(path, JOB)).aclose()
    content = (path / "job.json").read_bytes()
    (path / "job.json").write_bytes(content[:-20])
    with pytest.raises(StoreError, match=r"job\.json: is damaged"):
        await Store.create_or_open(path, JOB)
    (path / "job.json").write_bytes(content.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(UsageError, match="newer"):
        read_job(path)


HOLDER = """
import asyncio, sys
from pathlib import Path
import msgspec
from ramify.engine.reading import JobRecord
from ramify.engine.store import Store
async def main():
    job = msgspec.json.decode(sys.argv[2], type=JobRecord)
    store = await Store.create_or_open(Path(sys.argv[1]), job)
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_one_engine_at_a_time_and_free_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "job"
    job = msgspec.json.encode(JOB).decode()
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(path), job, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match=rf"open in process {holder.pid} on .*--out"):
            await Store.create_or_open(path, JOB)
        assert read_job(path) == JOB  # readers need no lock
    finally:
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
    store = await Store.create_or_open(path, JOB)
    with pytest.raises(UsageError, match=rf"process {os.getpid()}"):
        await Store.create_or_open(path, JOB)
    await store.aclose()


async def test_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    for _ in range(5):
        opening = asyncio.create_task(Store.create_or_open(tmp_path / "job", JOB))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    await (await Store.create_or_open(tmp_path / "job", JOB)).aclose()


async def test_rollout_directories_stay_inside(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    assert store.rollout_dir("task-1a2b-0") == tmp_path / "job" / "rollouts" / "task-1a2b-0"
    assert store.rollout_dir("task-1a2b-0").is_dir()
    for name in ("", "..", ".", "a/b", "../x", "a\0", "-x", "x" * 300, "a\n"):
        with pytest.raises(UsageError, match="cannot name a directory"):
            store.rollout_dir(name)
    await store.aclose()


# --- results ---------------------------------------------------------------------------------


async def test_a_result_counts_once(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(store, "r")
    assert await store.record(result("r", fence, reward=0.5))
    assert read_results(tmp_path / "job")["r"].reward == 0.5  # durable when it returns
    assert not await store.record(result("r", fence, reward=0.9))
    assert not await store.record(result("r", lease(store, "r"), reward=0.9))
    assert store.results()["r"].reward == 0.5
    assert store.finished() == {"r"}
    await store.aclose()
    logged = [e for e in read_events(tmp_path / "job", "r") if isinstance(e, LogEvent)]
    assert logged[0].fields["reason"] == "a final result stands"


async def test_only_the_newest_lease_counts(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    old, new = lease(store, "r"), lease(store, "r")
    assert not await store.record(result("r", old))
    assert not await store.record(result("never leased", new))
    assert await store.record(result("r", new))
    await store.aclose()
    again = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(again, "r2")
    assert not await again.record(result("r2", new))
    await again.aclose()
    third = await Store.create_or_open(tmp_path / "job", JOB)
    assert not await third.record(result("r2", fence))  # a worker of an engine that is gone
    assert third.next_fence() > fence > new > old
    assert third.finished() == {"r"}
    await third.aclose()


async def test_delivered_twice_at_once_counts_once(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(store, "r")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.record(result("r", fence))) for _ in range(5)]
    assert sorted(task.result() for task in tasks) == [False] * 4 + [True]
    await store.aclose()
    assert (tmp_path / "job" / "results.jsonl").read_bytes().count(b"\n") == 1


async def test_a_cancelled_rollout_runs_again(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    assert await store.record(result("r", lease(store, "r"), Outcome.CANCELLED, None))
    assert store.finished() == frozenset()
    await store.aclose()
    store = await Store.create_or_open(tmp_path / "job", JOB)
    assert store.results()["r"].outcome is Outcome.CANCELLED
    assert await store.record(result("r", lease(store, "r")))
    await store.aclose()
    assert read_results(tmp_path / "job")["r"].outcome is Outcome.SCORED


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_a_result_without_a_finite_number_is_refused(tmp_path: Path, value: float) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(store, "r")
    with pytest.raises(StoreError, match="reward is not a finite number"):
        await store.record(result("r", fence, reward=value))
    dear = msgspec.structs.replace(result("r", fence), usage=Usage(cost_usd=value))
    with pytest.raises(StoreError, match="cost is not a finite number"):
        await store.record(dear)
    assert await store.record(result("r", fence))
    await store.aclose()
    assert read_results(tmp_path / "job")["r"].reward == 1.0


async def test_a_cancelled_record_is_as_in_the_file(tmp_path: Path) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    recording = asyncio.create_task(store.record(result("r", lease(store, "r"))))
    await asyncio.sleep(0)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    assert store.results() == read_results(tmp_path / "job")
    assert store.finished() == {"r"}
    await store.aclose()


async def test_a_full_disk_pauses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = await Store.create_or_open(tmp_path / "job", JOB)
    assert await store.record(result("r1", lease(store, "r1")))
    monkeypatch.setattr(os, "pwrite", full)
    done = result("r2", lease(store, "r2"))
    store.observer.emit(node("r2", 0, "x" * 50_000))
    with pytest.raises(StoreError, match=r"events-1\.jsonl.*No space left.*run the same command"):
        await store.record(done)
    with pytest.raises(StoreError):
        await store.ready()
    assert store.finished() == {"r1"}
    monkeypatch.undo()
    await store.ready()
    assert await store.record(done)
    await store.aclose()
    assert set(read_results(tmp_path / "job")) == {"r1", "r2"}
    assert texts(read_events(tmp_path / "job", "r2")) == ["x" * 50_000]


_ops = st.lists(
    st.tuples(
        st.sampled_from(["lease", "node", "record", "stale", "cancel", "reopen", "abandon"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(ops=_ops)
def test_results_and_events_agree_with_a_model(
    tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, str]]
) -> None:
    asyncio.run(_follow(tmp_path_factory.mktemp("model"), ops))


async def _follow(path: Path, ops: list[tuple[str, str]]) -> None:
    store = await Store.create_or_open(path, JOB)
    leases: dict[str, list[int]] = {"a": [], "b": []}
    live: set[str] = set()
    standing: dict[str, RolloutResult] = {}
    seen: dict[tuple[str, int], list[str]] = {}
    for number, (op, key) in enumerate(ops):
        if op == "lease":
            leases[key].append(lease(store, key))
            live.add(key)
        elif op == "node" and key in live:
            store.observer.emit(node(key, number, str(number)))
            seen.setdefault((key, leases[key][-1]), []).append(str(number))
        elif op in ("record", "cancel", "stale"):
            fence = leases[key][-2 if op == "stale" else -1 :][:1] or [1]
            outcome = Outcome.CANCELLED if op == "cancel" else Outcome.SCORED
            given_result = result(key, fence[0], outcome, float(number))
            final = key in standing and standing[key].outcome.final
            expected = key in live and fence[0] == leases[key][-1] and not final
            assert await store.record(given_result) is expected
            if expected:
                standing[key] = given_result
        elif op == "reopen":
            await store.aclose()
            store = await Store.create_or_open(path, JOB)
            live.clear()
            assert store.results() == standing
    assert store.results() == standing
    await store.aclose()
    assert read_results(path) == standing
    for key in ("a", "b"):
        if leases[key]:
            fence = standing[key].fence if key in standing else leases[key][-1]
            assert texts(read_events(path, key)) == seen.get((key, fence), [])
        whole = [event for event in read_events(path) if event.rollout_id == key]
        assert list(read_events(path, key)) == whole


# --- killed ----------------------------------------------------------------------------------


async def killed(path: Path, kills: int, seed: int) -> dict[str, Any]:
    program = Path(__file__).with_name("killed_writer.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), str(path), str(kills), str(seed)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def test_kill_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    report = await killed(tmp_path / "job", 40, 1)
    assert report["lost"] == []
    assert report["wrong"] == []
    assert report["acked"] >= 60
    await _still_works(tmp_path / "job")


@pytest.mark.proof
async def test_kill_nine_five_hundred_times(tmp_path: Path) -> None:
    reports = [await killed(tmp_path / f"job-{seed}", 50, seed) for seed in range(10)]
    assert all(report["lost"] == report["wrong"] == [] for report in reports)


async def _still_works(path: Path) -> None:
    job = read_job(path)
    store = await Store.create_or_open(path, job)
    assert await store.record(result("last", lease(store, "last")))
    await store.aclose()
    assert "last" in read_results(path)
