"""What the agents of this plane share: one live session, made of turns, made of recorded steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ramify.contracts.agent import AskUserHandler, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.sandbox import ExecResult
from ramify.contracts.tree import Step

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


class Transcript:
    """Records what one session does: one step per action.

    The rollout itself records the first prompt. A follow-up prompt is no step of its own: it
    opens the messages of the step that follows it.
    """

    def __init__(self, ctx: Context, role: str) -> None:
        self._ctx, self._role = ctx, role
        self._opened = False
        self._pending: tuple[Message, ...] = ()
        self.steps: list[Step] = []

    def prompted(self, text: str) -> None:
        """Take note of a prompt."""
        if self._opened:
            self._pending = (*self._pending, Message(role="user", content=text))
        self._opened = True

    async def acted(self, command: str, seen: Observation) -> None:
        """Record a command and its output as one step. Raises StoreError."""
        text, cut = bounded_text(seen.output, OUTPUT_LIMIT)
        info: dict[str, object] = {"exit_code": seen.exit_code, "duration": seen.duration_sec}
        if dropped := seen.dropped + cut:
            info["dropped"] = dropped
        if seen.note:
            info["note"] = seen.note
        call_id = f"{self._role}-{len(self.steps) + 1}"
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

    async def took(self, step: Step) -> None:
        """Record a step under this session's role, after the prompts that led to it.

        Raises StoreError.
        """
        messages = (*self._pending, *step.messages)
        step = msgspec.structs.replace(step, messages=messages, role=self._role)
        self._pending = ()
        self.steps.append(step)
        await self._ctx.recorder.step(step)


Turn = Callable[[str, int], Awaitable[StopReason]]
"""Works on one prompt: its text and its index (0 for the first)."""


class TurnSession:
    """A Session whose turns are one coroutine function.

    Args:
        turn: works on one prompt. It is cancelled by `cancel` and `aclose`, and must then end
            whatever it started.
        transcript: where its steps go.
        close: frees what outlives a turn; called once.
    """

    def __init__(
        self,
        turn: Turn,
        transcript: Transcript,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._turn, self._transcript, self._close = turn, transcript, close
        self._running: asyncio.Future[StopReason] | None = None
        self._prompts = 0
        self._stopped = self._closed = False

    @property
    def steps(self) -> Sequence[Step]:
        """Steps of this session so far."""
        return tuple(self._transcript.steps)

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """Accepted and never called: these agents do not ask."""

    async def prompt(self, text: str) -> StopReason:
        """Run one turn to its end. Raises AgentError, also when busy or closed."""
        if self._closed:
            raise AgentError("the session is closed; connect again for another prompt")
        if self._running is not None:
            raise AgentError("the session is busy: wait for the turn, or cancel it")
        self._stopped = False
        turn = self._running = asyncio.ensure_future(self._work(text, self._prompts))
        self._prompts += 1
        try:
            await asyncio.wait({turn})
        finally:
            self._running = None
            await _end(turn)
        if turn.cancelled() and self._stopped:
            return StopReason.CANCELLED
        return turn.result()

    async def _work(self, text: str, index: int) -> StopReason:
        self._transcript.prompted(text)
        return await self._turn(text, index)

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
        if self._close is not None:
            await self._close()


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
