"""A checkpoint of one path: its sandbox, its world and its session at one moment, as a value.

quiesce → checkpoint → (any number of times) revive. Files, processes and the state of services are
one cut (DESIGN.md §5); the session is captured while its turn waits between two steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ramify.contracts.agent import Agent, Checkpointable, Session, SessionState
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.environment import Environment, Forkable
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.reward import VerifyResult
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxSpec
from ramify.contracts.tree import Fidelity
from ramify.kernel.stages import Stage
from ramify.kernel.strays import stray_processes


@dataclass(slots=True)
class World:
    """What is alive at the end of a path."""

    sandbox: Sandbox
    environment: Environment | None = None
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a path has come, besides its world.

    Attributes:
        stage: index of the stage it is in; `turning`: its turn was interrupted.
        spent_sec: time the agent has had for this stage, `total_sec` for all.
        scores: stages that are scored already.
        branches: branches on the path so far.
    """

    stage: int = 0
    turning: bool = False
    spent_sec: float = 0.0
    total_sec: float = 0.0
    scores: tuple[tuple[Stage, VerifyResult], ...] = ()
    branches: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A checkpoint.

    Attributes:
        node: the node it was taken at.
        image: files, and processes where `image.live`.
        world: quiesced; each copy is its `fork`.
        session: None where a new session must be opened.
        services: service → how it comes through.
        spec: of the sandbox.
        fidelity: what each copy gets of the session.
        standing: how far the path had come.
        why: why it is not more than that (empty: nothing was lost).
    """

    node: int
    image: SandboxImage
    world: Forkable
    session: SessionState | None
    spec: SandboxSpec
    services: Mapping[str, str]
    fidelity: Fidelity
    standing: Standing
    why: str = ""


async def take_cut(world: World, node: int, standing: Standing, minimum: Fidelity) -> Cut:
    """Capture a path whose session is idle, or waits between two steps. The sandbox is spent.

    Tries for live processes first, then for files alone.

    Raises:
        UnsupportedError: less than `minimum` could be had, or a service would lose its state:
            named. The world goes on as if nothing had happened.
        EnvironmentFailed, SandboxError: the world or the sandbox failed.
    """
    environment, sandbox, session = world.environment, world.sandbox, world.session
    if not isinstance(environment, Forkable):
        raise UnsupportedError(
            f"the world {type(environment).__name__} cannot be branched: it does not say how it "
            "comes through a checkpoint (contracts.environment.Forkable)"
        )
    state = session.checkpoint() if isinstance(session, Checkpointable) else None
    why, spec = "", sandbox.spec
    if spec.live and isinstance(sandbox, Snapshottable):
        _demand(_fidelity(state, live=True), minimum, "")
        services = await environment.quiesce(True)
        try:
            image = await sandbox.checkpoint()
        except UnsupportedError as refusal:
            why = str(refusal)
            await environment.resume()
        else:
            fidelity = _fidelity(state, live=True)
            return Cut(node, image, environment, state, spec, services, fidelity, standing)
    fidelity = _fidelity(state, live=False)
    _demand(fidelity, minimum, why)
    if not isinstance(sandbox, Freezable) or sandbox.capabilities().snapshot == "none":
        raise UnsupportedError(
            "this sandbox cannot be branched: it has no file system of its own to freeze"
        )
    services = await environment.quiesce(False)
    if minimum is not Fidelity.FRESH and (strays := await stray_processes(sandbox)):
        await environment.resume()
        raise UnsupportedError(
            f"a branch here would lose what runs in the sandbox: {'; '.join(strays)}"
            f"{f' ({why})' if why else ''}; let it end first, allow `--fidelity fresh`, or use the "
            "local sandbox with live checkpoints (`ramify doctor`)"
        )
    image = await sandbox.freeze()
    return Cut(node, image, environment, state, spec, services, fidelity, standing, why)


def _fidelity(state: SessionState | None, *, live: bool) -> Fidelity:
    return state.fidelity(live) if state is not None else Fidelity.FRESH


def _demand(fidelity: Fidelity, minimum: Fidelity, why: str) -> None:
    if not fidelity.reaches(minimum):
        reason = f" ({why})" if why else ""
        raise UnsupportedError(
            f"the session could only go on as `{fidelity}` in the children of a branch, and at "
            f"least `{minimum}` is asked for{reason}; ask for less (--fidelity), or use the "
            "local sandbox with live checkpoints (`ramify doctor`)"
        )


async def revive(
    cut: Cut, agent: Agent, ctx: Context, readiness_sec: float
) -> tuple[World, Context]:
    """One more copy of what was captured, and `ctx` with its sandbox.

    Whatever goes wrong, nothing is left of it. Raises: SandboxError, EnvironmentFailed (it does
    not get healthy in time), AgentError.
    """
    assert ctx.sandboxes is not None
    sandbox = await ctx.sandboxes.create(cut.spec, cut.image)
    ctx = replace(ctx, sandbox=sandbox)
    undo = [sandbox.teardown]
    try:
        environment = await cut.world.fork(sandbox, ctx)
        undo.append(environment.teardown)
        await until_healthy(environment, ctx, readiness_sec)
        session: Session
        if cut.session is not None and cut.fidelity is not Fidelity.FRESH:
            session = await cut.session.restore(sandbox, ctx)
        else:
            session = await agent.connect(sandbox, ctx)
    except BaseException:
        for action in reversed(undo):
            await uninterrupted(action())
        raise
    return World(sandbox, environment, session), ctx


async def until_healthy(environment: Environment, ctx: Context, seconds: float) -> None:
    """Ask the world until it is healthy. Raises EnvironmentFailed after `seconds`."""
    detail = "no answer"
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            while not (probe := await environment.readiness()).healthy:
                detail = probe.detail or detail
                await ctx.clock.sleep(probe.retry_in_sec)
    except TimeoutError:
        if not scope.expired():
            raise
        raise EnvironmentFailed(
            f"the world was not healthy within {seconds:g} s: {detail}"
        ) from None
