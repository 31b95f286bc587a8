"""The agent that runs the task's own solution: a sound task gives it the maximum reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.agent import AgentCapabilities, Checkpointable, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.inside import SOLUTION_DIR, shell_line
from ramify.contracts.sandbox import MIB, Sandbox
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import SolutionSettings
from ramify.planes.agent.session import (
    Transcript,
    TurnSession,
    Unaided,
    agent_user,
    observe,
    tail_text,
)


class OracleAgent:
    """Puts the reference solution at /solution and runs it, as the task's agent user.

    It acts on the first prompt, later prompts find the work done and end at once; in a task of
    several steps it runs each step's own solution.
    """

    name = "oracle"

    def capabilities(self) -> AgentCapabilities:
        """It needs no model."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session. Raises UnsupportedError when the task has no solution, ConfigError."""
        transcript = Transcript(ctx, role)
        return TurnSession(_Solver(sandbox, ctx, transcript, _solutions(ctx)), transcript)


class _Solver:
    """Runs one solution per prompt."""

    def __init__(
        self,
        sandbox: Sandbox,
        ctx: Context,
        transcript: Transcript,
        solutions: Sequence[SolutionSettings],
        next_one: int = 0,
    ) -> None:
        self._sandbox, self._ctx, self._transcript = sandbox, ctx, transcript
        self._solutions, self._next = solutions, next_one

    def begin(self, text: str, index: int) -> None:
        self._next = index

    async def advance(self) -> None:
        if self._next >= len(self._solutions):
            self._transcript.ends(StopReason.END_TURN)
            return
        solution, sandbox, ctx = self._solutions[self._next], self._sandbox, self._ctx
        await _put(sandbox, ctx, solution)
        started_at = ctx.clock.now()
        result = await sandbox.exec(
            shell_line(solution.command),
            user=agent_user(ctx),
            cwd=ctx.workdir,
            env=solution.env,
            output_limit=MIB,
        )
        self._transcript.ends(StopReason.END_TURN)
        if not result.ok:
            self._transcript.fails(
                f"the reference solution of {ctx.task.task_id} exited {result.exit_code}: "
                f"{tail_text(result)}"
            )
        await self._transcript.acted(" ".join(solution.command), observe(result, started_at))

    def state(self) -> _SolverState:
        return _SolverState(tuple(self._solutions), self._next)

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _SolverState(Unaided):
    solutions: tuple[SolutionSettings, ...]
    next_one: int

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Solver:
        return _Solver(sandbox, ctx, transcript, self.solutions, self.next_one)


def _solutions(ctx: Context) -> list[SolutionSettings]:
    """The solution of each prompt; checks that all of them are there."""
    package = ctx.task.package
    steps = package.steps if package else ()
    found = [step.solution for step in steps] or [package.solution if package else None]
    for solution in found:
        if package is None or solution is None:
            raise UnsupportedError(
                f"task {ctx.task.task_id} has no reference solution, so the oracle cannot run it; "
                "add solution/solve.sh or choose another agent"
            )
        if solution.script is None and not (Path(package.path) / solution.path).exists():
            raise ConfigError(f"there is no {solution.path!r}", file=package.path, field="solution")
    return [solution for solution in found if solution is not None]


async def _put(sandbox: Sandbox, ctx: Context, solution: SolutionSettings) -> None:
    """Put the solution at /solution, alone there."""
    package = ctx.task.package
    assert package is not None
    user = agent_user(ctx)
    source = Path(package.path) / solution.path
    if solution.script is None and source.is_dir():
        await sandbox.upload(source, SOLUTION_DIR, owner=user, clear=True)
        return
    async with Scratch() as folder:
        await asyncio.to_thread(_write, folder, source, solution.script)
        await sandbox.upload(folder, SOLUTION_DIR, owner=user, clear=True)


def _write(folder: Path, source: Path, script: str | None) -> None:
    """The solution that is one file, in a directory that the agent's user may read."""
    target = folder / ("solve.sh" if script is not None else source.name)
    target.write_bytes(script.encode() if script is not None else source.read_bytes())
    target.chmod(0o755)
    folder.chmod(0o755)
