"""An append-only JSON Lines file with group commit.

`append` encodes a record once, into the buffer that one writer thread will write next, and
returns; nothing blocks the event loop. Whoever needs durability awaits `commit` or
`append_durable`: all who wait share one fdatasync.

When writing fails (no space, I/O error), everyone who waits gets a StoreError, the file is cut
back to its last whole line, records without a waiter stay in memory, and the next append, commit
or `ready` tries again. So nothing half-written stays, and nothing is lost while the engine lives.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import StoreError
from ramify.contracts.plain import encoded, plain
from ramify.engine.lines import read_lines, seal, sound_length

_LINGER_SEC = 0.01  # how long a record that nobody waits for may wait for company
_RETRY_SEC = 0.25  # after a failed write, unless somebody asks sooner
_EAGER_BYTES = 1 << 20  # this much is written at once

Waiter = asyncio.Future[None]


class Spill(Protocol):
    """Where parts of records go that are too large for a line."""

    limit: int
    """Lines up to this many bytes are left alone."""

    def split(self, record: Any) -> tuple[Any, bytes, Mapping[str, bytes]]:
        """The record without its large parts, JSON members that refer to them, and the parts."""
        ...

    def write(self, digest: str, payload: bytes) -> None:
        """Store a part; called by the writer thread before its line is written. Raises OSError."""
        ...

    def sync(self) -> None:
        """Make the parts durable; called before the lines are made so. Raises OSError."""
        ...


@dataclass(slots=True)
class _Batch:
    """What is to be written next. `owned` are the byte ranges whose appender waits for them."""

    buffer: bytearray = field(default_factory=bytearray)
    payloads: dict[str, bytes] = field(default_factory=dict[str, bytes])
    payload_bytes: int = 0
    owned: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    durable: list[Waiter] = field(default_factory=list[Waiter])
    room: list[Waiter] = field(default_factory=list[Waiter])

    @property
    def size(self) -> int:
        return len(self.buffer) + self.payload_bytes

    @property
    def awaited(self) -> bool:
        return bool(self.durable or self.room)

    @property
    def urgent(self) -> bool:
        return self.awaited or self.size >= _EAGER_BYTES

    def put_back(self, failed: _Batch) -> None:
        """Put what nobody waits for any more of a failed batch in front of this one."""
        kept, end = bytearray(), 0
        for first, last in failed.owned:
            kept += failed.buffer[end:first]
            end = last
        kept += failed.buffer[end:]
        self.owned = [(first + len(kept), last + len(kept)) for first, last in self.owned]
        self.buffer = kept + self.buffer
        self.payloads = failed.payloads | self.payloads
        self.payload_bytes += failed.payload_bytes


class Journal:
    """One file, one writer. Open it with the file's directory present; close with `aclose`.

    Opening cuts off a torn tail; the bytes cut off are kept in `<name>.torn`.

    Args:
        path: the file; made if missing, its name made durable.
        spill: where large parts of records go; None keeps them in the line.
        bound: bytes that may wait to be written before `ready` waits.

    Raises:
        StoreError: the file is damaged before its last line, or cannot be opened.
    """

    def __init__(self, path: Path, spill: Spill | None = None, bound: int = 32 << 20) -> None:
        self._path = path
        self._spill = spill
        self._bound = bound
        self._encoder = msgspec.json.Encoder(enc_hook=repr)
        self._handle, self._written = _open(path)
        self._synced = self._written
        self._suspect = False  # an fdatasync failed: what is unsynced must be written again
        self._ragged = False  # a write failed: bytes may lie behind `_written`
        self._all_owned = True  # whoever appended what is unsynced waits for it
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._next = _Batch()
        self._in_flight = 0
        self._failure: StoreError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"journal {path.name}", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def append(self, record: Any) -> None:
        """Add a record. It is written within milliseconds and durable after the next `commit`.

        Safe from any thread, returns at once, and raises only once closed (StoreError): what JSON
        cannot hold is written as `contracts.plain` has it. After a failed write it stays in memory
        until writing works.
        """
        self._append(record, None)

    async def append_durable(self, record: Any) -> None:
        """Add a record and return when it, and all before it, will survive a power failure.

        Raises StoreError: the record is not acknowledged and, unless records that nobody awaited
        shared a failed sync with it, not in the file either.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._append(record, waiter)
        await waiter

    async def commit(self) -> None:
        """Return when every record appended before is durable. Raises StoreError."""
        await self._wait(self._next_durable)

    async def ready(self) -> None:
        """Return when there is room for more: at once, as a rule. Raises StoreError.

        After a failed write it tries again, so while records are kept back it raises for as
        long as the cause lasts.
        """
        if self._failure is None and self._next.size + self._in_flight < self._bound:
            return
        await self._wait(self._next_room)

    async def aclose(self) -> None:
        """Write and sync everything, and end the writer. Idempotent. Raises StoreError."""
        if self._closing:
            return
        try:
            await self.commit()
        finally:
            await uninterrupted(asyncio.to_thread(self.close))

    def close(self) -> None:
        """Write what was appended and end the writer, without syncing. Blocks for that long."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._thread.join()
        os.close(self._handle)

    def _next_durable(self) -> list[Waiter]:
        return self._next.durable

    def _next_room(self) -> list[Waiter]:
        return self._next.room

    async def _wait(self, choose: Callable[[], list[Waiter]]) -> None:
        waiter: Waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            self._require_open()
            choose().append(waiter)
            self._wake.notify()
        await waiter

    def _append(self, record: Any, waiter: Waiter | None) -> None:
        with self._lock:
            self._require_open()
            batch = self._next
            idle = not batch.size
            start = len(batch.buffer)
            self._encode(record, batch, start)
            if waiter is not None:
                batch.owned.append((start, len(batch.buffer)))
                batch.durable.append(waiter)
            if idle or batch.urgent:
                self._wake.notify()

    def _require_open(self) -> None:
        if self._closing:
            raise StoreError(f"{self._path}: the journal is closed; open the job directory again")

    def _encode(self, record: Any, batch: _Batch, start: int) -> None:
        buffer = batch.buffer
        try:
            self._encoder.encode_into(record, buffer, -1)
            if self._spill is None or len(buffer) - start <= self._spill.limit:
                seal(buffer, start)
                return
            record, members, payloads = self._spill.split(record)
            del buffer[start:]
            self._encoder.encode_into(record, buffer, -1)
        except Exception:
            # Text with lone surrogates, mostly: hostile output must not stop the recording.
            del buffer[start:]
            buffer += encoded(plain(record))
            seal(buffer, start)
            return
        seal(buffer, start, members)
        batch.payloads.update(payloads)
        batch.payload_bytes += sum(len(payload) for payload in payloads.values())

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            failure: StoreError | None = None
            try:
                self._write(batch)
                if batch.durable:
                    self._sync()
            except OSError as error:
                failure = StoreError(
                    f"{self._path}: cannot be written ({error.strerror}); free space on that file "
                    "system and run the same command again: what was acknowledged is safe"
                )
            except StoreError as error:
                failure = error
            except Exception as error:  # whoever waits must hear of it, whatever it was
                failure = StoreError(f"{self._path}: cannot be written ({error!r})")
            with self._lock:
                self._failure = failure
                self._in_flight = 0
            _settle(batch.durable + batch.room, failure)
        left = self._next
        _settle(left.durable + left.room, StoreError(f"{self._path}: the journal was closed"))

    def _take(self) -> _Batch | None:
        with self._lock:
            if self._failure is not None:
                self._wake.wait_for(lambda: self._closing or self._next.awaited, _RETRY_SEC)
            while not (self._closing or self._next.size or self._next.awaited):
                self._wake.wait()
            if not (self._closing or self._next.urgent):
                self._wake.wait_for(lambda: self._closing or self._next.urgent, _LINGER_SEC)
            if self._closing and (self._failure is not None or not self._next.size):
                return None
            batch, self._next = self._next, _Batch()
            self._in_flight = batch.size
            return batch

    def _write(self, batch: _Batch) -> None:
        try:
            if self._ragged:
                os.ftruncate(self._handle, self._written)
                self._ragged = False
            if self._spill is not None:
                for digest, payload in batch.payloads.items():
                    self._spill.write(digest, payload)
            self._ragged = True
            _write_at(self._handle, batch.buffer, self._written)
            self._ragged = False
        except Exception:  # raised again; the batch goes back, so that nothing is lost
            with self._lock:
                self._next.put_back(batch)
            if self._ragged:
                os.ftruncate(self._handle, self._written)
                self._ragged = False
            raise
        self._written += len(batch.buffer)
        owned = sum(last - first for first, last in batch.owned)
        self._all_owned = self._all_owned and owned == len(batch.buffer)

    def _sync(self) -> None:
        if self._suspect:
            self._write_again()
        self._suspect = True
        try:
            if self._spill is not None:
                self._spill.sync()
            os.fdatasync(self._handle)
        except OSError:
            if self._all_owned:  # everyone concerned is told: take it back altogether
                os.ftruncate(self._handle, self._synced)
                self._written = self._synced
                self._suspect = False
            raise
        self._suspect = False
        self._synced = self._written
        self._all_owned = True

    def _write_again(self) -> None:
        # After a failed fdatasync the kernel counts pages as clean that never reached the disk.
        end = self._synced
        for offset, line in read_lines(self._path, self._synced, self._written):
            _write_at(self._handle, line, offset)
            end = offset + len(line)
        if end != self._written:
            raise StoreError(
                f"{self._path}: records after byte {end} were lost when the disk failed; check "
                "the disk and run the same command again"
            )


def _open(path: Path) -> tuple[int, int]:
    try:
        length = sound_length(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if torn := os.pread(handle, os.fstat(handle).st_size - length, length):
                path.with_name(f"{path.name}.torn").write_bytes(torn)
                os.ftruncate(handle, length)
            os.fsync(handle)
            sync_directory(path.parent)
        except OSError:
            os.close(handle)
            raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened for writing ({error.strerror})") from error
    return handle, length


def sync_directory(path: Path) -> None:
    """Make durable which names a directory holds. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_at(handle: int, content: bytes | bytearray, offset: int) -> None:
    with memoryview(content) as view:
        done = 0
        while done < len(view):
            with view[done:] as rest:
                done += os.pwrite(handle, rest, offset + done)


def _settle(waiters: Iterable[Waiter], failure: StoreError | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, group, failure)
        except RuntimeError:
            continue  # the loop is closed, and with it everyone who waited


def _resolve(waiters: list[Waiter], failure: StoreError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(StoreError(*failure.args))
