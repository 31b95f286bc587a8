"""What a service says: drained always, kept in part."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 32 * 1024
_FILE_BYTES = 8 * 1024 * 1024
_LEFT_OUT = b"\n... what came after this is not kept\n"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class ServiceLog:
    """Keeps the end of a log in memory, and its beginning in a file.

    Memory is at most 64 KiB, the file 8 MiB, whatever the service writes.

    Args:
        file: where it is kept; what stands there is replaced, or goes on where there is `earlier`.
        earlier: the end of the log of the service that this one goes on from.
    """

    def __init__(self, file: Path, earlier: bytes = b"") -> None:
        self._tail = bytearray(earlier)
        self._room = _FILE_BYTES
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("ab" if earlier else "wb")

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        self._tail += data
        if len(self._tail) > 2 * _TAIL_BYTES:
            del self._tail[:-_TAIL_BYTES]
        if self._room >= 0:
            self._file.write(data[: self._room])
            if len(data) > self._room:
                self._file.write(_LEFT_OUT)
            self._room -= len(data)
            self._file.flush()

    @property
    def tail(self) -> bytes:
        """The end of it."""
        return bytes(self._tail[-_TAIL_BYTES:])

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def last_lines(data: bytes, lines: int = 20, most: int = 2000) -> str:
    """The end of a log as text for a person, without what could steer a terminal."""
    text = data.decode(errors="replace").replace("\r\n", "\n")
    return _CONTROL.sub("", "\n".join(text.rstrip().split("\n")[-lines:])[-most:])
