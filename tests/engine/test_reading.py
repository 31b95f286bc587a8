"""Reading a job directory: the attempt that counts, damage, and the derived index."""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_records import JOB, filled, lease, node, result, texts

from ramify.contracts.errors import StoreError
from ramify.contracts.events import (
    LogEvent,
    MetricEvent,
    NodeEvent,
    Phase,
    PhaseEvent,
    RewardGiven,
)
from ramify.contracts.messages import TokenSpan
from ramify.contracts.tree import Step
from ramify.engine.index import INDEX_FILE
from ramify.engine.reading import read_events, read_results
from ramify.engine.store import Store

# --- events ----------------------------------------------------------------------------------


async def test_only_the_attempt_that_counts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job"
    store = await Store.create_or_open(path, JOB)
    lease(store, "r")
    store.observer.emit(node("r", 0, "first attempt"))
    second = lease(store, "r")
    store.observer.emit(PhaseEvent("r", 2.0, Phase.EXECUTE))
    store.observer.emit(node("r", 0, "second attempt"))
    lease(store, "other")
    store.observer.emit(node("other", 0, "still running"))
    store.observer.emit(LogEvent("", 2.0, "info", "of the job"))
    assert await store.record(result("r", second))
    lease(store, "r")
    store.observer.emit(node("r", 0, "after the result"))
    await store.aclose()
    assert texts(read_events(path, "r")) == ["second attempt"]
    assert texts(read_events(path)) == ["second attempt", "still running"]
    assert any(isinstance(e, LogEvent) and e.message == "of the job" for e in read_events(path))
    assert list(read_events(path, "nobody")) == []


async def test_events_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "job"
    store = await Store.create_or_open(path, JOB)
    lease(store, "r")
    for number in range(30):
        store.observer.emit(node("r", number, str(number)))
        if number % 5 == 0:
            await store.ready()
            shown = texts(read_events(path, "r"))
            assert shown == [str(n) for n in range(len(shown))]
    done = result("r", lease(store, "r"))
    store.observer.emit(node("r", 0, "again"))
    assert await store.record(done)
    assert texts(read_events(path, "r")) == ["again"]
    await store.aclose()


async def test_an_observer_never_raises_and_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "job"
    store = await Store.create_or_open(path, JOB)
    fence = lease(store, "r")
    spans = TokenSpan((1, 2, 3), (-0.5, -math.inf, math.nan))
    store.observer.emit(NodeEvent("r", 1.0, 0, -1, Step(tokens=spans, logprob=-math.inf)))
    store.observer.emit(RewardGiven("r", 1.0, 0, "x", math.nan, "output", "terminal"))
    store.observer.emit(MetricEvent("r", 1.0, "m", math.inf, "count"))
    store.observer.emit(LogEvent("r", 1.0, "info", "\udc80", {"o": object(), "n": math.nan}))
    assert await store.record(result("r", fence))
    await store.aclose()
    store.observer.emit(LogEvent("r", 1.0, "info", "after the end"))
    _, first, reward, metric, log = read_events(path, "r")
    assert isinstance(first, NodeEvent)
    assert first.step is not None
    assert first.step.tokens == TokenSpan((1, 2, 3), (-0.5, *(-sys.float_info.max,) * 2))
    assert first.step.logprob == -sys.float_info.max
    for event in (reward, metric):
        assert isinstance(event, LogEvent)
        assert event.message == "value is not finite"
    assert isinstance(log, LogEvent)
    assert log.message == "?"


async def test_damaged_events_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await filled(path)
    file = path / "events-1.jsonl"
    content = file.read_bytes()
    assert texts(read_events(path, "r1")) == [f"r1 {n}" for n in range(4)]
    file.write_bytes(content.replace(b"r1 2", b"r1 7"))
    with pytest.raises(StoreError, match=r"events-1\.jsonl: line 11 is damaged"):
        list(read_events(path))
    with pytest.raises(StoreError, match=r"events-1\.jsonl: .*damaged"):
        list(read_events(path, "r1"))
    assert texts(read_events(path, "r0")) == [f"r0 {n}" for n in range(4)]


async def test_damaged_results_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await filled(path)
    file = path / "results.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"fence":1000000002', b'"fence":1000000003'))
    with pytest.raises(StoreError, match=r"results\.jsonl: line 2 is damaged"):
        read_results(path)
    with pytest.raises(StoreError, match=r"results\.jsonl: line 2 is damaged"):
        await Store.create_or_open(path, JOB)


# --- the index -------------------------------------------------------------------------------


def delete(index: Path) -> None:
    index.unlink()


def empty(index: Path) -> None:
    index.write_bytes(b"")


def cut(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-40])


def of_another_job(index: Path) -> None:
    header = index.read_bytes()
    index.write_bytes(header.replace(b'"covered":{"1":[', b'"covered":{"7":['))


@pytest.mark.parametrize("harm", [delete, empty, cut, of_another_job])
async def test_the_index_is_made_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tmp_path / "job"
    await filled(path)
    expected = list(read_events(path, "r1"))
    assert len(expected) == 5
    harm(path / INDEX_FILE)
    assert list(read_events(path, "r1")) == expected
    assert (path / INDEX_FILE).stat().st_size > 0


async def test_a_flipped_bit_in_the_index_never_hides_an_event(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await filled(path, rollouts=2, nodes=2)
    expected = list(read_events(path, "r1"))
    index = path / INDEX_FILE
    content = index.read_bytes()
    refusals: list[str] = []
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        index.write_bytes(damaged)
        try:
            found = list(read_events(path, "r1"))
        except StoreError as error:
            refusals.append(str(error))
        else:
            assert found == expected
    assert all("delete it" in refusal for refusal in refusals)


async def test_the_index_follows_further_openings(tmp_path: Path) -> None:
    path = tmp_path / "job"
    for opening in range(4):
        store = await Store.create_or_open(path, JOB)
        fence = lease(store, f"r{opening}")
        store.observer.emit(node(f"r{opening}", 0, str(opening)))
        assert await store.record(result(f"r{opening}", fence))
        await store.aclose()
        for number in range(opening + 1):
            assert texts(read_events(path, f"r{number}")) == [str(number)]
    (path / "events-1.jsonl").write_bytes((path / "events-2.jsonl").read_bytes())
    assert texts(read_events(path, "r1")) == ["1", "1"]  # the index no longer fitted


async def test_one_rollout_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await filled(path, rollouts=5)
    list(read_events(path, "r0"))
    content = bytearray((path / "events-1.jsonl").read_bytes())
    place = content.index(b"r3 1")
    content[place] ^= 1  # damage elsewhere is not even looked at
    (path / "events-1.jsonl").write_bytes(content)
    assert texts(read_events(path, "r4")) == [f"r4 {n}" for n in range(4)]


async def test_a_directory_that_cannot_be_written_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job"
    await filled(path)
    opened = Path.open

    def read_only(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", read_only)
    assert texts(read_events(path, "r2")) == [f"r2 {n}" for n in range(4)]
    assert not (path / INDEX_FILE).exists()
