"""What the agents of this plane share: one live session, made of turns, made of recorded steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from ramify.contracts.agent import AskUserHandler, SessionState, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, UsageError
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.sandbox import ExecResult, Sandbox
from ramify.contracts.tree import Fidelity, Step

OUTPUT_LIMIT = 32 * 1024
"""Bytes of a command's output that a step keeps: half from its head, half from its tail."""


class Observation(msgspec.Struct, frozen=True):
    """What came of one action: bytes, how it ended, when it began and how long it took."""

    output: bytes
    started_at: float
    duration_sec: float
    exit_code: int | None = None
    dropped: int = 0
    """Bytes already left out of `output`."""
    note: str = ""
    """How it ended, where the exit code does not say it: `timed out`, `out of memory`."""


@dataclass(slots=True)
class Standing:
    """Where a session stands, in what all agents of this plane have in common. Plain data.

    Attributes:
        steps: what was done so far.
        prompts: how many prompts were given.
        pending: what was said to the agent since its last step.
        running: a turn has begun and not ended.
        ended: why the running turn is over, once that is decided.
        failure: how the agent failed in the running turn, once that is decided.
    """

    steps: list[Step] = field(default_factory=list[Step])
    prompts: int = 0
    pending: tuple[Message, ...] = ()
    running: bool = False
    ended: StopReason | None = None
    failure: str | None = None

    def copy(self) -> Standing:
        """A copy that shares nothing that changes."""
        return replace(self, steps=list(self.steps))


class Transcript:
    """Records what one session does: one step per action.

    The rollout itself records the first prompt. A follow-up prompt is no step of its own: it
    opens the messages of the step that follows it.

    Attributes:
        at: where the session stands; consistent whenever a step is being recorded.
        recording: a step is being recorded just now.
    """

    def __init__(self, ctx: Context, role: str, at: Standing | None = None) -> None:
        self._ctx, self.role = ctx, role
        self.at = at or Standing()
        self.recording = False

    def begun(self, text: str) -> None:
        """A turn begins with a prompt."""
        at = self.at
        if at.prompts:
            at.pending = (*at.pending, Message(role="user", content=text))
        at.prompts += 1
        at.running, at.ended, at.failure = True, None, None

    def ends(self, reason: StopReason) -> None:
        """Decide that the turn is over, once the step that is recorded next (if any) is."""
        self.at.ended = reason

    def fails(self, message: str) -> None:
        """Decide that the agent has failed, likewise: the turn ends with an AgentError."""
        self.at.failure = message

    async def acted(self, command: str, seen: Observation) -> None:
        """Record a command and its output as one step. Raises StoreError."""
        text, cut = bounded_text(seen.output, OUTPUT_LIMIT)
        info: dict[str, object] = {"exit_code": seen.exit_code, "duration": seen.duration_sec}
        if dropped := seen.dropped + cut:
            info["dropped"] = dropped
        if seen.note:
            info["note"] = seen.note
        call_id = f"{self.role}-{len(self.at.steps) + 1}"
        arguments = json.dumps({"command": command})
        await self.took(
            Step(
                messages=(
                    Message(role="assistant", tool_calls=(ToolCall(call_id, "bash", arguments),)),
                    Message(role="tool", content=text, tool_call_id=call_id, name="bash"),
                ),
                action=command,
                started_at=seen.started_at,
                duration_sec=seen.duration_sec,
                info=info,
            )
        )

    async def took(self, step: Step, nudge: str | None = None) -> None:
        """Record a step under this session's role, after the prompts that led to it.

        Whatever follows from the step is decided before: the session may be copied while this
        waits. `nudge` is what is said to the agent in answer to it. Raises StoreError.
        """
        messages = (*self.at.pending, *step.messages)
        step = msgspec.structs.replace(step, messages=messages, role=self.role)
        self.at.pending = (Message("user", nudge),) if nudge is not None else ()
        self.at.steps.append(step)
        self.recording = True
        try:
            await self._ctx.recorder.step(step)
        finally:
            self.recording = False


class Actor(Protocol):
    """What one agent does in one session, action by action."""

    def begin(self, text: str, index: int) -> None:
        """Take a prompt: its text and its index (0 for the first). Does nothing yet."""
        ...

    async def advance(self) -> None:
        """Do the next action of the turn and record it, or decide that the turn is over.

        It is cancelled by `cancel` and `aclose`, and must then end whatever it started. All that
        the next call needs is in `state` when the step is recorded.
        """
        ...

    def state(self) -> ActorState:
        """A copy of where it stands."""
        ...

    async def aclose(self) -> None:
        """Free what outlives a turn. Called once."""
        ...


class ActorState(Protocol):
    """An Actor as a value; what a SessionState is made of besides what all agents share."""

    def fidelity(self, live: bool) -> Fidelity:
        """See `SessionState.fidelity`."""
        ...

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> Actor:
        """The actor in another sandbox. Raises what `SessionState.restore` raises."""
        ...


class Unaided:
    """An ActorState of an agent that holds nothing inside: it restores exactly, anywhere."""

    __slots__ = ()

    def fidelity(self, live: bool) -> Fidelity:
        """Always LIVE: background processes of its commands are the sandbox's business."""
        return Fidelity.LIVE


class TurnSession:
    """A Session made of an Actor, that can go on in copies of its sandbox.

    Args:
        actor: works on one prompt.
        transcript: where its steps go.
    """

    def __init__(self, actor: Actor, transcript: Transcript) -> None:
        self._actor, self._transcript = actor, transcript
        self._running: asyncio.Future[StopReason] | None = None
        self._stopped = self._closed = False

    @property
    def steps(self) -> Sequence[Step]:
        """Steps of this session so far, those before a checkpoint it came from included."""
        return tuple(self._transcript.at.steps)

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """Accepted and never called: these agents do not ask."""

    async def prompt(self, text: str) -> StopReason:
        """Run one turn to its end. Raises AgentError, also when busy or closed."""
        self._check_free()
        if self._transcript.at.running:
            raise AgentError("the session stands in the middle of a turn: `proceed` goes on")
        index = self._transcript.at.prompts
        self._transcript.begun(text)
        self._actor.begin(text, index)
        return await self._turn()

    async def proceed(self) -> StopReason:
        """Go on with the turn that was running at the checkpoint; END_TURN if none was."""
        self._check_free()
        return await self._turn() if self._transcript.at.running else StopReason.END_TURN

    def checkpoint(self) -> SessionState:
        """The session as it stands. Raises UsageError in the middle of an action, or closed."""
        if self._closed or (self._running is not None and not self._transcript.recording):
            how = "is closed" if self._closed else "is in the middle of an action"
            raise UsageError(f"the session {how}; take a checkpoint of it idle or between steps")
        at = self._transcript.at.copy()
        return _TurnState(self._transcript.role, at, self._actor.state())

    def _check_free(self) -> None:
        if self._closed:
            raise AgentError("the session is closed; connect again for another prompt")
        if self._running is not None:
            raise AgentError("the session is busy: wait for the turn, or cancel it")

    async def _turn(self) -> StopReason:
        self._stopped = False
        turn = self._running = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({turn})
        finally:
            try:
                await _end(turn)
            finally:
                self._running = None
                self._transcript.at.running = False
        if turn.cancelled() and self._stopped:
            return StopReason.CANCELLED
        return turn.result()

    async def _work(self) -> StopReason:
        at = self._transcript.at
        while at.ended is None and at.failure is None:
            await self._actor.advance()
        if at.failure is not None:
            raise AgentError(at.failure)
        assert at.ended is not None
        return at.ended

    async def cancel(self) -> None:
        """End the running turn and its command."""
        if (turn := self._running) is not None:
            self._stopped = True
            await _end(turn)

    async def aclose(self) -> None:
        """End the turn, then what outlived it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self.cancel()
        await self._actor.aclose()


@dataclass(frozen=True, slots=True)
class _TurnState:
    """A TurnSession as a value. Implements `contracts.agent.SessionState`."""

    role: str
    at: Standing
    actor: ActorState

    def fidelity(self, live: bool) -> Fidelity:
        return self.actor.fidelity(live)

    async def restore(self, sandbox: Sandbox, ctx: Context) -> TurnSession:
        transcript = Transcript(ctx, self.role, self.at.copy())
        return TurnSession(await self.actor.restore(sandbox, ctx, transcript), transcript)


async def _end(turn: asyncio.Future[StopReason]) -> None:
    if not turn.done():
        turn.cancel()
        await asyncio.wait({turn})


def observe(result: ExecResult, started_at: float) -> Observation:
    """A finished command as an observation: standard output, then standard error."""
    parts = [part for part in (result.stdout, result.stderr) if part]
    notes = [
        note
        for note, holds in (("timed out", result.timed_out), ("out of memory", result.oom_killed))
        if holds
    ]
    return Observation(
        output=b"\n".join(part.removesuffix(b"\n") for part in parts),
        started_at=started_at,
        duration_sec=result.duration_sec,
        exit_code=result.exit_code,
        dropped=result.stdout_dropped + result.stderr_dropped,
        note=", ".join(notes),
    )


def bounded_text(data: bytes, limit: int) -> tuple[str, int]:
    """`data` as text of at most about `limit` bytes, head and tail, and how many were cut out."""
    if len(data) <= limit:
        return data.decode(errors="replace"), 0
    half = limit // 2
    cut = len(data) - 2 * half
    head, tail = data[:half].decode(errors="replace"), data[-half:].decode(errors="replace")
    return f"{head}\n[... {cut} bytes left out ...]\n{tail}", cut


def tail_text(result: ExecResult, limit: int = 2000) -> str:
    """The end of what a failed command said, for an error message."""
    said = result.stderr.strip() or result.stdout.strip()
    return said[-limit:].decode(errors="replace") or "(no output)"


def agent_user(ctx: Context) -> str | None:
    """The user that the task's agent works as; None where the sandbox's default holds."""
    return ctx.task.package.agent_user if ctx.task.package else None
