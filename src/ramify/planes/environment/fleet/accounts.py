"""Accounts that are leased, from a file that outlives whoever holds them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ramify.contracts.context import Clock
from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.fleet import Lease

_PAUSE_SEC = 0.1


class _Book(msgspec.Struct, forbid_unknown_fields=True):
    """What is on disk: the leases, by account, and the last fence given."""

    fence: int = 0
    leases: dict[str, Lease] = {}


_decoder = msgspec.json.Decoder(_Book)


class FileAccountBroker:
    """Implements `AccountBroker` with one file, for any number of processes of this machine.

    Every change is made under a lock of the file's neighbour `.lock`, written to a new file,
    flushed to disk and renamed: a death at any moment leaves the book before or after it. A torn
    or foreign file is refused, never taken for an empty one.

    Args:
        path: the file; its directory is made.
        accounts: name → facts of the accounts that may be leased.
        clock: time. Expiry goes by wall-clock time, as the book outlives processes.
        wait_sec: how long `lease` waits for an account to get free.
    """

    def __init__(
        self,
        path: Path,
        accounts: Mapping[str, Mapping[str, str]],
        clock: Clock,
        wait_sec: float = 60.0,
    ) -> None:
        self._path = path
        self._accounts = {name: dict(facts) for name, facts in accounts.items()}
        self._clock = clock
        self._wait = wait_sec

    async def lease(self, holder: str, seconds: float) -> Lease:
        """See `AccountBroker`. Accounts that were free for longest come first."""
        deadline = self._clock.monotonic() + self._wait
        while True:
            found = await asyncio.to_thread(self._grant, holder, seconds)
            if found is not None:
                return found
            if self._clock.monotonic() >= deadline:
                raise EnvironmentFailed(
                    f"none of {len(self._accounts)} accounts got free within {self._wait:g} s: "
                    "declare more of them, or run fewer rollouts at a time"
                )
            await self._clock.sleep(_PAUSE_SEC)

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        """See `AccountBroker`."""
        found = await asyncio.to_thread(self._extend, lease, seconds)
        if found is None:
            raise EnvironmentFailed(
                f"the lease of {lease.account!r} by {lease.holder!r} is over: somebody else may "
                "have the account"
            )
        return found

    async def release(self, lease: Lease) -> None:
        """See `AccountBroker`."""
        await asyncio.to_thread(self._end, lease)

    async def leases(self) -> list[Lease]:
        """See `AccountBroker`."""
        return await asyncio.to_thread(self._current)

    def _grant(self, holder: str, seconds: float) -> Lease | None:
        with self._book() as book:
            now = self._clock.now()
            free = [n for n in self._accounts if not self._holds(book.leases.get(n), now)]
            if not free:
                return None
            last = {name: lease.fence for name, lease in book.leases.items()}
            name = min(free, key=lambda account: last.get(account, 0))
            book.fence += 1
            lease = Lease(name, holder, book.fence, now + seconds, self._accounts[name])
            book.leases[name] = lease
            self._write(book)
            return lease

    def _extend(self, lease: Lease, seconds: float) -> Lease | None:
        with self._book() as book:
            now = self._clock.now()
            held = book.leases.get(lease.account)
            if held is None or held.fence != lease.fence or not self._holds(held, now):
                return None
            longer = msgspec.structs.replace(held, expires_at=now + seconds)
            book.leases[lease.account] = longer
            self._write(book)
            return longer

    def _end(self, lease: Lease) -> None:
        with self._book() as book:
            held = book.leases.get(lease.account)
            if held is not None and held.fence == lease.fence:
                book.leases[lease.account] = msgspec.structs.replace(held, expires_at=0.0)
                self._write(book)

    def _current(self) -> list[Lease]:
        with self._book() as book:
            now = self._clock.now()
            return [lease for lease in book.leases.values() if self._holds(lease, now)]

    @staticmethod
    def _holds(lease: Lease | None, now: float) -> bool:
        return lease is not None and lease.expires_at > now

    @contextmanager
    def _book(self) -> Generator[_Book]:
        """The book, locked against every other process and thread."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(lock)

    def _read(self) -> _Book:
        try:
            return _decoder.decode(self._path.read_bytes())
        except FileNotFoundError:
            return _Book()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EnvironmentFailed(
                f"{self._path}: not a book of accounts ({error}); remove it once nobody holds one"
            ) from error

    def _write(self, book: _Book) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = msgspec.json.encode(book)
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(new, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
