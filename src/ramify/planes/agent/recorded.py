"""The agent that does nothing but put back what another rollout left behind, to score it again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import StoreError, UnsupportedError
from ramify.contracts.result import FINAL_STATE, FinalState
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Step, StepKind
from ramify.planes.agent.session import Transcript, TurnSession, agent_user


class RecordedAgent:
    """Restores the final state that a finished job kept for the same task and repeat.

    Args:
        run: the run directory of that job.
    """

    name = "recorded"

    def __init__(self, run: Path) -> None:
        self._run = run

    def capabilities(self) -> AgentCapabilities:
        """It needs no model."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session.

        Raises UnsupportedError when no final state was kept whole, StoreError when it is damaged.
        """
        folder, state = _final_state(self._run, ctx)
        transcript = Transcript(ctx, role)

        async def turn(text: str, index: int) -> StopReason:
            if index == 0:
                started = ctx.clock.monotonic()
                for kept in state.paths:
                    if kept.place:
                        await sandbox.upload(
                            folder / kept.place, kept.path, owner=agent_user(ctx), clear=True
                        )
                took = ctx.clock.monotonic() - started
                step = Step(
                    action="restore the recorded final state",
                    kind=StepKind.FORCED,
                    duration_sec=took,
                    info={"paths": [kept.path for kept in state.paths if kept.place]},
                )
                await transcript.took(step)
            return StopReason.END_TURN

        return TurnSession(turn, transcript)


def _final_state(run: Path, ctx: Context) -> tuple[Path, FinalState]:
    file = run / "rollouts" / ctx.rollout_id / FINAL_STATE
    try:
        state = msgspec.json.decode(file.read_bytes(), type=FinalState)
    except FileNotFoundError:
        raise UnsupportedError(
            f"{ctx.rollout_id}: no final state was kept (the rollout did not reach verification, "
            "or its task has several steps), so it cannot be scored again"
        ) from None
    except msgspec.MsgspecError as error:
        raise StoreError(f"{file}: {error}") from error
    for kept in state.paths:
        if kept.left_out:
            raise UnsupportedError(
                f"{ctx.rollout_id}: {kept.path} was not kept ({kept.left_out}), so it cannot be "
                "scored again"
            )
    return file.parent, state
