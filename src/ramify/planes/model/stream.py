"""Server-sent events: bytes as they come, in whatever pieces, into events."""

from __future__ import annotations


class EventStream:
    """Collects the `data` of server-sent events.

    Bytes may be cut anywhere. Comments and fields other than `data` are left out. The caller
    bounds how much it feeds.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._scanned = 0
        self._after_cr = False
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, in order."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a line end whose first half ended a chunk
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        self._rest += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[bytes] = []
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._scanned))) >= 0:
            self._line(bytes(self._rest[start:end]), events)
            start = end + 1
        del self._rest[:start]
        self._scanned = len(self._rest)
        return events

    def end(self) -> list[bytes]:
        """What was still open when the stream ended."""
        events: list[bytes] = []
        if self._rest:
            self._line(bytes(self._rest), events)
        self._line(b"", events)
        self._rest.clear()
        self._scanned = 0
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
