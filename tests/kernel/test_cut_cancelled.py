"""Cancellation in the middle of a branch, or again in the middle of an end, leaves nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from branch_parts import PathReward, Play, WalkAgent, WalkSession

from ramify.contracts.agent import StopReason
from ramify.contracts.context import Context
from ramify.contracts.events import LogEvent
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Outcome
from ramify.kernel.policy import parse_branch
from ramify.testing.sim import simulate


class SlowSession(WalkSession):
    """Takes its time to end, and says so."""

    async def aclose(self) -> None:
        assert isinstance(self.agent, SlowAgent)
        self.agent.ending.set()
        await asyncio.sleep(5)
        await super().aclose()


class StubbornSession(WalkSession):
    """Does not give up a turn at once when it is cancelled."""

    async def prompt(self, text: str) -> StopReason:
        assert isinstance(self.agent, SlowAgent)
        try:
            return await super().prompt(text)
        finally:
            self.agent.ending.set()
            await asyncio.sleep(self.agent.stubborn_sec)
            self.agent.ended = True


@dataclass
class SlowAgent(WalkAgent):
    stubborn_sec: float = 0.0
    ended: bool = False
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> WalkSession:
        kind = StubbornSession if self.stubborn_sec else SlowSession
        return kind(self, sandbox, ctx)


def play(tmp_path: Path, branch: str | None, stubborn_sec: float = 0.0) -> Play:
    agent = SlowAgent(4, lambda memory, ctx: "t", stubborn_sec=stubborn_sec)
    policy = parse_branch(branch) if branch else None
    return Play(tmp_path, agent, PathReward(lambda path: 1.0), policy)


@pytest.mark.parametrize("branch", ["group:2@step:2", "values:2x2"])
def test_a_branch_that_is_called_off_frees_what_it_spent(tmp_path: Path, branch: str) -> None:
    it = play(tmp_path, branch)
    agent = it.agent
    assert isinstance(agent, SlowAgent)

    async def called_off() -> RolloutResult:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(it.run())
            await agent.ending.wait()
            it.scope.cancel("enough")
        return running.result()

    result = simulate(called_off, seed=1)
    assert result.outcome is Outcome.CANCELLED
    assert not it.provider.alive
    assert not it.provider.images
    assert agent.closed == 1
    assert it.world.log.count("teardown") == 1


def test_a_turn_is_over_before_its_sandbox_is_gone(tmp_path: Path) -> None:
    """Called off, and then the whole task cancelled, while the agent is still ending its turn."""
    it = play(tmp_path, None, stubborn_sec=5.0)
    agent = it.agent
    assert isinstance(agent, SlowAgent)
    gone: list[bool] = []

    async def cancelled_twice() -> None:
        running = asyncio.ensure_future(it.run())
        await asyncio.sleep(1.5)  # a step takes a second
        [sandbox] = it.provider.made
        end = sandbox.teardown

        async def teardown() -> None:
            gone.append(agent.ended)
            await end()

        sandbox.teardown = teardown  # type: ignore[method-assign]  (to see the order)
        it.scope.cancel("enough")
        await agent.ending.wait()
        running.cancel()
        await asyncio.wait([running])

    simulate(cancelled_twice, seed=1)
    assert gone == [True]
    assert not it.provider.alive


def test_a_turn_that_never_ends_is_left_and_said(tmp_path: Path) -> None:
    it = play(tmp_path, None, stubborn_sec=1e6)

    async def run() -> RolloutResult:
        running = asyncio.ensure_future(it.run())
        await asyncio.sleep(1.5)  # a step takes a second
        it.scope.cancel("enough")
        async with asyncio.timeout(1000):
            result = await running
        await asyncio.sleep(2e6)  # the simulation counts what is left at its end
        return result

    result = simulate(run, seed=1)
    assert result.outcome is Outcome.CANCELLED
    assert not it.provider.alive
    said = [e.fields["what"] for e in it.observer.events if isinstance(e, LogEvent)]
    assert "turn" in said
