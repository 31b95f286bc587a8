"""The agent that runs the task's own solution: a sound task gives it the maximum reward."""

from __future__ import annotations

from pathlib import Path

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, ConfigError, UnsupportedError
from ramify.contracts.inside import SOLUTION_DIR, shell_line
from ramify.contracts.sandbox import MIB, Sandbox
from ramify.contracts.task import SolutionSettings
from ramify.planes.agent.session import (
    Transcript,
    TurnSession,
    agent_user,
    observe,
    tail_text,
)


class OracleAgent:
    """Puts the reference solution at /solution and runs it, as the task's agent user.

    It acts on the first prompt; later prompts find the work done and end at once.
    """

    name = "oracle"

    def capabilities(self) -> AgentCapabilities:
        """It needs no model."""
        return AgentCapabilities(multi_prompt=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session. Raises UnsupportedError when the task has no solution, ConfigError."""
        solution, source = _solution(ctx)
        transcript = Transcript(ctx, role)

        async def turn(text: str, index: int) -> StopReason:
            if index == 0:
                await _solve(sandbox, ctx, solution, source, transcript)
            return StopReason.END_TURN

        return TurnSession(turn, transcript)


def _solution(ctx: Context) -> tuple[SolutionSettings, Path]:
    package = ctx.task.package
    if package is None or package.solution is None:
        raise UnsupportedError(
            f"task {ctx.task.task_id} has no reference solution, so the oracle cannot run it; "
            "add solution/solve.sh or choose another agent"
        )
    source = Path(package.path) / package.solution.path
    if not source.is_dir():
        raise ConfigError(
            f"{package.solution.path!r} is not a directory", file=package.path, field="solution"
        )
    return package.solution, source


async def _solve(
    sandbox: Sandbox,
    ctx: Context,
    solution: SolutionSettings,
    source: Path,
    transcript: Transcript,
) -> None:
    user = agent_user(ctx)
    await sandbox.upload(source, SOLUTION_DIR, owner=user, clear=True)
    started_at = ctx.clock.now()
    result = await sandbox.exec(
        shell_line(solution.command), user=user, cwd=ctx.workdir, env=solution.env, output_limit=MIB
    )
    await transcript.acted(" ".join(solution.command), observe(result, started_at))
    if not result.ok:
        raise AgentError(
            f"the reference solution of {ctx.task.task_id} exited {result.exit_code}: "
            f"{tail_text(result)}"
        )
