"""Output of steps on its way to the disk: masked, bounded, and shown as it comes.

A log keeps its first and its last bytes; what comes between them is counted. A flood costs a fixed
amount of memory and disk, and slows nothing down.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from ramify.apps.pipeline.masks import MaskStream
from ramify.contracts.sandbox import MIB

HEAD_BYTES = 8 * MIB
TAIL_BYTES = 8 * MIB
TAIL_WINDOW = 256 * 1024
"""What is kept at hand of the combined log for its last lines."""


class BoundedLog:
    """A file that holds the first `head` and the last `tail` bytes of what is written to it.

    The beginning is in the file at once, the end when it is closed. Raises OSError (disk full).
    """

    def __init__(self, path: Path, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o644)
        self._head_room, self._tail_size = head, tail
        self._ring = bytearray()
        self._total = 0
        self._dropped = 0

    @property
    def total(self) -> int:
        """Bytes written to it."""
        return self._total

    @property
    def dropped(self) -> int:
        """Bytes that are not in the file."""
        return self._dropped

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._total += len(data)
        if self._head_room:
            first, data = data[: self._head_room], data[self._head_room :]
            self._head_room -= len(first)
            _write_all(self._fd, first)
        if data:
            self._ring += data
            if len(self._ring) > 2 * self._tail_size:
                self._cut()

    def close(self) -> None:
        """Write the end, and say how much is missing before it. Idempotent."""
        if self._fd < 0:
            return
        self._cut()
        try:
            if self._dropped:
                note = f"\n[ramify] {self._dropped} bytes are left out here\n"
                _write_all(self._fd, note.encode())
            _write_all(self._fd, bytes(self._ring))
        finally:
            os.close(self._fd)
            self._fd = -1
            self._ring.clear()

    def _cut(self) -> None:
        over = len(self._ring) - self._tail_size
        if over > 0:
            del self._ring[:over]
            self._dropped += over


class StepLog:
    """The output of one step: into its own log, the combined one, and to whoever follows.

    Args:
        log: the step's own.
        combined: that of the run.
        masks: keeps secrets out of both.
        follow: is given what was written, in pieces; an empty one at the end.
    """

    def __init__(
        self, log: BoundedLog, combined: CombinedLog, masks: MaskStream,
        follow: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        self.log, self._combined, self._masks, self._follow = log, combined, masks, follow
        self._last = b"\n"

    def feed(self, data: bytes) -> None:
        """Output of the step."""
        self._put(self._masks.feed(data))

    def note(self, text: str) -> None:
        """A line of ours, recognisable as such, on a line of its own."""
        self._put(self._masks.close())
        lead = b"" if self._last == b"\n" else b"\n"
        self._put(lead + f"[ramify] {text}\n".encode("utf-8", "replace"))

    async def aclose(self) -> None:
        """The step's output ends here. Raises: OSError (disk full)."""
        self._put(self._masks.close())
        self._follow(b"")
        self._combined.end_line()
        await asyncio.to_thread(self.log.close)

    def _put(self, data: bytes) -> None:
        if data:
            self._last = data[-1:]
            self.log.write(data)
            self._combined.write(data)
            self._follow(data)


class CombinedLog:
    """The output of all steps, and its last part at hand."""

    def __init__(self, path: Path) -> None:
        self._log = BoundedLog(path)
        self._recent = bytearray()

    @property
    def recent(self) -> bytes:
        """The last 256 KiB or so."""
        return bytes(self._recent[-TAIL_WINDOW:])

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._log.write(data)
        self._recent += data[-TAIL_WINDOW:]
        if len(self._recent) > 2 * TAIL_WINDOW:
            del self._recent[:-TAIL_WINDOW]

    def end_line(self) -> None:
        """What comes next begins on a line of its own."""
        if self._recent and not self._recent.endswith(b"\n"):
            self.write(b"\n")

    def close(self) -> None:
        """Write what is still held. Idempotent."""
        self._log.close()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
