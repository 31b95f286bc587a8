"""Bounded capture of output of unknown size, and its safe display to people.

`Capture` holds the first and the last bytes of a stream, so that a flood costs a fixed amount of
memory and what matters (how it began, how it ended) is kept. `tail_text` turns bytes written by
something hostile into text that cannot steer a terminal or disguise itself in one.
"""

from __future__ import annotations

import re

Buffer = bytes | bytearray | memoryview


class Capture:
    """Keeps the head and the tail of a byte stream, `limit` bytes together.

    Guarantees: memory is at most `limit` plus a constant, and grows only with what is fed; one
    `feed` copies each byte at most once.

    Args:
        limit: bytes kept, half of them from the beginning. 0 keeps nothing and counts.
    """

    __slots__ = ("_head", "_head_room", "_next", "_tail", "_tail_size", "total")

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"capture limit must not be negative, got {limit}")
        self._head = bytearray()
        self._head_room = limit // 2
        self._tail = bytearray()
        self._tail_size = limit - limit // 2
        self._next = 0  # where the ring is written next, once it is full
        self.total = 0

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream."""
        size = len(data)
        self.total += size
        if self._head_room:
            if size <= self._head_room:
                self._head += data
                self._head_room -= size
                return
            view = memoryview(data)
            self._head += view[: self._head_room]
            data = view[self._head_room :]
            self._head_room = 0
            size = len(data)
        if size:
            self._feed_tail(memoryview(data))

    def _feed_tail(self, data: memoryview) -> None:
        ring, capacity = self._tail, self._tail_size
        if len(data) >= capacity:
            ring[:] = data[len(data) - capacity :]
            self._next = 0
            return
        grow = min(capacity - len(ring), len(data))
        if grow:
            ring += data[:grow]
            data = data[grow:]
        if not data:
            return
        first = min(capacity - self._next, len(data))
        ring[self._next : self._next + first] = data[:first]
        rest = len(data) - first
        if rest:
            ring[:rest] = data[first:]
        self._next = (self._next + len(data)) % capacity

    @property
    def data(self) -> bytes:
        """The head followed by the tail."""
        if not self._next:
            return bytes(self._head) + self._tail
        tail = memoryview(self._tail)
        return b"".join((self._head, tail[self._next :], tail[: self._next]))

    @property
    def dropped(self) -> int:
        """Bytes left out between the head and the tail."""
        return self.total - len(self._head) - len(self._tail)


# Strings that terminals interpret: OSC, DCS, SOS, PM and APC run to BEL or ST (or to the end of
# the line, so that an unterminated one cannot swallow the rest); then CSI; then two-byte escapes.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
# C0 (but not tab and newline), DEL, C1, and characters that reorder, hide or join text:
# bidi controls and isolates, zero-width characters, line separators, tags, interlinear marks.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def tail_text(
    data: bytes, lines: int = 200, line_bytes: int = 2000, total_bytes: int = 65536
) -> str:
    """The last lines of `data` as text that is safe to show in a terminal.

    Undecodable bytes are replaced; escape sequences, control, bidirectional and zero-width
    characters are removed. A carriage return becomes a line break: what a terminal would
    overwrite stays readable. Lines longer than `line_bytes` are cut and marked.

    Args:
        data: output of hostile origin.
        lines: most lines returned.
        line_bytes: most UTF-8 bytes of one line.
        total_bytes: most UTF-8 bytes returned.
    """
    # Twice the budget leaves room for what is removed; more would let escapes cost unbounded work.
    text = data[-2 * total_bytes :].decode("utf-8", "replace")
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _HIDDEN.sub("", text)
    kept: list[str] = []
    room = total_bytes
    for line in reversed(text.removesuffix("\n").split("\n")[-lines:] if lines > 0 else []):
        raw = line.encode()
        if len(raw) > line_bytes:
            line = raw[:line_bytes].decode("utf-8", "ignore") + " [cut]"
            raw = line.encode()
        room -= len(raw) + 1
        if room < -1:
            break
        kept.append(line)
    return "\n".join(reversed(kept))
