"""The conformance suite of the contracts Agent, Session and Checkpointable.

    await check.run(bench)   # for each check of AGENT_CHECKS

What it runs on is an AgentBench (testing/agent_bench.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress

import msgspec

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import AgentError, SandboxLostError, StoreError
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Step
from ramify.testing import conformance_checkpoint
from ramify.testing.agent_bench import AgentBench
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
from ramify.testing.context import recorded
from ramify.testing.sandbox_bench import sh


async def _processes(sandbox: Sandbox) -> int:
    return int(await sh(sandbox, "set -- /proc/[0-9]*; echo $#"))


async def _before_the_agent(sandbox: Sandbox) -> int:
    """How many processes there are once the sandbox has made those that it keeps for itself."""
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(sh(sandbox, "sleep 0.2"))
    return await _processes(sandbox)


async def _back_to(sandbox: Sandbox, before: int) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.5
    while (now := await _processes(sandbox)) > before:
        require(loop.time() < end, f"{now - before} processes of the agent are still alive")
        await asyncio.sleep(0.05)


@check("works")
async def _name_and_capabilities(bench: AgentBench) -> None:
    """An agent has a name that it is recorded by, and capabilities that do not change."""
    async with bench.scenes["works"]() as (agent, _, _):
        require(bool(agent.name), "the name must not be empty")
        equal(agent.capabilities(), agent.capabilities(), "capabilities, asked twice")


@check("works")
async def _fresh_session_is_empty(bench: AgentBench) -> None:
    """connect opens a session that has done nothing yet."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        equal((len(session.steps), len(recorded(ctx))), (0, 0), "steps before the first prompt")
        await session.aclose()


@check("works")
async def _prompt_ends_its_turn(bench: AgentBench) -> None:
    """prompt waits for the turn's end, and says why it ended."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        equal(await session.prompt(bench.prompt), StopReason.END_TURN, "stop reason")
        await session.aclose()


@check("works")
async def _steps_are_recorded_in_order(bench: AgentBench) -> None:
    """Steps are recorded as they happen, each once, in the order of Session.steps."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        began = ctx.clock.now()
        await session.prompt(bench.prompt)
        steps = list(session.steps)
        equal(len(steps) > 0, bench.acts, "whether the scene `works` makes steps")
        equal(recorded(ctx), steps, "what was recorded")
        times = [step.started_at for step in steps]
        require(times == sorted(times), f"started_at must not go back: {times}")
        ended = ctx.clock.now()
        require(all(began - 1 <= t <= ended + 1 for t in times), f"{times} is not the clock's time")
        for step in steps:
            require(step.duration_sec >= 0, f"a duration of {step.duration_sec} s")
            require(bool(step.messages), f"the step {step.action!r} has no messages")
            again = msgspec.json.decode(msgspec.json.encode(step), type=Step)
            equal(again, step, "a step written and read again")
        await session.aclose()
        equal(list(session.steps), steps, "steps after aclose")


@check("works")
async def _role_is_kept(bench: AgentBench) -> None:
    """`role` says who acts: every step of the session carries it."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx, role="critic")
        await session.prompt(bench.prompt)
        others = [step.role for step in session.steps if step.role != "critic"]
        equal(others, [], "other roles of the steps")
        await session.aclose()


class _SlowRecorder:
    """Takes its time, as a store that is behind does."""

    def __init__(self) -> None:
        self.taken = 0

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        await asyncio.sleep(0.1)

    async def step(self, step: Step) -> int:
        await asyncio.sleep(0.1)
        self.taken += 1
        return self.taken


class _BrokenRecorder:
    """Cannot record, as a store on a full disk."""

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        raise StoreError("the disk is full")

    async def step(self, step: Step) -> int:
        raise StoreError("the disk is full")


@check("works")
async def _recorder_is_waited_for(bench: AgentBench) -> None:
    """Recorder.step waits while the store is behind; the turn does not end before it."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        recorder = _SlowRecorder()
        session = await agent.connect(sandbox, dataclasses.replace(ctx, recorder=recorder))
        await session.prompt(bench.prompt)
        equal(recorder.taken, len(session.steps), "steps taken when the turn ended")
        await session.aclose()


@check("works")
async def _store_errors_come_through(bench: AgentBench) -> None:
    """A recorder that raises StoreError fails the prompt with it: it is not the agent's failure."""
    if not bench.acts:
        raise CheckSkipped("an agent that makes no steps records none")
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, dataclasses.replace(ctx, recorder=_BrokenRecorder()))
        with raises(StoreError, doing="a prompt whose steps cannot be recorded"):
            await session.prompt(bench.prompt)
        await session.aclose()


@check("works")
async def _second_prompt(bench: AgentBench) -> None:
    """multi_prompt: a second prompt continues the same session; its steps follow the first's."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        if not agent.capabilities().multi_prompt:
            raise CheckSkipped(f"{agent.name} takes one prompt only")
        session = await agent.connect(sandbox, ctx)
        await session.prompt(bench.prompt)
        first = list(session.steps)
        equal(await session.prompt(bench.prompt), StopReason.END_TURN, "stop reason")
        equal(list(session.steps)[: len(first)], first, "the steps of the first prompt")
        equal(recorded(ctx), list(session.steps), "what was recorded of both")
        await session.aclose()


@check("works")
async def _cancel_when_idle(bench: AgentBench) -> None:
    """cancel has no effect when idle: the next prompt runs."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        await session.cancel()
        equal(await session.prompt(bench.prompt), StopReason.END_TURN, "stop reason after it")
        await session.cancel()
        await session.aclose()


@check("works")
async def _aclose_is_final(bench: AgentBench) -> None:
    """aclose ends the session and is idempotent; a prompt afterwards raises AgentError."""
    async with bench.scenes["works"]() as (agent, sandbox, ctx):
        before = await _before_the_agent(sandbox)
        session = await agent.connect(sandbox, ctx)
        await session.prompt(bench.prompt)
        await session.aclose()
        await session.aclose()
        await _back_to(sandbox, before)
        with raises(AgentError, doing="a prompt after aclose"):
            await session.prompt(bench.prompt)


@check("slow")
async def _cancel_ends_the_turn(bench: AgentBench) -> None:
    """cancel ends the running turn within 2 s; prompt returns CANCELLED; its processes end."""
    async with bench.scenes["slow"]() as (agent, sandbox, ctx):
        before = await _before_the_agent(sandbox)
        session = await agent.connect(sandbox, ctx)
        prompt = asyncio.create_task(session.prompt(bench.prompt))
        await asyncio.sleep(0.4)
        require(not prompt.done(), "the scene `slow` must still be running after 0.4 s")
        with within(2, "cancel"):
            await session.cancel()
            equal(await prompt, StopReason.CANCELLED, "stop reason")
        await session.aclose()
        await _back_to(sandbox, before)


@check("slow")
async def _aclose_ends_the_turn(bench: AgentBench) -> None:
    """aclose ends the session and every process of it, also in the middle of a turn."""
    async with bench.scenes["slow"]() as (agent, sandbox, ctx):
        before = await _before_the_agent(sandbox)
        session = await agent.connect(sandbox, ctx)
        prompt = asyncio.create_task(session.prompt(bench.prompt))
        await asyncio.sleep(0.4)
        with within(3, "aclose in the middle of a turn"):
            await session.aclose()
            with suppress(AgentError):  # as right an end of the prompt as CANCELLED
                equal(await prompt, StopReason.CANCELLED, "stop reason")
        await _back_to(sandbox, before)


@check("slow")
async def _cancelled_task_ends_the_turn(bench: AgentBench) -> None:
    """Cancelling the task that prompts ends the turn and its processes, and comes through."""
    async with bench.scenes["slow"]() as (agent, sandbox, ctx):
        before = await _before_the_agent(sandbox)
        session = await agent.connect(sandbox, ctx)
        prompt = asyncio.create_task(session.prompt(bench.prompt))
        await asyncio.sleep(0.4)
        with within(3, "cancelling the task"):
            prompt.cancel()
            await asyncio.wait({prompt})
        require(prompt.cancelled(), "the cancellation must come out of prompt()")
        await session.aclose()
        await _back_to(sandbox, before)


@check("slow")
async def _one_prompt_at_a_time(bench: AgentBench) -> None:
    """One prompt at a time: a second one meanwhile raises AgentError, and the first goes on."""
    async with bench.scenes["slow"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        prompt = asyncio.create_task(session.prompt(bench.prompt))
        await asyncio.sleep(0.2)
        with raises(AgentError, doing="a second prompt while one runs"):
            await session.prompt(bench.prompt)
        require(not prompt.done(), "the first prompt must go on")
        await session.cancel()
        await prompt
        await session.aclose()


@check("slow")
async def _lost_sandbox_is_not_the_agents_failure(bench: AgentBench) -> None:
    """prompt raises SandboxLostError when the sandbox goes: infrastructure, not AgentError."""
    async with bench.scenes["slow"]() as (agent, sandbox, ctx):
        session = await agent.connect(sandbox, ctx)
        prompt = asyncio.create_task(session.prompt(bench.prompt))
        await asyncio.sleep(0.4)
        await sandbox.teardown()
        with raises(SandboxLostError, doing="a prompt whose sandbox is gone"):
            async with asyncio.timeout(5):
                await prompt
        await session.aclose()


@check("fails")
async def _failure_is_an_agent_error(bench: AgentBench) -> None:
    """The agent's own failure raises AgentError, with a message; its steps stay recorded."""
    async with bench.scenes["fails"]() as (agent, sandbox, ctx):
        before = await _before_the_agent(sandbox)
        session = await agent.connect(sandbox, ctx)
        try:
            reason = await session.prompt(bench.prompt)
        except AgentError as error:
            require(bool(str(error)), "the error must say what happened")
        else:
            raise ConformanceError(f"a failing agent ended its turn with {reason}")
        equal(recorded(ctx), list(session.steps), "what was recorded")
        await session.aclose()
        await _back_to(sandbox, before)


AGENT_CHECKS: tuple[Check[AgentBench], ...] = (
    _name_and_capabilities,
    _fresh_session_is_empty,
    _prompt_ends_its_turn,
    _steps_are_recorded_in_order,
    _role_is_kept,
    _recorder_is_waited_for,
    _store_errors_come_through,
    _second_prompt,
    _cancel_when_idle,
    _aclose_is_final,
    _cancel_ends_the_turn,
    _aclose_ends_the_turn,
    _cancelled_task_ends_the_turn,
    _one_prompt_at_a_time,
    _lost_sandbox_is_not_the_agents_failure,
    _failure_is_an_agent_error,
    *conformance_checkpoint.CHECKPOINT_CHECKS,
)
"""Every check of the contracts Agent, Session and Checkpointable."""
