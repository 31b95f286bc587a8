"""The wire between engine and supervisor: framing, windows, and what breaks its rules."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ramify.planes.sandbox.docker.wire as wire
from ramify.contracts.errors import SandboxLostError
from ramify.planes.sandbox.docker.link import Link, Stdcopy

FRAMES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=20
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_cut(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(wire.frame(*item) for item in frames)
    decoder = wire.Decoder()
    assert [f for piece in cut(data, cuts) for f in decoder.feed(piece)] == frames


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=99)), max_size=9),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_the_daemons_frames_survive_any_cut(
    pieces: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(bytes([s, 0, 0, 0]) + len(d).to_bytes(4, "big") + d for s, d in pieces)
    split = Stdcopy()
    got = [part for piece in cut(data, cuts) for part in split.feed(piece)]
    for stream in (1, 2):
        want = b"".join(d for s, d in pieces if s == stream)
        assert b"".join(d for s, d in got if s == stream) == want


@given(st.binary(max_size=2000))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    for decoder in (wire.Decoder(), Stdcopy()):
        try:
            decoder.feed(data)
        except wire.WireError:
            continue


@pytest.mark.parametrize(
    "head", [b"\xff\xff\xff\xff\x03\0\0\0\0", b"\0\0\0\0\x00\0\0\0\0", b"\0\0\0\0\x0a\0\0\0\0"]
)
def test_a_malformed_head_is_refused(head: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.Decoder().feed(head)


class Peer:
    """The other end of a link, played by the test."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.ours, self.sock = socket.socketpair()

    async def open(self) -> Link:
        reader, writer = await asyncio.open_unix_connection(sock=self.ours)
        self.link = Link(reader, writer, self.lost.append)
        return self.link

    async def say(self, *frames: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.sock.setblocking(False)
        with contextlib.suppress(ConnectionError):  # it may hang up in the middle
            for data in frames:
                head = b"\1\0\0\0" + len(data).to_bytes(4, "big")
                await loop.sock_sendall(self.sock, head + data)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    peer.sock.close()
    await peer.link.aclose()


BIG = b"x" * wire.CHUNK


@pytest.mark.parametrize(
    "frames",
    [
        [wire.frame(wire.DATA, 2, BIG)] * (wire.WINDOW // wire.CHUNK + 1),
        [wire.frame(wire.DATA, 4, b"never opened")],
        [wire.frame(wire.EVENT, 2, b"not json")],
        [wire.frame(wire.EVENT, 2, b"[1]")],
        [wire.frame(wire.EVENT, 2, b'{"event": "a"}')] * 2,
        [wire.frame(wire.EVENT, 2, b"[" * 100_000)],
        [wire.frame(wire.OPEN, 2, b"{}")],
        [wire.frame(wire.OPEN, 8, b"{}")],
        [wire.frame(wire.CLOSE, 2)],
        [wire.credit(wire.CREDIT, 2, 1)],
        [wire.frame(wire.CREDIT, 2, b"1")],
        [wire.frame(wire.EOF, 2), wire.frame(wire.DATA, 2, b"after the end")],
    ],
    ids=range(12),
)
async def test_a_broken_rule_is_the_end(peer: Peer, frames: list[bytes]) -> None:
    link = await peer.open()
    channel = link.open({"op": "test"})
    await peer.say(*frames)
    with pytest.raises(SandboxLostError, match="protocol"):
        async with asyncio.timeout(5):
            await channel.until("never")
    assert len(peer.lost) == 1
    with pytest.raises(SandboxLostError):
        link.open({"op": "test"})


async def test_the_sender_stops_at_the_window(peer: Peer) -> None:
    link = await peer.open()
    channel = link.open({"op": "test"})
    sending = asyncio.create_task(channel.send(b"y" * (wire.WINDOW + 1000)))
    peer.sock.setblocking(False)
    got = b""
    decoder = wire.Decoder()
    data = 0
    for _ in range(200):
        await asyncio.sleep(0.005)
        try:
            got = peer.sock.recv(1 << 20)
        except BlockingIOError:
            continue
        data += sum(len(p) for k, _, p in decoder.feed(got) if k == wire.DATA)
        if data >= wire.WINDOW:
            break
    await asyncio.sleep(0.05)
    assert data == wire.WINDOW
    assert not sending.done()
    await peer.say(wire.credit(wire.CREDIT, 2, 1000))
    async with asyncio.timeout(5):
        await sending


async def test_a_refused_stream_raises_and_what_was_read_stays(peer: Peer) -> None:
    link = await peer.open()
    channel = link.open({"op": "test"})
    await peer.say(
        wire.frame(wire.DATA, 2, b"before"), wire.frame(wire.EVENT, 2, b'{"event":"refused"}')
    )
    assert await channel.out.read(100) == b"before"
    with pytest.raises(BrokenPipeError):
        await channel.send(b"z" * (2 * wire.WINDOW))
    peer.sock.close()
    with pytest.raises(SandboxLostError):
        await channel.out.read(100)
