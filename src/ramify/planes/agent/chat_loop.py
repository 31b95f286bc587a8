"""The loop of the chat agent: a model call and the tools it asks for, again and again.

Everything that follows from a step (whether the turn goes on, what the policy is told) is decided
before the step is recorded, so that the session can be copied while it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from ramify.contracts.agent import StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import LimitExceededError, UsageError
from ramify.contracts.events import LogEvent
from ramify.contracts.messages import Message, TokenSpan, ToolCall, Usage
from ramify.contracts.model import Completion, Model
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Fidelity, Step
from ramify.planes.agent.chat_kit import Kit, KitState
from ramify.planes.agent.conversation import Conversation
from ramify.planes.agent.session import Transcript
from ramify.planes.agent.tools import ToolError, clipped

_CUT_OFF = "Your answer was cut off at the limit of tokens per answer. Go on, in shorter steps."
_EMPTY = "Your answer was empty. Call a tool, or say what you did if the task is done."
_STOPPED = "Error: stopped before it finished"
_SMALLER = 0.7
"""How much of a request is left after the endpoint said that it exceeds the context."""


@dataclass(slots=True)
class Progress:
    """How far a session has come. Plain data.

    Attributes:
        conversation: what is sent to the policy.
        used: what its calls cost, over all prompts.
        working_sec: seconds spent in turns, over all prompts.
        bad_turns: useless answers in a row.
        recorded_ids: token ids of the last prompt and answer that were recorded.
        shortened: what was shortened in the conversation since the last step.
        opening_due: the opening of the conversation has to be recorded before the next action.
    """

    conversation: Conversation
    used: Usage = Usage()
    working_sec: float = 0.0
    bad_turns: int = 0
    recorded_ids: tuple[int, ...] = ()
    shortened: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    opening_due: bool = False

    def copy(self) -> Progress:
        """A copy that shares nothing that changes."""
        conversation, shortened = self.conversation.copy(), list(self.shortened)
        return replace(self, conversation=conversation, shortened=shortened)


@dataclass(slots=True)
class Loop:
    """Control flow of one session. Implements `session.Actor`."""

    ctx: Context
    model: Model
    kit: Kit
    transcript: Transcript
    max_bad_turns: int
    at: Progress
    _since: float = 0.0

    def begin(self, text: str, index: int) -> None:
        """Take a prompt into the conversation."""
        self.at.conversation.add(Message("user", text))
        self.at.opening_due = index == 0

    async def advance(self) -> None:
        """One model call and the tools it asks for; or the turn's end, where a limit binds."""
        self._since = self.ctx.clock.monotonic()
        try:
            if self.at.opening_due:
                await self._open()
            if self.ctx.cancel.cancelled:
                self.transcript.ends(StopReason.CANCELLED)
                return
            self._check_limits()
            await self._step()
        except LimitExceededError as error:
            fields = {"limit": error.limit, "detail": str(error)}
            now, rollout = self.ctx.clock.now(), self.ctx.rollout_id
            event = LogEvent(rollout, now, "warning", "a limit ended the agent's turn", fields)
            self.ctx.observer.emit(event)
            self.transcript.ends(StopReason.LIMIT)
        finally:
            self._worked()

    def state(self) -> LoopState:
        """A copy of where it stands."""
        return LoopState(self.kit.state(), self.max_bad_turns, self.at.copy())

    async def aclose(self) -> None:
        """Leave the MCP servers."""
        await self.kit.aclose()

    async def _open(self) -> None:
        self.at.opening_due = False
        opening = tuple(self.at.conversation.messages)
        if opening != (Message("user", self.ctx.task.instruction),):
            # The rollout recorded an opening without the system message.
            await self.ctx.recorder.prompt(opening)

    def _worked(self) -> None:
        """Count the time since the last count."""
        now = self.ctx.clock.monotonic()
        self.at.working_sec += now - self._since
        self._since = now

    def _check_limits(self) -> None:
        """In the order of RolloutConfig; cancellation was checked. Raises LimitExceededError."""
        config, used = self.ctx.config, self.at.used
        if config.max_cost_usd is not None and used.calls:
            if used.cost_usd is None:
                raise UsageError(
                    "max_cost_usd is set, but what the model costs is not known; give its prices "
                    "(-M input_price=... -M output_price=..., dollars per million tokens)"
                )
            _bound("cost", used.cost_usd, config.max_cost_usd, "dollars")
        tokens = used.input_tokens + used.output_tokens
        if config.max_tokens is not None and used.calls and not tokens:
            raise UsageError(
                "max_tokens is set, but the endpoint does not say how many it used; set max_turns"
            )
        _bound("tokens", tokens, config.max_tokens, "tokens")
        _bound("turns", used.calls, config.max_turns, "model calls")
        if config.max_context is not None:
            room = config.max_context - (config.sampling.max_tokens or 0)
            if not self._shorten(room):
                raise LimitExceededError(
                    "context",
                    f"about {self.at.conversation.tokens} tokens and room for an answer exceed the "
                    f"{config.max_context} tokens of context, with all tool outputs shortened",
                )
        _bound("time", self.at.working_sec, config.timeout_sec, "seconds")

    async def _step(self) -> None:
        clock = self.ctx.clock
        started_at, start = clock.now(), clock.monotonic()
        answer = await self._ask()
        model_sec = clock.monotonic() - start
        calls = answer.message.tool_calls
        results: list[str | None] = [None] * len(calls)
        errors: list[str] = []
        finished = False
        try:
            await self._run_all(calls, results, errors)
            finished = True
        finally:
            # Also when the turn ends in the middle of a tool: the call was made and paid for,
            # and every call keeps its answer.
            answers = [
                Message("tool", _STOPPED if text is None else text, (), call.id, call.name)
                for call, text in zip(calls, results, strict=True)
            ]
            self.at.conversation.add(answer.message, *answers)
            step = Step(
                messages=(answer.message, *answers),
                action=_action(answer),
                logprob=_total(answer.tokens),
                usage=answer.usage,
                tokens=answer.tokens if answer.tokens and answer.tokens.ids else None,
                started_at=started_at,
                duration_sec=clock.monotonic() - start,
                info=self._info(answer, errors, model_sec),
            )
            nudge = None
            if finished:
                nudge = self._judge(answer, len(errors))
            else:
                self.transcript.ends(StopReason.CANCELLED)
            self._worked()
            await self.transcript.took(step, nudge)

    async def _ask(self) -> Completion:
        """One completion; shortens what is sent while the endpoint says that it is too long."""
        specs = [tool.spec for tool in self.kit.tools.values()]
        params = self.ctx.config.sampling
        while True:
            try:
                answer = await self.model.sample(self.at.conversation.messages, specs, params)
            except LimitExceededError as error:
                smaller = int(self.at.conversation.tokens * _SMALLER)
                before = len(self.at.shortened)
                self._shorten(smaller)
                if error.limit != "context" or len(self.at.shortened) == before:
                    raise
                continue
            self.at.conversation.counted(answer.usage)
            self.at.used += answer.usage
            return answer

    def _shorten(self, tokens: int) -> bool:
        done, enough = self.at.conversation.shorten(tokens)
        self.at.shortened.extend(done)
        return enough

    async def _run_all(
        self, calls: Sequence[ToolCall], results: list[str | None], errors: list[str]
    ) -> None:
        """Run calls in order; neighbours that are all safe run side by side."""
        place = 0
        while place < len(calls):
            end = place + 1
            while end < len(calls) and all(map(self._is_safe, calls[place : end + 1])):
                end += 1
            if end == place + 1:
                await self._run(calls[place], place, results, errors)
            else:
                async with asyncio.TaskGroup() as group:
                    for index in range(place, end):
                        group.create_task(self._run(calls[index], index, results, errors))
            place = end

    def _is_safe(self, call: ToolCall) -> bool:
        tool = self.kit.tools.get(call.name)
        return tool is not None and tool.safe

    async def _run(
        self, call: ToolCall, index: int, results: list[str | None], errors: list[str]
    ) -> None:
        try:
            tool = self.kit.tools.get(call.name)
            if tool is None:
                raise ToolError(f"no tool {call.name!r}; there are: {', '.join(self.kit.tools)}")
            results[index] = await tool.run(call.arguments, self.kit.values)
        except ToolError as error:
            errors.append(call.id)
            results[index] = clipped(f"Error: {error}", self.kit.settings.output_limit)

    def _judge(self, answer: Completion, errors: int) -> str | None:
        """Decide whether the answer ends the turn; what the policy is told, if anything."""
        calls, text = answer.message.tool_calls, answer.message.content.strip()
        if not calls and answer.finish_reason == "content_filter":
            self.transcript.ends(StopReason.REFUSED)
            return None
        cut = answer.finish_reason == "length"
        if not calls and text and not cut:
            self.at.bad_turns = 0
            self.transcript.ends(StopReason.END_TURN)
            return None
        if calls and errors < len(calls):
            self.at.bad_turns = 0
            return None
        self.at.bad_turns += 1
        if self.at.bad_turns >= self.max_bad_turns:
            self.transcript.fails(
                f"{self.at.bad_turns} answers of {self.model.name} in a row held no working tool "
                "call and no final answer"
            )
            return None
        if calls and not cut:
            return None
        nudge = _CUT_OFF if cut else _EMPTY
        self.at.conversation.add(Message("user", nudge))
        return nudge

    def _info(self, answer: Completion, errors: list[str], model_sec: float) -> dict[str, object]:
        info: dict[str, object] = {
            "finish_reason": answer.finish_reason,
            "model_sec": round(model_sec, 6),
        }
        if not self.transcript.at.steps:
            info["tools"] = msgspec.to_builtins([tool.spec for tool in self.kit.tools.values()])
        if answer.model:
            info["model"] = answer.model
        if errors:
            info["tool_errors"] = errors
        if self.at.shortened:
            info["shortened"] = [list(entry) for entry in self.at.shortened]
            self.at.shortened.clear()
        if answer.tokens and not answer.tokens.ids:
            info["logprobs"] = list(answer.tokens.logprobs)
        if answer.prompt_ids:
            same = _common(self.at.recorded_ids, answer.prompt_ids)
            info["prompt_ids"] = {"from": same, "ids": list(answer.prompt_ids[same:])}
            ids = answer.tokens.ids if answer.tokens else ()
            self.at.recorded_ids = answer.prompt_ids + ids
        return info


@dataclass(frozen=True, slots=True)
class LoopState:
    """A Loop as a value. Implements `session.ActorState`."""

    kit: KitState
    max_bad_turns: int
    at: Progress

    def fidelity(self, live: bool) -> Fidelity:
        """The conversation is ours and comes through anywhere; see KitState about MCP servers."""
        return self.kit.fidelity(live)

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> Loop:
        """Go on elsewhere. Raises UsageError (no model), EnvironmentFailed (an MCP server)."""
        model = policy_of(ctx)
        kit = await self.kit.restore(sandbox, ctx)
        return Loop(ctx, model, kit, transcript, self.max_bad_turns, self.at.copy())


def policy_of(ctx: Context) -> Model:
    """The policy of a run. Raises UsageError where it has none."""
    if ctx.model is None:
        raise UsageError("the chat agent needs a model; give one with --model provider/name")
    return ctx.model


def _bound(limit: str, used: float, most: float | None, unit: str) -> None:
    if most is not None and used >= most:
        raise LimitExceededError(limit, f"{used:g} of {most:g} {unit} are used")


def _action(answer: Completion) -> str:
    """What was done, for people."""
    calls = answer.message.tool_calls
    if not calls:
        return "answer"
    return "; ".join(f"{call.name} {call.arguments[:200]}" for call in calls)[:1000]


def _total(tokens: TokenSpan | None) -> float | None:
    return sum(tokens.logprobs) if tokens and tokens.logprobs else None


def _common(before: Sequence[int], after: Sequence[int]) -> int:
    """Length of the common start of two sequences."""
    length = min(len(before), len(after))
    if before[:length] == after[:length]:
        return length
    return next(i for i in range(length) if before[i] != after[i])
