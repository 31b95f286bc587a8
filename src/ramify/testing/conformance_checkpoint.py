"""The conformance suite of Checkpointable: a session that goes on in copies of its sandbox.

Copies are made as the engine makes them: by `Snapshottable.checkpoint` where the sandbox of the
scene was made with `SandboxSpec.live`, else by `Freezable.freeze`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ramify.contracts.agent import Checkpointable, SessionState, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, UnsupportedError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity, Step
from ramify.testing.agent_bench import AgentBench
from ramify.testing.check import (
    Check,
    CheckSkipped,
    ConformanceError,
    check,
    equal,
    raises,
    require,
)
from ramify.testing.context import recorded
from ramify.testing.fakecontext import FakeRecorder


class _ParkingRecorder:
    """Lets a turn wait in the step of a number, as the engine does for a checkpoint."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.steps: list[Step] = []
        self.parked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        """Not what this is about."""

    async def step(self, step: Step) -> int:
        self.steps.append(step)
        if len(self.steps) == self._number:
            self.parked.set()
            await self.go_on.wait()
        return len(self.steps)


@asynccontextmanager
async def _parked(
    bench: AgentBench, scene: str, number: int
) -> AsyncGenerator[
    tuple[Checkpointable, Sandbox, Context, _ParkingRecorder, asyncio.Task[StopReason]]
]:
    """A session whose turn waits while its step of that number is recorded."""
    async with bench.scenes[scene]() as (agent, sandbox, ctx):
        recorder = _ParkingRecorder(number)
        session = await agent.connect(sandbox, dataclasses.replace(ctx, recorder=recorder))
        if not isinstance(session, Checkpointable):
            raise CheckSkipped(f"the sessions of {agent.name} cannot be checkpointed")
        turn = asyncio.create_task(session.prompt(bench.prompt))
        try:
            parked = asyncio.create_task(recorder.parked.wait())
            await asyncio.wait({turn, parked}, return_when=asyncio.FIRST_COMPLETED)
            parked.cancel()
            if turn.done():
                raise ConformanceError(f"the turn did not make {number} steps: {turn.result()}")
            yield session, sandbox, ctx, recorder, turn
        finally:
            turn.cancel()
            await asyncio.wait({turn})
            await session.aclose()


@asynccontextmanager
async def _copies(
    sandbox: Sandbox, ctx: Context, state: SessionState, count: int
) -> AsyncGenerator[list[tuple[Sandbox, Context]]]:
    """Copies of a sandbox, each with a context of its own, for as long as `state` needs them."""
    live = isinstance(sandbox, Snapshottable) and sandbox.spec.live
    provider = ctx.sandboxes
    if provider is None or not isinstance(sandbox, Freezable):
        raise CheckSkipped("the scene's sandbox cannot be copied")
    image = await (sandbox.checkpoint() if live else sandbox.freeze())
    made: list[Sandbox] = []
    try:
        while len(made) < count:
            made.append(await provider.create(sandbox.spec, image))
        if state.fidelity(live) is Fidelity.FRESH:
            with raises(UnsupportedError, doing="restore where the fidelity is FRESH"):
                await state.restore(made[0], ctx)
            raise CheckSkipped(f"it cannot be restored with live={live}, and says so")
        yield [
            (copy, dataclasses.replace(ctx, sandbox=copy, recorder=FakeRecorder())) for copy in made
        ]
    finally:
        for copy in made:
            await copy.teardown()
        await provider.discard(image)


def _told(steps: Sequence[Step]) -> list[object]:
    """What steps say, without times and what depends on them."""
    return [
        (
            step.action,
            step.role,
            step.kind,
            step.usage,
            [(message.role, message.tool_call_id) for message in step.messages],
            step.info.get("exit_code"),
        )
        for step in steps
    ]


async def _uninterrupted(bench: AgentBench, scene: str) -> list[Step]:
    """The steps of the scene, run to its end, whatever that is."""
    async with bench.scenes[scene]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        if not isinstance(session, Checkpointable):
            raise CheckSkipped(f"the sessions of {agent.name} cannot be checkpointed")
        try:
            await session.prompt(bench.prompt)
        except AgentError:
            require(scene == "fails", f"the scene {scene!r} must not fail")
        finally:
            await session.aclose()
        return list(session.steps)


@check("works")
async def _idle_session_goes_on(bench: AgentBench) -> None:
    """A session that was idle does nothing when it is restored; a prompt goes on with it."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        if not isinstance(session, Checkpointable):
            raise CheckSkipped(f"the sessions of {agent.name} cannot be checkpointed")
        await session.prompt(bench.prompt)
        before, state = list(session.steps), session.checkpoint()
        async with _copies(sandbox, ctx, state, 2) as copies:
            for copy, mine in copies:  # the second begins after the first has changed
                restored = await state.restore(copy, mine)
                equal(list(restored.steps), before, "the steps before the checkpoint")
                equal(await restored.proceed(), StopReason.END_TURN, "proceed without a turn")
                equal(recorded(mine), [], "steps recorded by proceed")
                if agent.capabilities().multi_prompt:
                    equal(await restored.prompt(bench.prompt), StopReason.END_TURN, "stop reason")
                equal([*before, *recorded(mine)], list(restored.steps), "steps after a prompt")
                await restored.aclose()
        equal(list(session.steps), before, "steps of the session that was copied")
        await session.aclose()


@check("works", timeout_sec=60)
async def _interrupted_turn_goes_on(bench: AgentBench) -> None:
    """A turn that waited in Recorder.step goes on in each copy: nothing repeated, nothing lost."""
    whole = _told(await _uninterrupted(bench, "works"))
    if not whole:
        raise CheckSkipped("an agent that makes no steps waits in none")
    for number in sorted({1, len(whole)}):
        async with _parked(bench, "works", number) as (session, sandbox, ctx, recorder, turn):
            state = session.checkpoint()
            async with _copies(sandbox, ctx, state, 2) as copies:
                turn.cancel()
                await asyncio.wait({turn})
                restored = [await state.restore(copy, mine) for copy, mine in copies]
                async with asyncio.TaskGroup() as group:
                    ends = [group.create_task(one.proceed()) for one in restored]
                for (_, mine), one, end in zip(copies, restored, ends, strict=True):
                    equal(end.result(), StopReason.END_TURN, "stop reason of proceed")
                    union = [*recorder.steps[:number], *recorded(mine)]
                    equal(_told(union), whole, f"steps around a checkpoint in step {number}")
                    equal(list(one.steps), union, "Session.steps of the copy")
                    await one.aclose()


@check("works")
async def _checkpoint_changes_nothing(bench: AgentBench) -> None:
    """Taking a checkpoint changes nothing: the turn that waited goes on as if there were none."""
    whole = _told(await _uninterrupted(bench, "works"))
    if not whole:
        raise CheckSkipped("an agent that makes no steps waits in none")
    async with _parked(bench, "works", 1) as (session, _, _, recorder, turn):
        session.checkpoint()
        recorder.go_on.set()
        equal(await turn, StopReason.END_TURN, "stop reason")
        equal(_told(recorder.steps), whole, "the steps of the turn")


@check("fails")
async def _decided_failure_comes_through(bench: AgentBench) -> None:
    """A turn that fails by its last step fails in each copy, too."""
    number = len(await _uninterrupted(bench, "fails"))
    if not number:
        raise CheckSkipped("its failure is no step")
    async with _parked(bench, "fails", number) as (session, sandbox, ctx, _, turn):
        state = session.checkpoint()
        async with _copies(sandbox, ctx, state, 1) as [(copy, mine)]:
            turn.cancel()
            await asyncio.wait({turn})
            restored = await state.restore(copy, mine)
            with raises(AgentError, doing="proceed of a turn that fails"):
                await restored.proceed()
            equal(recorded(mine), [], "steps after the one that failed")
            await restored.aclose()


CHECKPOINT_CHECKS: tuple[Check[AgentBench], ...] = (
    _idle_session_goes_on,
    _interrupted_turn_goes_on,
    _checkpoint_changes_nothing,
    _decided_failure_comes_through,
)
"""Every check of the contract Checkpointable."""
