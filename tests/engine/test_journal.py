"""The journal: what is acknowledged stays, what is damaged shows, and a full disk passes."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import StoreError
from ramify.engine.journal import Journal
from ramify.engine.lines import is_sound, read_lines, seal, sound_length


class Entry(msgspec.Struct, omit_defaults=True, tag_field="type", tag="entry"):
    number: int
    text: str = ""
    more: Any = None


def numbers(path: Path) -> list[int]:
    return [msgspec.json.decode(line, type=Entry).number for _, line in read_lines(path)]


def numbers_or_damage(path: Path) -> list[int] | str:
    try:
        return numbers(path)
    except StoreError:
        return "damaged"


def lines_of(records: list[Any]) -> bytes:
    content = bytearray()
    for record in records:
        start = len(content)
        content += msgspec.json.encode(record)
        seal(content, start)
    return bytes(content)


def flip(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


async def test_records_come_back_in_order_as_plain_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    for number in range(500):
        journal.append(Entry(number, "x" * number))
    await journal.aclose()
    await journal.aclose()
    assert numbers(journal.path) == list(range(500))
    for line in journal.path.read_bytes().splitlines():
        assert msgspec.json.decode(line)["type"] == "entry"


async def test_what_is_acknowledged_is_in_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    await journal.append_durable(Entry(1))
    assert numbers(journal.path) == [1]
    journal.append(Entry(2))
    await journal.commit()
    assert numbers(journal.path) == [1, 2]
    await journal.aclose()


async def test_those_who_wait_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    sync = os.fdatasync

    def counted(handle: int) -> None:
        syncs.append(handle)
        time.sleep(0.01)
        sync(handle)

    monkeypatch.setattr(os, "fdatasync", counted)
    journal = Journal(tmp_path / "a.jsonl")
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(journal.append_durable(Entry(number)))
    assert len(syncs) <= 4
    await journal.aclose()
    assert sorted(numbers(journal.path)) == list(range(200))


async def test_a_slow_disk_blocks_neither_the_loop_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = os.pwrite

    def held(handle: int, content: Any, offset: int) -> int:
        assert gate.wait(30)
        return write(handle, content, offset)

    monkeypatch.setattr(os, "pwrite", held)
    journal = Journal(tmp_path / "a.jsonl", bound=10_000)
    await journal.ready()
    for number in range(20):
        journal.append(Entry(number, "x" * 1000))
    waiting = asyncio.create_task(journal.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    gate.set()
    await asyncio.wait_for(waiting, 10)
    await journal.aclose()
    assert numbers(journal.path) == list(range(20))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_failed_write_tells_everyone_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    broken = True
    write = os.pwrite

    def failing(handle: int, content: Any, offset: int) -> int:
        if broken and len(content) > 7:
            return write(handle, content[:7], offset)  # a torn write comes first
        if broken:
            raise OSError(code, os.strerror(code))
        return write(handle, content, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    journal = Journal(tmp_path / "a.jsonl")
    broken = False
    await journal.append_durable(Entry(0))
    broken = True
    journal.append(Entry(1))
    outcomes = [asyncio.create_task(journal.append_durable(Entry(n))) for n in (2, 3)]
    outcomes.append(asyncio.create_task(journal.commit()))
    await asyncio.wait(outcomes)
    for outcome in outcomes:
        error = outcome.exception()
        assert isinstance(error, StoreError)
        assert "a.jsonl" in str(error)
        assert "free space" in str(error)
    journal.append(Entry(4))
    with pytest.raises(StoreError):
        await journal.ready()
    assert numbers(journal.path) == [0]
    broken = False
    await journal.ready()
    await journal.append_durable(Entry(5))
    await journal.aclose()
    assert numbers(journal.path) == [0, 1, 4, 5]


async def test_the_kernel_refusing_to_grow_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    await journal.append_durable(Entry(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match=r"a\.jsonl: cannot be written"):
            await journal.append_durable(Entry(1, "x" * 10_000))
        assert numbers(journal.path) == [0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await journal.append_durable(Entry(2, "x" * 10_000))
    await journal.aclose()
    assert numbers(journal.path) == [0, 2]


async def test_unawaited_records_are_written_when_space_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", _raise_no_space)
    journal = Journal(tmp_path / "a.jsonl")
    for number in range(100):
        journal.append(Entry(number, "x" * 5000))  # more than is written at once
    await asyncio.sleep(0.05)
    monkeypatch.setattr(os, "pwrite", write)
    for _ in range(500):
        if len(numbers(journal.path)) == 100:
            break
        await asyncio.sleep(0.02)
    assert numbers(journal.path) == list(range(100))  # before anybody asked again
    await journal.aclose()
    assert numbers(journal.path) == list(range(100))


def _raise_no_space(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_failed_sync_acknowledges_nothing_and_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, write = os.fdatasync, os.pwrite
    written: list[int] = []

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def watched(handle: int, content: Any, offset: int) -> int:
        written.append(offset)
        return write(handle, content, offset)

    journal = Journal(tmp_path / "a.jsonl")
    await journal.append_durable(Entry(0))
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(StoreError):
        await journal.append_durable(Entry(1))
    assert numbers(journal.path) == [0]  # taken back: its appender was told
    journal.append(Entry(2))
    with pytest.raises(StoreError):
        await journal.commit()
    monkeypatch.setattr(os, "pwrite", watched)
    monkeypatch.setattr(os, "fdatasync", sync)
    before = len(lines_of([Entry(0)]))
    await journal.commit()
    assert written == [before]  # the unsynced record is made dirty again, then synced
    await journal.aclose()
    assert numbers(journal.path) == [0, 2]


async def test_any_fault_of_the_writer_reaches_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> int:
        raise RuntimeError("odd")

    journal = Journal(tmp_path / "a.jsonl")
    monkeypatch.setattr(os, "pwrite", odd)
    with pytest.raises(StoreError, match="odd"):
        await journal.append_durable(Entry(1))
    monkeypatch.undo()
    await journal.append_durable(Entry(2))
    await journal.aclose()
    assert numbers(journal.path) == [2]


async def test_hostile_values_do_not_stop_the_recording(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.append(Entry(1, "lone \ud800 surrogate", {"k\udfff": ["\ud800", b"\xff", 1 << 80]}))
    journal.append(Entry(2, more=object()))
    journal.append(Entry(3, "line\nbreak\r\u2028\x00"))
    await journal.aclose()
    texts = [msgspec.json.decode(line, type=Entry) for _, line in read_lines(journal.path)]
    assert [entry.number for entry in texts] == [1, 2, 3]
    assert texts[0].text == "lone ? surrogate"
    assert "object" in texts[1].more
    assert texts[2].text == "line\nbreak\r\u2028\x00"


async def test_appends_from_threads_are_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")

    def fill(base: int) -> None:
        for number in range(200):
            journal.append(Entry(base + number, "x" * 100))

    async with asyncio.TaskGroup() as group:
        for base in range(0, 1000, 200):
            group.create_task(asyncio.to_thread(fill, base))
    await journal.aclose()
    assert sorted(numbers(journal.path)) == list(range(1000))


async def test_a_closed_journal_refuses(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    await journal.aclose()
    with pytest.raises(StoreError, match="closed"):
        journal.append(Entry(1))
    with pytest.raises(StoreError, match="closed"):
        await journal.commit()


async def test_opening_cuts_a_torn_tail_and_keeps_it_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = lines_of([Entry(1), Entry(2)])
    torn = lines_of([Entry(3, "lost")])[:-5]
    path.write_bytes(whole + torn)
    assert numbers(path) == [1, 2]
    assert path.read_bytes() == whole + torn  # readers change nothing
    journal = Journal(path)
    await journal.append_durable(Entry(4))
    await journal.aclose()
    assert numbers(path) == [1, 2, 4]
    assert (tmp_path / "a.jsonl.torn").read_bytes() == torn


async def test_opening_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(flip(lines_of([Entry(1), Entry(2), Entry(3)]), 8 * 60))
    with pytest.raises(StoreError, match=r"a\.jsonl: line 2 is damaged"):
        Journal(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(tmp_path / "missing" / "a.jsonl")


def test_every_truncation_leaves_the_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = lines_of([Entry(n, "text" * n) for n in range(4)])
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert numbers(path) == list(range(whole))
        assert sound_length(path) == content[:length].rfind(b"\n") + 1


def test_every_flipped_bit_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = lines_of([Entry(n, 'a "quoted" text') for n in range(3)])
    last = content[:-1].rfind(b"\n") + 1
    for bit in range(len(content) * 8):
        path.write_bytes(flip(content, bit))
        if bit // 8 < last:
            with pytest.raises(StoreError, match=r"a\.jsonl: line [12] is damaged"):
                numbers(path)
        else:
            # In the last line it may look torn, but its content is never taken for good.
            assert numbers_or_damage(path) in ([0, 1], "damaged")


_records = st.lists(
    st.builds(
        Entry,
        st.integers(-(2**53), 2**53),
        st.text(max_size=40),
        st.dictionaries(st.sampled_from(["c", "blobs", "x"]), st.text(max_size=10), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=_records, data=st.data())
def test_damage_of_any_kind_never_changes_a_record(
    tmp_path: Path, records: list[Entry], data: st.DataObject
) -> None:
    path = tmp_path / "h.jsonl"
    content = lines_of(records)
    kind = data.draw(st.sampled_from(["none", "truncate", "flip", "garbage"]))
    if kind == "truncate":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif kind == "flip":
        content = flip(content, data.draw(st.integers(0, len(content) * 8 - 1)))
    elif kind == "garbage":
        content += data.draw(st.binary(max_size=60))
    path.write_bytes(content)
    try:
        read = [msgspec.json.decode(line, type=Entry) for _, line in read_lines(path)]
    except StoreError:
        assert kind in ("flip", "garbage")
        return
    assert read == records[: len(read)]
    assert len(read) >= len(records) - 1 or kind == "truncate"
    if kind in ("none", "garbage"):
        assert read == records


@given(st.binary(max_size=60))
def test_text_without_a_checksum_is_not_sound(line: bytes) -> None:
    assert not is_sound(line)


class _Growing(io.RawIOBase):
    """A file that ends in half a line when its end is read, and has grown when it is read again."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_line_that_is_being_written_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader beside the writer sees half a line; the rest may come while it looks for more."""
    lines = lines_of([Entry(1), Entry(2)])
    pieces = [lines[:-9], b"", lines[-9:], b""]
    path = tmp_path / "x.jsonl"
    raw = io.BufferedReader(_Growing(pieces))

    def opened(_path: Path, mode: str = "r", buffering: int = -1) -> io.BufferedReader[Any]:
        return raw

    monkeypatch.setattr(Path, "open", opened)
    assert numbers(path) == [1]
