"""The conformance suite of the contracts Environment, Revertible and Forkable.

A world cannot be changed or broken in general, so the caller brings how:

    bench = EnvironmentBench(open=open, change=change, look=look, crash=crash)
    await check.run(bench)   # for each check of ENVIRONMENT_CHECKS

A check of a rung that the world does not have, or whose way is not brought, is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.environment import Environment, Forkable, Revertible, StateSnapshot
from ramify.contracts.errors import EnvironmentFailed, RamifyError, UnsupportedError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.sandbox import Sandbox, SandboxImage
from ramify.testing.check import (
    Check,
    CheckSkipped,
    ConformanceError,
    check,
    equal,
    raises,
    require,
    within,
)

Opened = tuple[Environment, Sandbox, Context]
Way = Callable[[Environment, Sandbox], Awaitable[object]]

_HEALTHY_SEC = 60.0


@dataclass(frozen=True, slots=True)
class EnvironmentBench:
    """A world under test.

    Attributes:
        open: a fresh world that is not provisioned yet, a sandbox for it, and a context whose
            `sandbox`, `sandboxes` and `image` are set; all of it is gone at the end.
        change: changes the world's state, differently each time.
        look: reads the whole state past the environment, as something that can be compared.
        crash: makes a service end by itself.
    """

    open: Callable[[], AbstractAsyncContextManager[Opened]]
    change: Way | None = None
    look: Way | None = None
    crash: Way | None = None

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`. Needs: `revertible`, `forkable`, `change` (and look), `crash`."""
        if need == "crash":
            return None if self.crash else "nothing is brought that makes a service end"
        if need == "change":
            return None if self.change and self.look else "no way to change and look is brought"
        kind = {"revertible": Revertible, "forkable": Forkable}.get(need)
        if kind is None:
            raise ValueError(f"unknown need {need!r}")
        async with self.open() as (world, _, _):
            return None if isinstance(world, kind) else f"the world is not {need}"

    async def alter(self, world: Environment, sandbox: Sandbox) -> None:
        """Change the state."""
        assert self.change is not None
        await self.change(world, sandbox)

    async def seen(self, world: Environment, sandbox: Sandbox) -> object:
        """The state, read past the environment."""
        assert self.look is not None
        return await self.look(world, sandbox)


async def _healthy(world: Environment, ctx: Context) -> float:
    """Wait until the world is healthy; returns `answered_at`."""
    try:
        async with asyncio.timeout(_HEALTHY_SEC):
            while not (probe := await world.readiness()).healthy:
                require(probe.retry_in_sec >= 0, f"retry_in_sec is {probe.retry_in_sec}")
                await ctx.clock.sleep(probe.retry_in_sec)
    except TimeoutError:
        raise ConformanceError(f"the world was not healthy in {_HEALTHY_SEC:g} s") from None
    return probe.answered_at


@asynccontextmanager
async def _started(bench: EnvironmentBench) -> AsyncGenerator[Opened]:
    async with bench.open() as (world, sandbox, ctx):
        await world.provision(sandbox, ctx)
        await _healthy(world, ctx)
        yield world, sandbox, ctx
        await world.teardown()


def _revertible(world: Environment) -> Revertible:
    if not isinstance(world, Revertible):
        raise ConformanceError("the world was revertible a moment ago")
    return world


async def _snapshot(world: Environment) -> StateSnapshot:
    try:
        return await _revertible(world).snapshot()
    except UnsupportedError as refusal:
        raise CheckSkipped(f"it refuses snapshots: {refusal}") from None


@check()
async def _nothing_before_provision(bench: EnvironmentBench) -> None:
    """readiness before provision raises EnvironmentFailed."""
    async with bench.open() as (world, _, _):
        with raises(EnvironmentFailed, doing="readiness before provision"):
            await world.readiness()


@check(timeout_sec=120)
async def _healthy_after_provision(bench: EnvironmentBench) -> None:
    """Once it is healthy, answered_at lies between provision and now on the clock."""
    async with bench.open() as (world, sandbox, ctx):
        began = ctx.clock.monotonic()
        await world.provision(sandbox, ctx)
        answered = await _healthy(world, ctx)
        now = ctx.clock.monotonic()
        require(began <= answered <= now, f"answered_at {answered} is not in {began}..{now}")
        again = (await world.readiness()).answered_at
        require(again >= answered, "answered_at goes back when it is asked again")
        await world.teardown()


@check(timeout_sec=120)
async def _query_is_json(bench: EnvironmentBench) -> None:
    """query returns the state as JSON, and changes nothing."""
    async with _started(bench) as (world, _, _):
        first = await world.query()
        encoded = msgspec.json.encode(first)
        equal(msgspec.json.decode(encoded), msgspec.to_builtins(first), "query through JSON")
        equal(await world.query(), first, "query asked twice")


@check(timeout_sec=120)
async def _teardown_is_idempotent(bench: EnvironmentBench) -> None:
    """teardown ends every process of the world; it may be called twice, or before provision."""
    async with bench.open() as (world, sandbox, ctx):
        await world.teardown()
    async with bench.open() as (world, sandbox, ctx):
        before = await _settled(sandbox)
        await world.provision(sandbox, ctx)
        await _healthy(world, ctx)
        with within(30, "teardown"):
            await world.teardown()
            await world.teardown()
        loop = asyncio.get_running_loop()
        end = loop.time() + 2
        while (left := await _processes(sandbox)) > before:
            require(loop.time() < end, f"{left - before} processes of the world are alive")
            await asyncio.sleep(0.05)


async def _settled(sandbox: Sandbox) -> int:
    """How many processes there are once the sandbox has made those that it keeps for itself."""
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(sandbox.exec("sleep 0.2", cwd="/"))
    return await _processes(sandbox)


async def _processes(sandbox: Sandbox) -> int:
    said = await sandbox.exec("set -- /proc/[0-9]*; echo $#", cwd="/")
    return int(said.stdout)


@check(timeout_sec=120)
async def _provision_again_goes_on(bench: EnvironmentBench) -> None:
    """provision is called again before each step of a task; the world stays healthy."""
    async with _started(bench) as (world, sandbox, ctx):
        await world.provision(sandbox, ctx)
        await _healthy(world, ctx)


@check("crash", timeout_sec=120)
async def _dead_service_is_told(bench: EnvironmentBench) -> None:
    """A service that has ended is an EnvironmentFailed of readiness and query."""
    async with _started(bench) as (world, sandbox, _):
        assert bench.crash is not None
        await bench.crash(world, sandbox)
        with raises(EnvironmentFailed, doing="readiness of a world with a dead service"):
            for _ in range(400):
                await world.readiness()
                await asyncio.sleep(0.05)
        with raises(EnvironmentFailed, doing="query of a world with a dead service"):
            await world.query()


@check("revertible", "crash", timeout_sec=120)
async def _dead_service_has_no_snapshot(bench: EnvironmentBench) -> None:
    """A snapshot of a world with a dead service is refused."""
    async with _started(bench) as (world, sandbox, _):
        await _snapshot(world)
        assert bench.crash is not None
        await bench.crash(world, sandbox)
        loop = asyncio.get_running_loop()
        end = loop.time() + 20
        while loop.time() < end:
            try:
                await _revertible(world).snapshot()
            except EnvironmentFailed:
                return
            await asyncio.sleep(0.05)
        raise ConformanceError("a world with a dead service still gives snapshots")


@check("revertible", "change", timeout_sec=180)
async def _restore_is_exact(bench: EnvironmentBench) -> None:
    """restore returns to exactly the state of the snapshot, as often as it is asked."""
    async with _started(bench) as (world, sandbox, _):
        await bench.alter(world, sandbox)
        before = await bench.seen(world, sandbox)
        taken = await _snapshot(world)
        equal((await _snapshot(world)).digest, taken.digest, "digest of an unchanged state")
        for _ in range(2):
            await bench.alter(world, sandbox)
            await bench.alter(world, sandbox)
            require(await bench.seen(world, sandbox) != before, "`change` changes nothing")
            changed = await _snapshot(world)
            require(changed.digest != taken.digest, "the digest does not see the change")
            await _revertible(world).restore(taken)
            equal(await bench.seen(world, sandbox), before, "the state after restore")
        equal((await _snapshot(world)).digest, taken.digest, "the digest after restore")


@check("revertible", "change", timeout_sec=180)
async def _reset_is_exact(bench: EnvironmentBench) -> None:
    """reset returns to the state right after provision."""
    async with _started(bench) as (world, sandbox, _):
        before = await bench.seen(world, sandbox)
        await bench.alter(world, sandbox)
        await _revertible(world).reset()
        equal(await bench.seen(world, sandbox), before, "the state after reset")


@check("revertible", timeout_sec=180)
async def _foreign_snapshot_is_refused(bench: EnvironmentBench) -> None:
    """restore of a snapshot of another world is a typed error, and changes nothing."""
    async with _started(bench) as (world, _, _):
        taken = await _snapshot(world)
        for strange in (_renamed(taken, "no-such"), _falsified(taken)):
            with raises(RamifyError, doing="restore of a foreign snapshot"):
                await _revertible(world).restore(strange)
        equal((await _snapshot(world)).digest, taken.digest, "the state after refused restores")


def _renamed(snapshot: StateSnapshot, name: str) -> StateSnapshot:
    """A snapshot that nobody took."""
    return msgspec.structs.replace(snapshot, id=name)


def _falsified(snapshot: StateSnapshot) -> StateSnapshot:
    """A snapshot of another state under the name of one that was taken."""
    return msgspec.structs.replace(snapshot, digest="0" * len(snapshot.digest))


@check("forkable", timeout_sec=120)
async def _describe_changes_nothing(bench: EnvironmentBench) -> None:
    """describe is equal for equal worlds, and changes nothing."""
    async with _started(bench) as (world, _, _):
        if isinstance(world, Forkable):
            first = await world.describe()
            equal(await world.describe(), first, "describe asked twice")


@check("forkable", "change", timeout_sec=120)
async def _describe_sees_changes(bench: EnvironmentBench) -> None:
    """describe differs where the state differs."""
    async with _started(bench) as (world, sandbox, _):
        if isinstance(world, Forkable):
            first = await world.describe()
            await bench.alter(world, sandbox)
            require(await world.describe() != first, "describe does not see the change")


async def _captured(sandbox: Sandbox) -> SandboxImage:
    if sandbox.spec.live and isinstance(sandbox, Snapshottable):
        return await sandbox.checkpoint()
    if isinstance(sandbox, Freezable):
        return await sandbox.freeze()
    raise CheckSkipped("the sandbox cannot be frozen")


async def _quiesced(world: Environment, sandbox: Sandbox) -> Forkable:
    if not isinstance(world, Forkable):
        raise ConformanceError("the world was forkable a moment ago")
    try:
        ways = await world.quiesce(sandbox.spec.live)
        strange = set(ways.values()) - {"live", "restart", "hook"}
        require(not strange, f"services come through as {strange}, which is no way")
    except UnsupportedError as refusal:
        raise CheckSkipped(f"it needs live processes: {refusal}") from None
    return world


@check("forkable", "change", timeout_sec=120)
async def _resume_undoes_quiesce(bench: EnvironmentBench) -> None:
    """After quiesce and resume the world is healthy and its state is what it was."""
    async with _started(bench) as (world, sandbox, ctx):
        await bench.alter(world, sandbox)
        before = await bench.seen(world, sandbox)
        await (await _quiesced(world, sandbox)).resume()
        await _healthy(world, ctx)
        equal(await bench.seen(world, sandbox), before, "the state after resume")


@check("forkable", "change", timeout_sec=240)
async def _forks_are_copies(bench: EnvironmentBench) -> None:
    """Forks hold the state of the checkpoint, run side by side, and do not see each other."""
    async with _started(bench) as (world, sandbox, ctx):
        await bench.alter(world, sandbox)
        before = await bench.seen(world, sandbox)
        if sandbox.capabilities().snapshot == "none":
            raise CheckSkipped("the sandbox cannot be frozen")
        forkable = await _quiesced(world, sandbox)
        image = await _captured(sandbox)
        assert ctx.sandboxes is not None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_fork(forkable, image, ctx, n)) for n in range(3)]
            children = [task.result() for task in tasks]
            for child, inside in children:
                equal(await bench.seen(child, inside), before, "the state of a fork")
            first, inside = children[0]
            await bench.alter(first, inside)
            for child, inside in children[1:]:
                equal(await bench.seen(child, inside), before, "the state of a sibling")
            for child, inside in children:
                await child.teardown()
                await inside.teardown()
        finally:
            await world.teardown()
            await ctx.sandboxes.discard(image)


async def _fork(
    world: Forkable, image: SandboxImage, ctx: Context, number: int
) -> tuple[Forkable, Sandbox]:
    assert ctx.sandboxes is not None
    assert ctx.sandbox is not None
    sandbox = await ctx.sandboxes.create(ctx.sandbox.spec, image)
    there = replace(ctx, sandbox=sandbox, artifacts=ctx.artifacts / f"child-{number}")
    child = await world.fork(sandbox, there)
    await _healthy(child, there)
    return child, sandbox


ENVIRONMENT_CHECKS: tuple[Check[EnvironmentBench], ...] = (
    _nothing_before_provision,
    _healthy_after_provision,
    _query_is_json,
    _teardown_is_idempotent,
    _provision_again_goes_on,
    _dead_service_is_told,
    _dead_service_has_no_snapshot,
    _restore_is_exact,
    _reset_is_exact,
    _foreign_snapshot_is_refused,
    _describe_changes_nothing,
    _describe_sees_changes,
    _resume_undoes_quiesce,
    _forks_are_copies,
)
"""Every check of the contracts Environment, Revertible and Forkable."""
