"""The line format of a job's files: one JSON object per line that carries its own checksum.

A line is what msgspec wrote, with one last field added: `"c"`, the CRC-32 (eight hex digits) of
every byte before `,"c":`. It stays plain JSON Lines for any reader, and any flipped bit shows.

A file may end in a torn line, because a writer was killed in the middle of a write. Nothing in it
was ever acknowledged, so it does not count. Damage anywhere else is never passed over.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from ramify.contracts.errors import StoreError

_SEAL = re.compile(rb',"c":"([0-9a-f]{8})"\}')
_SEAL_BYTES = 16  # ,"c":"01234567"}
_READ_BYTES = 1 << 20


def seal(buffer: bytearray, start: int, extra: bytes = b"") -> None:
    """Turn the JSON object in `buffer[start:]` into a line: add `extra`, checksum and newline.

    `extra` is further JSON members, each with a leading comma, in bytes.
    """
    del buffer[-1:]
    buffer += extra
    with memoryview(buffer) as view:
        checksum = zlib.crc32(view[start:])
    buffer += b',"c":"%08x"}\n' % checksum


def is_sound(line: bytes) -> bool:
    """Whether `line` is whole: ends in a newline and carries the checksum of its content."""
    body = len(line) - _SEAL_BYTES - 1
    return body > 0 and line[body:] == b',"c":"%08x"}\n' % _checksum(line, body)


def checksum_of(line: bytes) -> int:
    """The checksum that a sound line carries."""
    return int(line[-11:-3], 16)


def read_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Sound lines of a file with their offsets, from byte `start` (a line's beginning) to `stop`.

    A torn tail ends the iteration. Raises StoreError when anything else is damaged: it names the
    file, and the line's number where the whole file is read, else its offset.
    """
    try:
        with path.open("rb", buffering=_READ_BYTES) as file:
            file.seek(start)
            offset = start
            for number, line in enumerate(file, 1):
                if stop is not None and offset >= stop:
                    return
                if not is_sound(line):
                    where = f"line {number}" if start == 0 else f"byte {offset}"
                    # Without a newline it was the last when it was read; a writer may go on since.
                    last = not line.endswith(b"\n") or not file.read(1)
                    _require_torn(path, where, line, last=last)
                    return
                yield offset, line
                offset += len(line)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error


def sound_length(path: Path) -> int:
    """Bytes of the file up to the end of its last sound line; 0 where there is no such file.

    Raises StoreError as `read_lines` does.
    """
    if not path.exists():
        return 0
    end = 0
    for offset, line in read_lines(path):
        end = offset + len(line)
    return end


def _checksum(line: bytes, end: int) -> int:
    with memoryview(line) as view:
        return zlib.crc32(view[:end])


def _require_torn(path: Path, where: str, line: bytes, *, last: bool) -> None:
    # A torn write is a prefix of one record. Where the unsound text begins with a whole record,
    # its newline was damaged afterwards: dropping it would drop what may have been acknowledged.
    whole = any(
        int(match[1], 16) == _checksum(line, match.start()) and match.end() < len(line)
        for match in _SEAL.finditer(line)
    )
    if not last or whole:
        raise StoreError(
            f"{path}: {where} is damaged (its checksum does not match); restore the file from a "
            "copy, or move it away and run what it held again"
        )
