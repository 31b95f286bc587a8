"""Accounts are leased to one holder at a time, whoever dies when."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.fleet import Lease
from ramify.planes.environment.fleet.accounts import FileAccountBroker
from ramify.testing.context import RealClock
from ramify.testing.fakecontext import FakeClock

ACCOUNTS = {"ann": {"user": "a"}, "bob": {"user": "b"}}


def broker(path: Path, clock: FakeClock, wait: float = 0.0) -> FileAccountBroker:
    return FileAccountBroker(path / "book/accounts.json", ACCOUNTS, clock, wait)


async def test_one_holder_at_a_time(tmp_path: Path) -> None:
    clock = FakeClock()
    one, two = broker(tmp_path, clock), broker(tmp_path, clock)
    first, second = await one.lease("r1", 60), await two.lease("r2", 60)
    assert {first.account, second.account} == {"ann", "bob"}
    assert first.fence < second.fence
    assert first.facts == ACCOUNTS[first.account]
    with pytest.raises(EnvironmentFailed, match="none of 2 accounts"):
        await one.lease("r3", 60)
    await two.release(first)
    third = await one.lease("r3", 60)
    assert third.account == first.account
    await one.release(first)  # late: it is somebody else's by now
    with pytest.raises(EnvironmentFailed, match="over"):
        await one.renew(first, 60)
    assert {lease.holder for lease in await one.leases()} == {"r2", "r3"}


async def test_a_lease_ends_by_itself_unless_it_is_renewed(tmp_path: Path) -> None:
    clock = FakeClock()
    accounts = broker(tmp_path, clock)
    first, second = await accounts.lease("r1", 60), await accounts.lease("r2", 60)
    await clock.sleep(50)
    first = await accounts.renew(first, 60)
    await clock.sleep(50)
    third = await accounts.lease("r3", 60)
    assert third.account == second.account
    assert await accounts.leases() == [first, third] or await accounts.leases() == [third, first]


async def test_a_lease_is_waited_for(tmp_path: Path) -> None:
    clock = RealClock()
    accounts = FileAccountBroker(tmp_path / "a.json", {"one": {}}, clock, 30)
    held = await accounts.lease("r1", 60)
    waiting = asyncio.create_task(accounts.lease("r2", 60))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await accounts.release(held)
    assert (await waiting).holder == "r2"


@pytest.mark.parametrize("content", [b"", b"{", b'{"fence": "x"}', b"[]", b'{"other": 1}'])
async def test_a_foreign_book_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book/accounts.json").write_bytes(content)
    with pytest.raises(EnvironmentFailed, match=r"accounts\.json"):
        await broker(tmp_path, FakeClock()).lease("r1", 60)


HOLDER = """
import asyncio, sys
from pathlib import Path
from ramify.planes.environment.fleet.accounts import FileAccountBroker
from ramify.testing.context import RealClock
async def main():
    path, log = Path(sys.argv[1]), open(sys.argv[2], "a")
    book = FileAccountBroker(path, {str(n): {} for n in range(3)}, RealClock(), 30)
    while True:
        lease = await book.lease(sys.argv[3], 2)
        print("+", lease.account, lease.fence, flush=True, file=log)
        await book.renew(lease, 2)
        print("-", lease.account, lease.fence, flush=True, file=log)
        await book.release(lease)
asyncio.run(main())
"""


async def test_holders_that_are_killed_leave_a_whole_book(tmp_path: Path) -> None:
    """Six processes lease three accounts and are killed at any moment, again and again."""
    book, log = tmp_path / "accounts.json", tmp_path / "log"
    for turn in range(4):
        holders = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", HOLDER, str(book), str(log), f"h{turn}-{number}"
            )
            for number in range(6)
        ]
        size = log.stat().st_size if log.exists() else 0
        while not log.exists() or log.stat().st_size < size + 200:  # noqa: ASYNC110  (other processes)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05 * turn)
        for holder in holders:
            os.kill(holder.pid, signal.SIGKILL)
        for holder in holders:
            await holder.wait()
        accounts = FileAccountBroker(book, {str(n): {} for n in range(3)}, RealClock(), 30)
        lease = await accounts.lease("after", 1)
        await accounts.release(lease)
    fences = [line.split()[2] for line in log.read_text().splitlines() if line.startswith("+")]
    assert len(set(fences)) == len(fences)


class Accounts(RuleBasedStateMachine):
    """Against a plain model: who holds what, and until when."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.held: dict[str, Lease] = {}
        self.old: list[Lease] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    def broker(self) -> FileAccountBroker:
        return broker(Path(self.folder.name), self.clock)

    def current(self) -> dict[str, Lease]:
        now = self.clock.now()
        return {name: lease for name, lease in self.held.items() if lease.expires_at > now}

    @rule(seconds=st.integers(1, 100))
    def lease(self, seconds: int) -> None:
        if len(self.current()) == len(ACCOUNTS):
            with pytest.raises(EnvironmentFailed):
                asyncio.run(self.broker().lease("x", seconds))
            return
        lease = asyncio.run(self.broker().lease("x", seconds))
        assert lease.account not in self.current()
        self.held[lease.account] = lease
        self.old.append(lease)

    @rule(which=st.integers(0, 30), seconds=st.integers(1, 100))
    def renew(self, which: int, seconds: int) -> None:
        if not self.old:
            return
        lease = self.old[which % len(self.old)]
        mine = self.current().get(lease.account)
        if mine is None or mine.fence != lease.fence:
            with pytest.raises(EnvironmentFailed):
                asyncio.run(self.broker().renew(lease, seconds))
        else:
            self.held[lease.account] = asyncio.run(self.broker().renew(lease, seconds))

    @rule(which=st.integers(0, 30))
    def release(self, which: int) -> None:
        if not self.old:
            return
        lease = self.old[which % len(self.old)]
        asyncio.run(self.broker().release(lease))
        if (mine := self.held.get(lease.account)) is not None and mine.fence == lease.fence:
            del self.held[lease.account]

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        asyncio.run(self.clock.sleep(seconds))

    @invariant()
    def agrees(self) -> None:
        found = asyncio.run(self.broker().leases())
        assert {lease.account: lease for lease in found} == self.current()


Accounts.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestAccounts = Accounts.TestCase
