"""Large payloads: stored once, resolved on reading, never missing in silence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import StoreError
from ramify.contracts.events import LogEvent, NodeEvent
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.tree import Step
from ramify.engine.blobs import BlobStore, join, references_in
from ramify.engine.journal import Journal
from ramify.engine.lines import read_lines

LARGE = "payload " * 4000


def node(*messages: Message, step: Step | None = None) -> NodeEvent:
    return NodeEvent("r", 1.0, 1, 0, step, messages)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def store(event: NodeEvent, blobs: BlobStore) -> bytes:
    """What the journal makes of an event: the line, with payloads written."""
    stripped, members, payloads = blobs.split(event)
    for digest, payload in payloads.items():
        blobs.write(digest, payload)
    blobs.sync()
    return msgspec.json.encode(stripped)[:-1] + members + b"}"


def load(line: bytes, blobs: BlobStore) -> NodeEvent:
    event = msgspec.json.decode(line, type=NodeEvent)
    return join(event, references_in(line), blobs)


async def test_large_strings_go_to_files_and_come_back(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    journal = Journal(tmp_path / "a.jsonl", blobs)
    event = node(Message("user", LARGE), Message("tool", "small"))
    journal.append(event)
    journal.append(LogEvent("r", 1.0, "info", LARGE))  # only messages of nodes are split
    await journal.aclose()
    lines = [line for _, line in read_lines(tmp_path / "a.jsonl")]
    assert len(lines[0]) < 400
    assert len(lines[1]) > len(LARGE)
    assert load(lines[0], blobs) == event
    (file,) = files(tmp_path / "blobs")
    assert len(file.parent.name + file.name) == 64
    assert file.stat().st_size < len(LARGE) / 10


_texts = st.sampled_from(["", "small", LARGE, LARGE + "é", "\u2028" * 20_000])
_messages = st.lists(
    st.builds(
        Message,
        st.sampled_from(["user", "assistant"]),
        _texts,
        st.lists(st.builds(ToolCall, st.just("1"), st.just("f"), _texts), max_size=2).map(tuple),
        reasoning=st.none() | _texts,
    ),
    max_size=3,
).map(tuple)


@given(messages=_messages, steps=st.none() | _messages)
def test_any_event_survives(
    tmp_path_factory: pytest.TempPathFactory,
    messages: tuple[Message, ...],
    steps: tuple[Message, ...] | None,
) -> None:
    blobs = BlobStore(tmp_path_factory.getbasetemp() / "any")
    event = node(*messages, step=None if steps is None else Step(steps))
    line = store(event, blobs)
    assert load(line, blobs) == event
    assert LARGE.encode() not in line


@pytest.mark.parametrize(
    "info",
    [{"blobs": {"messages/0/content": ["00" * 32, 1]}}, {"x": {"a": 1, "blobs": {"b": ["c", 1]}}}],
)
def test_what_looks_like_a_reference_is_not_one(tmp_path: Path, info: dict[str, Any]) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    text = ',"blobs":{"messages/0/content":["' + "00" * 32 + '",1]}'
    event = node(Message("user", text), step=Step((Message("tool", text),), info=info))
    assert load(store(event, blobs), blobs) == event


def test_a_payload_is_stored_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    store(node(Message("user", LARGE), Message("user", LARGE)), blobs)
    (file,) = files(tmp_path / "blobs")
    written = file.stat().st_mtime_ns, file.stat().st_ino
    store(node(Message("user", LARGE)), blobs)
    store(node(Message("user", LARGE)), BlobStore(tmp_path / "blobs"))
    assert files(tmp_path / "blobs") == [file]
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written


def test_a_payload_torn_before_a_restart_is_written_again(tmp_path: Path) -> None:
    event = node(Message("user", LARGE))
    store(event, BlobStore(tmp_path / "blobs"))
    (file,) = files(tmp_path / "blobs")
    file.write_bytes(file.read_bytes()[:20])
    blobs = BlobStore(tmp_path / "blobs")
    assert load(store(event, blobs), blobs) == event


def test_a_missing_or_damaged_payload_is_an_error(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    line = store(node(Message("user", LARGE)), blobs)
    (file,) = files(tmp_path / "blobs")
    content = file.read_bytes()
    messages: list[str] = []
    for bit in range(0, len(content) * 8, 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert load(line, blobs).messages[0].content == LARGE  # a bit that zlib ignores
        except StoreError as error:
            messages.append(str(error))
    assert all(file.name in message for message in messages)
    assert len(messages) > len(content) // 3
    for length in range(len(content) - 4):  # the last four bytes are zlib's own checksum
        file.write_bytes(content[:length])
        with pytest.raises(StoreError, match="damaged|cannot be read"):
            load(line, blobs)
    file.unlink()
    with pytest.raises(StoreError, match="missing"):
        load(line, blobs)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "ab", "", "g" * 64])
def test_a_reference_cannot_lead_elsewhere(tmp_path: Path, digest: str) -> None:
    with pytest.raises(StoreError, match="not the digest"):
        BlobStore(tmp_path).read((digest, 1))


def test_a_reference_to_a_place_that_is_not_there(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    line = store(node(Message("user", LARGE)), blobs)
    for place in ("messages/7/content", "step/0/content", "messages/0/role", "x"):
        with pytest.raises(StoreError, match="does not have"):
            join(node(Message("user")), {place: references_in(line)["messages/0/content"]}, blobs)


async def test_a_failed_sync_writes_payloads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    journal = Journal(tmp_path / "a.jsonl", blobs)
    sync = os.fsync

    def failing(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    event = node(Message("user", LARGE))
    journal.append(event)
    with pytest.raises(StoreError):
        await journal.commit()
    (file,) = files(tmp_path / "blobs")
    before = file.stat().st_ino
    monkeypatch.setattr(os, "fsync", sync)
    await journal.aclose()
    assert file.stat().st_ino != before
    ((_, line),) = read_lines(tmp_path / "a.jsonl")
    assert load(line, blobs) == event
