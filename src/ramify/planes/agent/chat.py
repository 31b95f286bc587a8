"""The built-in agent: one loop of a policy and its tools, over the Model contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, LimitExceededError, UsageError
from ramify.contracts.events import LogEvent
from ramify.contracts.messages import Message, TokenSpan, ToolCall, Usage
from ramify.contracts.model import Completion, Model
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Step
from ramify.planes.agent.conversation import Conversation
from ramify.planes.agent.sandbox_tools import Box, sandbox_tools
from ramify.planes.agent.session import Transcript, TurnSession, agent_user
from ramify.planes.agent.tools import Tool, ToolError, clipped

_SYSTEM = """\
You work in a Linux sandbox and solve the task that the user gives you by calling tools. Nobody \
answers questions while you work: decide yourself, look before you change things, and check your \
result. The work directory is {workdir}. When the task is done, answer without a tool call; that \
ends your turn."""

_CUT_OFF = "Your answer was cut off at the limit of tokens per answer. Go on, in shorter steps."
_EMPTY = "Your answer was empty. Call a tool, or say what you did if the task is done."
_STOPPED = "Error: stopped before it finished"
_SMALLER = 0.7
"""How much of a request is left after the endpoint said that it exceeds the context."""


class ChatAgent:
    """Lets a model work with tools: bash, read, write and edit in the sandbox.

    Args:
        system: the system message; `{workdir}` in it stands for the work directory. Empty: none.
        bash_timeout_sec: time of a command that asks for none.
        output_limit: characters of a tool's answer; beyond that its middle is left out.
        max_bad_turns: after so many turns in a row without a valid tool call or an answer the
            agent has failed.

    Raises:
        UsageError: a number that is too small.
    """

    name = "chat"

    def __init__(
        self,
        system: str = _SYSTEM,
        bash_timeout_sec: float = 120.0,
        output_limit: int = 16_000,
        max_bad_turns: int = 8,
    ) -> None:
        if not (bash_timeout_sec > 0 and output_limit >= 100 and max_bad_turns >= 1):
            raise UsageError(
                "chat needs bash_timeout_sec above 0, output_limit of 100 or more, max_bad_turns "
                "of 1 or more"
            )
        self._system = system
        self._bash_timeout_sec, self._output_limit = bash_timeout_sec, output_limit
        self._max_bad_turns = max_bad_turns

    def capabilities(self) -> AgentCapabilities:
        """It needs a model, and goes on with the conversation at a further prompt."""
        return AgentCapabilities(needs_model=True, multi_prompt=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session. Raises UsageError when the run has no model."""
        if ctx.model is None:
            raise UsageError("the chat agent needs a model; give one with --model provider/name")
        opening: list[Message] = []
        if self._system:
            system = self._system.replace("{workdir}", ctx.workdir)
            opening.append(Message("system", system))
        tools = sandbox_tools()
        box = Box(sandbox, agent_user(ctx), ctx.workdir, self._bash_timeout_sec, self._output_limit)
        transcript = Transcript(ctx, role)
        specs = [tool.spec for tool in tools.values()]
        loop = _Loop(
            ctx,
            ctx.model,
            tools,
            {"box": box},
            transcript,
            Conversation(opening, specs),
            self._max_bad_turns,
            self._output_limit,
        )
        return TurnSession(loop.turn, transcript)


@dataclass(slots=True)
class _Loop:
    """State and control flow of one session."""

    ctx: Context
    model: Model
    tools: Mapping[str, Tool]
    values: Mapping[str, object]
    transcript: Transcript
    conversation: Conversation
    max_bad_turns: int
    output_limit: int
    used: Usage = Usage()
    working_sec: float = 0.0
    bad_turns: int = 0
    recorded_ids: tuple[int, ...] = ()
    shortened: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    async def turn(self, text: str, index: int) -> StopReason:
        """Work on one prompt until the policy answers without a tool call, or a limit binds."""
        self.conversation.add(Message("user", text))
        opening = tuple(self.conversation.messages)
        if index == 0 and opening != (Message("user", self.ctx.task.instruction),):
            # The rollout recorded an opening without the system message.
            await self.ctx.recorder.prompt(opening)
        start = self.ctx.clock.monotonic()
        before = self.working_sec
        try:
            while True:
                self.working_sec = before + self.ctx.clock.monotonic() - start
                if self.ctx.cancel.cancelled:
                    return StopReason.CANCELLED
                self._check_limits()
                if (reason := await self._step()) is not None:
                    return reason
        except LimitExceededError as error:
            fields = {"limit": error.limit, "detail": str(error)}
            now, rollout = self.ctx.clock.now(), self.ctx.rollout_id
            event = LogEvent(rollout, now, "warning", "a limit ended the agent's turn", fields)
            self.ctx.observer.emit(event)
            return StopReason.LIMIT

    def _check_limits(self) -> None:
        """In the order of RolloutConfig; cancellation was checked. Raises LimitExceededError."""
        config, used = self.ctx.config, self.used
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
                    f"about {self.conversation.tokens} tokens and room for an answer exceed the "
                    f"{config.max_context} tokens of context, with all tool outputs shortened",
                )
        _bound("time", self.working_sec, config.timeout_sec, "seconds")

    async def _step(self) -> StopReason | None:
        """One model call and the tools it asks for; why the turn ended, if it did."""
        clock = self.ctx.clock
        started_at, start = clock.now(), clock.monotonic()
        answer = await self._ask()
        model_sec = clock.monotonic() - start
        calls = answer.message.tool_calls
        results: list[str | None] = [None] * len(calls)
        errors: list[str] = []
        try:
            await self._run_all(calls, results, errors)
        finally:
            # Also when the turn ends in the middle of a tool: the call was made and paid for,
            # and every call keeps its answer.
            answers = [
                Message("tool", _STOPPED if text is None else text, (), call.id, call.name)
                for call, text in zip(calls, results, strict=True)
            ]
            self.conversation.add(answer.message, *answers)
            info = self._info(answer, errors, model_sec)
            await self.transcript.took(
                Step(
                    messages=(answer.message, *answers),
                    action=_action(answer),
                    logprob=_total(answer.tokens),
                    usage=answer.usage,
                    tokens=answer.tokens if answer.tokens and answer.tokens.ids else None,
                    started_at=started_at,
                    duration_sec=clock.monotonic() - start,
                    info=info,
                )
            )
        return self._judged(answer, len(errors))

    async def _ask(self) -> Completion:
        """One completion; shortens what is sent while the endpoint says that it is too long."""
        specs = [tool.spec for tool in self.tools.values()]
        params = self.ctx.config.sampling
        while True:
            try:
                answer = await self.model.sample(self.conversation.messages, specs, params)
            except LimitExceededError as error:
                smaller = int(self.conversation.tokens * _SMALLER)
                before = len(self.shortened)
                self._shorten(smaller)
                if error.limit != "context" or len(self.shortened) == before:
                    raise
                continue
            self.conversation.counted(answer.usage)
            self.used += answer.usage
            return answer

    def _shorten(self, tokens: int) -> bool:
        done, enough = self.conversation.shorten(tokens)
        self.shortened.extend(done)
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
        tool = self.tools.get(call.name)
        return tool is not None and tool.safe

    async def _run(
        self, call: ToolCall, index: int, results: list[str | None], errors: list[str]
    ) -> None:
        try:
            tool = self.tools.get(call.name)
            if tool is None:
                raise ToolError(f"no tool {call.name!r}; there are: {', '.join(self.tools)}")
            results[index] = await tool.run(call.arguments, self.values)
        except ToolError as error:
            errors.append(call.id)
            results[index] = clipped(f"Error: {error}", self.output_limit)

    def _judged(self, answer: Completion, errors: int) -> StopReason | None:
        """Whether the answer ends the turn. Raises AgentError after too many useless ones."""
        calls, text = answer.message.tool_calls, answer.message.content.strip()
        if not calls and answer.finish_reason == "content_filter":
            return StopReason.REFUSED
        cut = answer.finish_reason == "length"
        if not calls and text and not cut:
            self.bad_turns = 0
            return StopReason.END_TURN
        if calls and errors < len(calls):
            self.bad_turns = 0
            return None
        self.bad_turns += 1
        if self.bad_turns >= self.max_bad_turns:
            raise AgentError(
                f"{self.bad_turns} answers of {self.model.name} in a row held no working tool "
                "call and no final answer"
            )
        if cut or not calls:
            nudge = _CUT_OFF if cut else _EMPTY
            self.transcript.prompted(nudge)
            self.conversation.add(Message("user", nudge))
        return None

    def _info(self, answer: Completion, errors: list[str], model_sec: float) -> dict[str, object]:
        info: dict[str, object] = {
            "finish_reason": answer.finish_reason,
            "model_sec": round(model_sec, 6),
        }
        if not self.transcript.steps:
            info["tools"] = msgspec.to_builtins([tool.spec for tool in self.tools.values()])
        if answer.model:
            info["model"] = answer.model
        if errors:
            info["tool_errors"] = errors
        if self.shortened:
            info["shortened"] = [list(entry) for entry in self.shortened]
            self.shortened.clear()
        if answer.tokens and not answer.tokens.ids:
            info["logprobs"] = list(answer.tokens.logprobs)
        if answer.prompt_ids:
            same = _common(self.recorded_ids, answer.prompt_ids)
            info["prompt_ids"] = {"from": same, "ids": list(answer.prompt_ids[same:])}
            ids = answer.tokens.ids if answer.tokens else ()
            self.recorded_ids = answer.prompt_ids + ids
        return info


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
