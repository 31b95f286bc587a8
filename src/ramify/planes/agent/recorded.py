"""The agent that does nothing but put back what another rollout left behind, to score it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify.contracts.agent import AgentCapabilities, Checkpointable, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import StoreError, UnsupportedError
from ramify.contracts.result import FINAL_STATE, FinalState
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Step, StepKind
from ramify.planes.agent.session import Transcript, TurnSession, Unaided, agent_user

_decoder = msgspec.json.Decoder(FinalState)


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

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session.

        Raises UnsupportedError when no final state was kept whole, StoreError when it is damaged.
        """
        folder, state = _final_state(self._run, ctx)
        transcript = Transcript(ctx, role)
        return TurnSession(_Restorer(sandbox, ctx, transcript, _Kept(folder, state)), transcript)


class _Restorer:
    """Puts the files back on the first prompt."""

    def __init__(self, sandbox: Sandbox, ctx: Context, transcript: Transcript, kept: _Kept) -> None:
        self._sandbox, self._ctx, self._transcript, self._kept = sandbox, ctx, transcript, kept

    def begin(self, text: str, index: int) -> None:
        pass

    async def advance(self) -> None:
        kept, clock = self._kept, self._ctx.clock
        if self._transcript.at.steps:
            self._transcript.ends(StopReason.END_TURN)
            return
        started_at, started = clock.now(), clock.monotonic()
        for path in kept.state.paths:
            if path.place:
                await self._sandbox.upload(
                    kept.folder / path.place, path.path, owner=agent_user(self._ctx), clear=True
                )
        self._transcript.ends(StopReason.END_TURN)
        step = Step(
            action="restore the recorded final state",
            kind=StepKind.FORCED,
            started_at=started_at,
            duration_sec=clock.monotonic() - started,
            info={"paths": [path.path for path in kept.state.paths if path.place]},
        )
        await self._transcript.took(step)

    def state(self) -> _Kept:
        return self._kept

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Kept(Unaided):
    """What is put back: a directory, and what lies in it."""

    folder: Path
    state: FinalState

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Restorer:
        return _Restorer(sandbox, ctx, transcript, self)


def _final_state(run: Path, ctx: Context) -> tuple[Path, FinalState]:
    file = run / "rollouts" / ctx.rollout_id / FINAL_STATE
    try:
        state = _decoder.decode(file.read_bytes())
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
