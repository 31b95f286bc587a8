"""Where each event of a rollout stands, so that reading one rollout need not scan a large job.

The index file is derived from the events files: it may be deleted at any time, is brought up to
date by whoever reads, and is made anew when it does not fit them.

Layout: a 32-byte prefix (magic, header bytes, header checksum), the header (JSON: how far each
file is covered, where each rollout's records stand), then 32-byte records grouped by rollout:
file, length, offset, checksum, rollout, node, parent (node and parent are -1 for other events).
"""

from __future__ import annotations

import logging
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from ramify.contracts.errors import StoreError
from ramify.contracts.scratch import Scratch
from ramify.engine.lines import checksum_of, is_sound, read_lines

INDEX_FILE = "events.idx"
_MAGIC = b"RMFYIDX1"
_PREFIX = struct.Struct("<8sQI12x")
_RECORD = struct.Struct("<IIQIIii")
_WORTH_SAVING = 8  # save when one record in so many is new

_log = logging.getLogger(__name__)


class _Head(msgspec.Struct, gc=False):
    """What the index needs to know of an event."""

    type: str
    rollout_id: str
    node: int = -1
    parent: int = -1
    fence: int = -1


class _Covered(msgspec.Struct, array_like=True):
    """How far a file is indexed, and its last line up to there, to notice another file."""

    end: int
    last: int
    checksum: int


class _Group(msgspec.Struct, array_like=True):
    """One rollout's records, and its newest lease (-1: none)."""

    first: int = 0
    count: int = 0
    checksum: int = 0
    fence: int = -1


class _Header(msgspec.Struct):
    covered: dict[int, _Covered] = {}
    rollouts: dict[str, _Group] = {}


_decoder = msgspec.json.Decoder(_Header)


_heads = msgspec.json.Decoder(_Head)


class Index:
    """The index of one job at one moment. Get it with `load`; `extend` brings it up to date.

    Others may read, and write, the same index at the same time, in this process and elsewhere: the
    file is only ever replaced, and this one keeps to the file that it has read.
    """

    def __init__(self, path: Path, files: Sequence[tuple[int, Path]]) -> None:
        self._path = path
        self._files = dict(files)
        self._header = _Header()
        self._start = 0
        self._fresh: dict[str, bytearray] = {}
        self._fresh_count = 0
        self._total = 0
        self._numbers: dict[str, int] = {}
        self._handle: int | None = None
        self._close: Callable[[], object] = int  # nothing to close yet

    @classmethod
    def load(cls, job: Path, files: Sequence[tuple[int, Path]]) -> Index:
        """Read the index of a job directory and bring it up to date with its events files.

        Raises StoreError where an events file is damaged.
        """
        index = cls(job / INDEX_FILE, files)
        if not index._read():
            index._header = _Header()
        groups = index._header.rollouts
        index._numbers = {key: number for number, key in enumerate(groups)}
        index._total = sum(group.count for group in groups.values())
        index.extend()
        return index

    def newest_fence(self, rollout_id: str) -> int | None:
        """The newest lease of a rollout; None if it never had one."""
        group = self._header.rollouts.get(rollout_id)
        return None if group is None or group.fence < 0 else group.fence

    def lines(self, rollout_id: str) -> Iterator[tuple[Path, int, bytes]]:
        """File, offset and line of each event of a rollout, in order. Raises StoreError."""
        records = self._stored(rollout_id) + bytes(self._fresh.get(rollout_id, b""))
        opened: dict[int, int] = {}
        try:
            for number, length, offset, checksum, *_ in _RECORD.iter_unpack(records):
                path = self._files[number]
                if number not in opened:
                    opened[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                line = os.pread(opened[number], length, offset)
                if not is_sound(line):
                    raise StoreError(
                        f"{path}: the line at byte {offset} is damaged (its checksum does not "
                        "match); restore the file from a copy"
                    )
                if checksum_of(line) != checksum:
                    raise StoreError(f"{self._path}: does not fit {path}; delete it, try again")
                yield path, offset, line
        except OSError as error:
            raise StoreError(f"{self._path.parent}: cannot be read ({error.strerror})") from error
        finally:
            for handle in opened.values():
                os.close(handle)

    def _read(self) -> bool:
        """Take over the index file; False if there is none that fits."""
        try:
            handle = self._keep(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
            magic, size, checksum = _PREFIX.unpack(os.pread(handle, _PREFIX.size, 0))
            whole = os.fstat(handle).st_size
            content = os.pread(handle, size, _PREFIX.size) if size <= whole else b""
            if magic != _MAGIC or zlib.crc32(content) != checksum:
                return False
            self._header = _decoder.decode(content)
        except (OSError, struct.error, msgspec.DecodeError):
            return False  # missing, or torn: it is made anew
        self._start = _PREFIX.size + size
        total = sum(group.count for group in self._header.rollouts.values())
        if whole < self._start + total * _RECORD.size:
            return False
        return all(self._fits(*entry) for entry in self._header.covered.items())

    def _fits(self, number: int, covered: _Covered) -> bool:
        if number not in self._files:
            return False
        with self._files[number].open("rb") as file:
            file.seek(covered.last)
            line = file.read(covered.end - covered.last)
        return is_sound(line) and checksum_of(line) == covered.checksum

    def _stored(self, rollout_id: str) -> bytes:
        group = self._header.rollouts.get(rollout_id)
        if group is None or group.count == 0:
            return b""
        size = _RECORD.size
        records = b""
        if self._handle is not None:
            place = self._start + group.first * size
            records = os.pread(self._handle, group.count * size, place)
        if zlib.crc32(records) != group.checksum:
            raise StoreError(f"{self._path}: is damaged; delete it, it is made anew when needed")
        return records

    def _keep(self, handle: int) -> int:
        """Read from this file from now on; it is closed with the index."""
        self._close()
        self._close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        return handle

    def extend(self) -> None:
        """Take in what was written since. Raises StoreError where an events file is damaged."""
        added = 0
        groups, numbers = self._header.rollouts, self._numbers
        for number, path in self._files.items():
            covered = self._header.covered.get(number)
            start = covered.end if covered else 0
            offset, line = -1, b""
            for offset, line in read_lines(path, start):
                head = _decode(path, offset, line)
                key = head.rollout_id
                if key not in numbers:
                    numbers[key] = len(numbers)
                    groups[key] = _Group()
                group = groups[key]
                if head.type == "lease":
                    group.fence = max(group.fence, head.fence)
                place = (number, len(line), offset, checksum_of(line))
                record = _RECORD.pack(*place, numbers[key], head.node, head.parent)
                self._fresh.setdefault(key, bytearray()).extend(record)
                added += 1
            if line:
                covered = _Covered(offset + len(line), offset, checksum_of(line))
                self._header.covered[number] = covered
        self._fresh_count += added
        self._total += added
        if added and self._fresh_count * _WORTH_SAVING >= self._total:
            self._save()

    def _save(self) -> None:
        records: list[bytes] = []
        header = _Header(dict(self._header.covered), {})
        first = 0
        for key, group in self._header.rollouts.items():
            content = self._stored(key) + bytes(self._fresh.get(key, b""))
            count = len(content) // _RECORD.size
            header.rollouts[key] = _Group(first, count, zlib.crc32(content), group.fence)
            records.append(content)
            first += count
        encoded = msgspec.json.encode(header)
        encoded += b" " * (-len(encoded) % _RECORD.size)
        try:
            with Scratch(self._path.parent) as place:
                draft = place / INDEX_FILE
                with draft.open("wb") as file:
                    file.write(_PREFIX.pack(_MAGIC, len(encoded), zlib.crc32(encoded)))
                    file.write(encoded)
                    file.writelines(records)
                handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
                draft.replace(self._path)
        except (OSError, StoreError) as error:
            # It only saves time, and a reader may have no right or no room to write.
            _log.debug("%s not saved: %s", self._path, error)
            return
        self._keep(handle)
        self._header, self._start = header, _PREFIX.size + len(encoded)
        self._fresh, self._fresh_count = {}, 0


def _decode(path: Path, offset: int, line: bytes) -> _Head:
    try:
        return _heads.decode(line)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path}: byte {offset}: is not an event ({error})") from error
