"""The frames between the engine and the supervisor of a container. Standard library only.

One connection carries many channels: `[u32 length][u8 kind][u32 channel][payload]`, big-endian,
`length` counting the payload. The engine opens channels with even numbers, the supervisor with odd
ones (a connection accepted inside). On each channel a side may send at most `WINDOW` bytes of data
per stream that the other has not yet granted again, so that a flood on one channel neither grows
memory nor holds up the others. Both sides treat what breaks these rules as the end.
"""

from __future__ import annotations

import struct

OPEN = 1
"""A request, as JSON: the first frame of a channel."""
EVENT = 2
"""Something happened, or is asked for, on an open channel; JSON."""
DATA = 3
"""Bytes of the main stream: standard input inward, standard output outward."""
DATA_ERR = 4
"""Bytes of standard error."""
EOF = 5
"""The main stream ends."""
EOF_ERR = 6
"""Standard error ends."""
CREDIT = 7
"""The receiver took bytes of the main stream (u32): as many more may be sent."""
CREDIT_ERR = 8
"""The same for standard error."""
CLOSE = 9
"""The sender has no more use for the channel."""

PUBLIC = "public"
"""Argument of the supervisor: there is a network, and only public addresses may be reached.

What follows it are exceptions (outlet.py).
"""

WINDOW = 256 * 1024
CHUNK = 64 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024

_HEAD = struct.Struct(">IBI")
_COUNT = struct.Struct(">I")


class WireError(Exception):
    """The other side broke the rules of the wire."""


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return _HEAD.pack(len(payload), kind, channel) + payload


def credit(kind: int, channel: int, count: int) -> bytes:
    """A frame that grants `count` more bytes."""
    return frame(kind, channel, _COUNT.pack(count))


def granted(payload: bytes) -> int:
    """The count in a CREDIT frame. Raises: WireError."""
    if len(payload) != _COUNT.size:
        raise WireError("malformed credit")
    return int(_COUNT.unpack(payload)[0])


class Decoder:
    """Turns bytes, cut anywhere, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that `data` completes, as (kind, channel, payload). Raises: WireError."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[int, int, bytes]] = []
        start, have = 0, len(buffer)
        while have - start >= _HEAD.size:
            length, kind, channel = _HEAD.unpack_from(buffer, start)
            if length > MAX_PAYLOAD or not OPEN <= kind <= CLOSE:
                raise WireError(f"malformed frame: kind {kind}, {length} bytes")
            end = start + _HEAD.size + length
            if end > have:
                break
            frames.append((kind, channel, bytes(buffer[start + _HEAD.size : end])))
            start = end
        del buffer[:start]
        return frames
