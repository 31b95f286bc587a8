"""A world by itself, without agent or task: started for a person, or checked step by step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from ramify import compose
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.config import RolloutConfig
from ramify.contracts.context import Context
from ramify.contracts.environment import Forkable, Revertible, WorldState
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.events import AnyEvent
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider, SandboxSpec
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Task, TaskPackage
from ramify.engine.cancel import Cancellation
from ramify.engine.clock import SystemClock
from ramify.envs.specs import enforced, sandbox_spec
from ramify.kernel.cut import until_healthy
from ramify.kernel.recorder import TreeRecorder

_ID = "world"


class DeclaredWorld(Revertible, Forkable, Protocol):
    """A world of a manifest."""

    async def mutate(self) -> tuple[str, ...]:
        """Change every declared state a little; says what was changed."""
        ...

    async def urls(self) -> dict[str, str]:
        """Service → `http://host:port` on this host."""
        ...


class WorldStep(msgspec.Struct, frozen=True):
    """One step of a check.

    `status`: `ok`, `failed`, or `left out` (the manifest gives it nothing to do, or the world
    refuses it: `detail` says why).
    """

    name: str
    status: Literal["ok", "failed", "left out"]
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorldChoice:
    """Which world, and where.

    Attributes:
        manifest: the file.
        sandbox: the provider's name.
        task: the part of a task id that the world is selected by, where it is.
        image_free: on the host's root in place of the manifest's image.
    """

    manifest: Path
    sandbox: str = "local"
    task: str = "check"
    image_free: bool = False


class _Silent:
    """An observer without anybody to tell."""

    def emit(self, event: AnyEvent) -> None:
        """Drop it."""


@dataclass(slots=True)
class _Stand:
    """The parts of a world that stands by itself, and what has to be undone."""

    choice: WorldChoice
    scratch: Path
    undo: AsyncExitStack
    task: Task = field(init=False)
    spec: SandboxSpec = field(init=False)
    provider: SandboxProvider = field(init=False)
    ctx: Context = field(init=False)
    world: DeclaredWorld = field(init=False)

    async def read(self) -> str:
        """Read the manifest and see whether the sandbox can have it."""
        choice = self.choice
        place = choice.manifest.resolve()
        bare = SandboxSpec(host_root=True)
        package = TaskPackage(
            str(place.parent), "", bare, world=str(place), host_root_ok=choice.image_free
        )
        self.task = await asyncio.to_thread(
            compose.in_world, Task(f"worlds:{choice.task}", package=package)
        )
        keep = self.scratch / "keep"
        fleets = compose.fleets(keep)
        self.world = compose.manifest_world(
            place, keep, fleets, revertible=True, declared_only=True
        )
        self.provider = compose.sandbox_provider(choice.sandbox)
        self.undo.push_async_callback(self.provider.aclose)
        self.undo.push_async_callback(fleets.aclose)
        probe = await self.provider.probe()
        if not probe.ok:
            why = "; ".join(filter(None, (probe.detail, probe.remedy)))
            raise UnsupportedError(f"sandbox `{choice.sandbox}`: {why}")
        can = self.provider.capabilities()
        wanted = sandbox_spec(self.task, choice.sandbox, can)
        spec, lacking = enforced(wanted, can)
        self.spec = msgspec.structs.replace(spec, live=can.snapshot == "live")
        selected = [f"{key}={value}" for key, value in self.spec.env.items()]
        return ", ".join([*selected, *(f"{name} is not limited here" for name in lacking)])

    async def start(self) -> str:
        """Make the sandbox."""
        image = await self.provider.prepare(self.spec)
        sandbox = await self.provider.create(self.spec, image)
        clock, observer = SystemClock(), _Silent()
        self.ctx = Context(
            task=self.task,
            config=RolloutConfig(),
            rollout_id=_ID,
            clock=clock,
            rng=random.Random(0),
            cancel=Cancellation(),
            observer=observer,
            recorder=TreeRecorder(_ID, observer, clock),
            artifacts=self.scratch / "artifacts",
            sandbox=sandbox,
            sandboxes=self.provider,
            image=image,
        )
        return self.spec.image or ("the host's root" if self.spec.host_root else "Dockerfile")

    async def provision(self) -> str:
        """Put files in place and start the services."""
        self.undo.push_async_callback(self.world.teardown)
        sandbox = self.ctx.sandbox
        assert sandbox is not None
        await self.world.provision(sandbox, self.ctx)
        return ""

    async def wait(self) -> str:
        """Wait until the world is healthy."""
        await until_healthy(self.world, self.ctx, compose.readiness_timeout(self.task))
        return ", ".join(await self.world.urls())


@asynccontextmanager
async def open_world(choice: WorldChoice) -> AsyncGenerator[DeclaredWorld]:
    """A world that is healthy; it is gone at the end.

    Raises: UsageError and its kinds, EnvironmentFailed, SandboxError.
    """
    async with _stand(choice) as stand:
        for step in (stand.read, stand.start, stand.provision, stand.wait):
            await step()
        yield stand.world


@asynccontextmanager
async def _stand(choice: WorldChoice) -> AsyncGenerator[_Stand]:
    async with AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(Scratch())
        undo = AsyncExitStack()
        try:
            yield _Stand(choice, scratch, undo)
        finally:
            await uninterrupted(undo.aclose())


async def check_world(choice: WorldChoice) -> AsyncGenerator[WorldStep]:
    """Check that a world comes up, is put back exactly, and goes; a step at a time.

    Raises: UsageError and its kinds (the manifest, the sandbox), InfraError. What the world itself
    does wrong is a step that failed, after which only the teardown is left.
    """
    async with _stand(choice) as stand:
        check = _Check(stand)
        ok = True
        for name, action in check.steps():
            step = await check.timed(name, action)
            yield step
            ok = step.status != "failed"
            if not ok:
                break
        yield await check.timed("teardown", check.teardown)


async def _captured(sandbox: Sandbox) -> SandboxImage:
    if sandbox.spec.live and isinstance(sandbox, Snapshottable):
        return await sandbox.checkpoint()
    if isinstance(sandbox, Freezable):
        return await sandbox.freeze()
    raise UnsupportedError("this sandbox cannot be frozen")


class _LeftOut(Exception):  # noqa: N818  (no error: a step has nothing to do)
    """A step does not apply."""


@dataclass(slots=True)
class _Check:
    """The steps of one check."""

    stand: _Stand
    digest: str = ""

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        stand = self.stand
        return [
            ("manifest", stand.read),
            ("sandbox", stand.start),
            ("provision", stand.provision),
            ("readiness", stand.wait),
            ("snapshot", self.snapshot_twice),
            ("mutate and restore", self.restore),
            ("mutate and reset", self.reset),
            ("branch", self.branch),
        ]

    async def timed(self, name: str, action: Callable[[], Awaitable[str]]) -> WorldStep:
        clock = SystemClock()
        began = clock.monotonic()
        status: Literal["ok", "failed", "left out"] = "ok"
        try:
            detail = await action()
        except _LeftOut as reason:
            status, detail = "left out", str(reason)
        except EnvironmentFailed as error:
            status, detail = "failed", str(error)
        return WorldStep(name, status, clock.monotonic() - began, detail)

    async def snapshot_twice(self) -> str:
        """Two snapshots of a world that nobody uses have one digest."""
        if not (await self.stand.world.query())["state"]:
            raise _LeftOut("the manifest declares no [[environment.state]]")
        first = await self.stand.world.snapshot()
        second = await self.stand.world.snapshot()
        if first.digest != second.digest:
            raise EnvironmentFailed(
                "two snapshots of an idle world differ: something writes to it by itself, or a "
                "`digest` counts what is no state"
            )
        self.digest = first.digest
        return f"{first.size_bytes:,} bytes, digest {first.digest[:12]}"

    async def restore(self) -> str:
        """What was changed is undone by `restore`."""
        self._need_state()
        world = self.stand.world
        before = await world.snapshot()
        changed = await self._mutate()
        await world.restore(before)
        return changed

    async def reset(self) -> str:
        """What was changed is undone by `reset`."""
        self._need_state()
        changed = await self._mutate()
        await self.stand.world.reset()
        await self._expect_unchanged("reset")
        return changed

    async def branch(self) -> str:
        """A copy of the world, made through a checkpoint, holds what the world held."""
        world, ctx = self.stand.world, self.stand.ctx
        sandbox, provider = ctx.sandbox, self.stand.provider
        if sandbox is None or sandbox.capabilities().snapshot == "none":
            raise _LeftOut("this sandbox has no file system of its own to freeze")
        before = await world.describe()
        try:
            ways = await world.quiesce(sandbox.spec.live)
            image = await _captured(sandbox)
        except UnsupportedError as refusal:
            await world.resume()
            raise _LeftOut(f"refused: {refusal}") from None
        try:
            if await self._copied(image) != before:
                raise EnvironmentFailed("a copy of the world is not what the world was")
        finally:
            await provider.discard(image)
        return ", ".join(f"{name}: {way}" for name, way in ways.items()) or "no services"

    async def _copied(self, image: SandboxImage) -> WorldState:
        """What a copy of the world holds; it is gone afterwards."""
        stand = self.stand
        sandbox = await stand.provider.create(stand.spec, image)
        ctx = replace(stand.ctx, sandbox=sandbox, artifacts=stand.scratch / "copy")
        try:
            copy = await stand.world.fork(sandbox, ctx)
            try:
                await until_healthy(copy, ctx, compose.readiness_timeout(stand.task))
                return await copy.describe()
            finally:
                await uninterrupted(copy.teardown())
        finally:
            await uninterrupted(sandbox.teardown())

    async def teardown(self) -> str:
        """End the world and its sandbox."""
        await self.stand.undo.aclose()
        return ""

    def _need_state(self) -> None:
        if not self.digest:
            raise _LeftOut("there is no declared state")

    async def _mutate(self) -> str:
        try:
            changed = await self.stand.world.mutate()
        except UnsupportedError as error:
            raise _LeftOut(str(error)) from None
        if (await self.stand.world.query())["digest"] == self.digest:
            raise EnvironmentFailed(
                f"the digest does not see what was changed ({'; '.join(changed)})"
            )
        return "; ".join(changed)

    async def _expect_unchanged(self, what: str) -> None:
        if (await self.stand.world.query())["digest"] != self.digest:
            raise EnvironmentFailed(f"{what} did not bring back the state")
