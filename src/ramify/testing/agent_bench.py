"""What agent checks run on: scenes that open an agent, a sandbox and a context.

An agent cannot be told what to do in general, so the caller brings scenes: each opens a fresh
agent, sandbox and context, in which the agent, given `prompt`, acts in a known way.

    bench = AgentBench({"works": works, "slow": slow, "fails": fails})

Scenes: `works` (ends its turn within seconds, after at least one step), `slow` (would run for half
a minute, with a process inside), `fails` (fails by its own doing). A check whose scene is not
brought is skipped. The sandbox must be real wherever processes matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ramify.contracts.agent import Agent
from ramify.contracts.context import Context
from ramify.contracts.sandbox import Sandbox

AgentScene = Callable[[], AbstractAsyncContextManager[tuple[Agent, Sandbox, Context]]]


@dataclass(frozen=True, slots=True)
class AgentBench:
    """An agent under test.

    Attributes:
        scenes: by name: `works`, `slow`, `fails`. The context comes from `make_context`.
        prompt: the instruction that makes the agent do what its scene says.
        acts: whether `works` makes steps; an agent that does nothing makes none.
    """

    scenes: Mapping[str, AgentScene]
    prompt: str = "Do the task."
    acts: bool = True

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`. Needs: the names of scenes."""
        if need not in ("works", "slow", "fails"):
            raise ValueError(f"unknown scene {need!r}; known: works, slow, fails")
        return None if need in self.scenes else f"there is no scene {need!r} for this agent"
