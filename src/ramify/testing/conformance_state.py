"""The conformance suite of the StateDriver contract, for every kind of state: ours and yours.

    from ramify.testing.conformance_state import STATE_CHECKS, StateBench

    @pytest.mark.parametrize("check", STATE_CHECKS, ids=lambda check: check.name)
    async def test_my_driver(check, tmp_path):
        async with my_world() as world:
            await check.run(StateBench(world.driver, world.change, tmp_path, ...))

A check raises ConformanceError where the contract is broken, and CheckSkipped where what it needs
is not offered. Each has a world of its own: it may leave it in any state.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ramify.contracts.drivers import StateDriver
from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.testing.check import Check, check, equal, raises, require


class NumberWriter(Protocol):
    """A process of the world that writes 1, 2, 3, ... into the state as fast as it can.

    It keeps its connection open, and writes each number until the service has acknowledged it.
    """

    async def go(self) -> None:
        """Start, or go on with the next number."""
        ...

    async def pause(self) -> None:
        """Return when nothing is being written any more; the connection stays open."""
        ...

    async def acknowledged(self) -> int:
        """The last number that the service acknowledged."""
        ...

    async def stored(self) -> list[int]:
        """The numbers that stand in the state now, in order."""
        ...


@dataclass(frozen=True, slots=True)
class StateBench:
    """A driver under test, in a live world.

    Attributes:
        driver: the driver.
        change: changes the state in the n-th of several ways, as the world itself would; so that
            states after different numbers, and before, differ.
        scratch: an empty directory of this check.
        foreign: the driver of another part of the same world, which the driver has to refuse
            snapshots of.
        writer: a hammering writer.
        kill: ends the service that keeps the state, at once.
        rounds: how often an exact restore has to succeed in a row.
    """

    driver: StateDriver
    change: Callable[[int], Awaitable[None]]
    scratch: Path
    foreign: StateDriver | None = None
    writer: NumberWriter | None = None
    kill: Callable[[], Awaitable[None]] | None = None
    rounds: int = 20

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`. Needs: `foreign`, `writer`, `kill`."""
        offers = {"foreign": self.foreign, "writer": self.writer, "kill": self.kill}
        if need not in offers:
            raise ValueError(f"unknown need {need!r}; known: {sorted(offers)}")
        return f"this world has no {need}" if offers[need] is None else None

    async def taken(self, name: str = "snapshot") -> Path:
        """A new snapshot."""
        place = self.scratch / name
        place.mkdir()
        await self.driver.snapshot(place)
        return place


@check(timeout_sec=600)
async def _restore_is_exact(bench: StateBench) -> None:
    """`restore` brings the live world back to exactly what `snapshot` wrote, every time."""
    digest, described = await bench.driver.digest(), await bench.driver.describe()
    place = await bench.taken()
    for number in range(bench.rounds):
        await bench.change(number)
        require(await bench.driver.digest() != digest, f"change {number} is not in the digest")
        await bench.driver.restore(place)
        if number % 7 == 0:
            equal(await bench.driver.describe(), described, f"the state after restore {number}")
        equal(await bench.driver.digest(), digest, f"the digest after restore {number}")


@check(timeout_sec=120)
async def _snapshot_changes_nothing(bench: StateBench) -> None:
    """Looking does not change the world: snapshot, digest and describe leave it as it was."""
    before = await bench.driver.digest()
    described = await bench.driver.describe()
    await bench.taken()
    equal(await bench.driver.digest(), before, "the digest after a snapshot")
    equal(await bench.driver.describe(), described, "the description after a snapshot")


@check(timeout_sec=240)
async def _any_number_of_times(bench: StateBench) -> None:
    """A snapshot can be restored any number of times and is not changed, in any order."""
    first, before = await bench.taken("first"), await bench.driver.digest()
    await bench.change(0)
    second, after = await bench.taken("second"), await bench.driver.digest()
    files = _files(bench.scratch)
    for place, digest in ((first, before), (first, before), (second, after), (first, before)):
        await bench.driver.restore(place)
        equal(await bench.driver.digest(), digest, f"the digest after restoring {place.name}")
    equal(_files(bench.scratch), files, "the snapshots after being restored")


@check(timeout_sec=240)
async def _descriptions_tell_states_apart(bench: StateBench) -> None:
    """`describe` is equal for equal state and says what a change changed; so does `digest`."""
    seen = {await bench.driver.digest(): await bench.driver.describe()}
    for number in range(3):
        await bench.change(number)
        digest, described = await bench.driver.digest(), await bench.driver.describe()
        require(described not in seen.values(), f"change {number} is not in the description")
        seen[digest] = described
        equal(await bench.driver.describe(), described, "a second description")
        equal(await bench.driver.digest(), digest, "a second digest")
    equal(len(seen), 4, "digests of four states")
    for described in seen.values():
        texts = [(k, v) for part in described.values() for k, v in part.items()]
        require(all(isinstance(x, str) for pair in texts for x in pair), "entries are text")  # pyright: ignore[reportUnnecessaryIsInstance]
        for key, value in texts:  # they go into JSON files
            (key + value).encode("utf-8")


@check(timeout_sec=240)
async def _damaged_snapshots_are_refused(bench: StateBench) -> None:
    """A snapshot that is damaged, incomplete or none at all is refused, and nothing is touched."""
    place = await bench.taken()
    await bench.change(0)
    digest = await bench.driver.digest()
    whole = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for path, data in whole.items():
        for wrong in (data[:-1], data + b"x", _flipped(data), None):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            with raises(EnvironmentFailed, ConfigError, doing=f"restoring with {path.name} wrong"):
                await bench.driver.restore(place)
            path.write_bytes(data)
    for nothing in (bench.scratch / "nowhere", bench.scratch / "empty"):
        if nothing.name == "empty":
            nothing.mkdir()
        with raises(EnvironmentFailed, ConfigError, doing="restoring from nothing"):
            await bench.driver.restore(nothing)
    equal(await bench.driver.digest(), digest, "the digest after refused restores")
    await bench.driver.restore(place)


@check("foreign", timeout_sec=120)
async def _foreign_snapshots_are_refused(bench: StateBench) -> None:
    """A snapshot of another part is refused, and nothing is touched."""
    assert bench.foreign is not None
    place = bench.scratch / "foreign"
    place.mkdir()
    await bench.foreign.snapshot(place)
    digest = await bench.driver.digest()
    with raises(EnvironmentFailed, ConfigError, doing="restoring a foreign snapshot"):
        await bench.driver.restore(place)
    equal(await bench.driver.digest(), digest, "the digest after a refused restore")


@check(timeout_sec=120)
async def _mutate_changes_the_state(bench: StateBench) -> None:
    """`mutate` changes the state and says what it changed, and `restore` undoes it."""
    place, digest = await bench.taken(), await bench.driver.digest()
    try:
        said = await bench.driver.mutate()
    except UnsupportedError as error:
        require("mutate" in str(error), f"the refusal does not name the remedy: {error}")
        return
    require(bool(said.strip()), "what was changed is not said")
    require(await bench.driver.digest() != digest, "mutate changed nothing")
    await bench.driver.restore(place)
    equal(await bench.driver.digest(), digest, "the digest after restoring")


@check("kill", timeout_sec=240)
async def _a_dead_service_is_said(bench: StateBench) -> None:
    """Where the service is dead each method raises EnvironmentFailed and names the part."""
    assert bench.kill is not None
    driver, place = bench.driver, await bench.taken()
    await bench.kill()
    empty = bench.scratch / "after"
    empty.mkdir()
    for doing in (driver.snapshot(empty), driver.restore(place), driver.digest()):
        try:
            await doing
        except EnvironmentFailed as error:
            require(driver.name in str(error), f"the error does not name the part: {error}")
        else:
            require(False, "a dead service went unnoticed")
    with raises(EnvironmentFailed, doing="describing a dead service"):
        await driver.describe()


@check("writer", timeout_sec=600)
async def _a_writer_hammers(bench: StateBench) -> None:
    """What is read and put back is one moment, under a writer that keeps its connection open."""
    assert bench.writer is not None
    writer, driver = bench.writer, bench.driver
    await writer.go()
    await _until(writer, 20)
    place = await bench.taken()
    await _until(writer, await writer.acknowledged() + 20)
    await writer.pause()
    await driver.restore(place)
    kept, digest = await writer.stored(), await driver.digest()
    require(len(kept) >= 20, f"{len(kept)} numbers are left of 20 that were acknowledged before")
    equal(kept, list(range(1, len(kept) + 1)), "the numbers of the snapshot")
    for number in range(bench.rounds):
        await writer.go()
        last = await writer.acknowledged()
        await _until(writer, last + 5)
        if number % 2:  # in the middle of its writing
            await driver.restore(place)
            await _until(writer, await writer.acknowledged() + 5)
            await writer.pause()
            found = await writer.stored()
            equal(found[: len(kept)], kept, "what the snapshot held")
            later = found[len(kept) :]
            require(bool(later) and later[0] > kept[-1], f"written since: {later[:5]}")
            equal(later, list(range(later[0], later[-1] + 1)), "written since the restore")
        await writer.pause()
        await driver.restore(place)
        equal(await writer.stored(), kept, f"the numbers after restore {number}")
        equal(await driver.digest(), digest, f"the digest after restore {number}")


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def _until(writer: NumberWriter, number: int) -> None:
    while await writer.acknowledged() < number:  # noqa: ASYNC110  (a process inside has no Event)
        await asyncio.sleep(0.01)


StateCheck = Check[StateBench]

STATE_CHECKS: tuple[StateCheck, ...] = (
    _restore_is_exact,
    _snapshot_changes_nothing,
    _any_number_of_times,
    _descriptions_tell_states_apart,
    _damaged_snapshots_are_refused,
    _foreign_snapshots_are_refused,
    _mutate_changes_the_state,
    _a_dead_service_is_said,
    _a_writer_hammers,
)
"""Every check of the contract StateDriver."""
