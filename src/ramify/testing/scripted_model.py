"""A policy that follows a script: deterministic, offline, and able to quote what it just read.

    model = ScriptedModel([
        call("read", path="question.txt"),
        lambda seen: call("write", path="answer.txt", content=seen.quote(r"code: (\\w+)")),
        "Done.",
    ])

A script is a list of turns, one per model call of a conversation, or a function that makes any
turn. Which turn is next is read off the conversation itself (how often the policy has spoken), so
that one script serves any number of conversations side by side, and a repeated request gets the
same answer again.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.messages import Message, TokenSpan, ToolCall, ToolSpec, Usage
from ramify.contracts.model import Completion


class ScriptError(AssertionError):
    """The script has no answer to what it was asked."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the policy sees: the conversation, and what is easy to ask about it."""

    messages: Sequence[Message]

    @property
    def turn(self) -> int:
        """How often the policy has spoken."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def instruction(self) -> str:
        """The first thing that the user said."""
        return next((m.content for m in self.messages if m.role == "user"), "")

    @property
    def answers(self) -> list[str]:
        """The tools' answers since the policy last spoke, in order."""
        found: list[str] = []
        for message in reversed(self.messages):
            if message.role == "assistant":
                break
            if message.role == "tool":
                found.append(message.content)
        return found[::-1]

    def quote(self, pattern: str) -> str:
        """The first match in the tools' last answers: its first group, or all of it.

        Raises:
            ScriptError: none of them matches.
        """
        for answer in self.answers:
            if match := re.search(pattern, answer, re.MULTILINE):
                return match[1] if match.re.groups else match[0]
        raise ScriptError(f"nothing like {pattern!r} in {self.answers}")


class Reply(msgspec.Struct, frozen=True):
    """One answer of the policy, spelled out.

    `usage` None: about four characters per token. `finish_reason` None: `tool_calls` or `stop`.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    tokens: TokenSpan | None = None
    prompt_ids: tuple[int, ...] = ()

    def completion(self, messages: Sequence[Message], model: str) -> Completion:
        """As a completion of `messages`."""
        calls = self.tool_calls
        said = len(self.content) + sum(len(call.arguments) for call in calls)
        read = sum(len(message.content) for message in messages)
        return Completion(
            Message("assistant", self.content, calls, reasoning=self.reasoning),
            self.finish_reason or ("tool_calls" if calls else "stop"),
            self.usage or Usage(read // 4 + 1, said // 4 + 1, calls=1),
            self.tokens,
            self.prompt_ids,
            model,
        )


Turn = str | ToolCall | Reply | Sequence[ToolCall]
Script = Sequence[Turn | Callable[[Seen], Turn | Awaitable[Turn]]] | Callable[[Seen], Turn]


def call(name: str, **arguments: object) -> ToolCall:
    """A tool call; its id is filled in when it is made."""
    return ToolCall("", name, msgspec.json.encode(arguments).decode())


async def next_reply(script: Script | Mapping[str, Script], messages: Sequence[Message]) -> Reply:
    """The script's answer to a conversation.

    With several scripts by name, the one whose name occurs in the instruction is followed.

    Raises:
        ScriptError: there is no such script, or it is over.
    """
    seen = Seen(messages)
    if isinstance(script, Mapping):
        script = _chosen(cast("Mapping[str, Script]", script), seen)
    if callable(script):
        turn = script(seen)
    else:
        if seen.turn >= len(script):
            raise ScriptError(f"the script has {len(script)} turns, and is over")
        entry = script[seen.turn]
        turn = entry(seen) if callable(entry) else entry
        if inspect.isawaitable(turn):
            turn = await turn
    return _reply(turn, seen.turn)


def _chosen(scripts: Mapping[str, Script], seen: Seen) -> Script:
    for name, script in scripts.items():
        if name in seen.instruction:
            return script
    raise ScriptError(f"no script for {seen.instruction[:80]!r}; there are: {list(scripts)}")


def _reply(turn: Turn, number: int) -> Reply:
    if isinstance(turn, str):
        return Reply(turn)
    if isinstance(turn, ToolCall):
        turn = Reply(tool_calls=(turn,))
    elif not isinstance(turn, Reply):
        turn = Reply(tool_calls=tuple(turn))
    calls = tuple(
        ToolCall(made.id or f"call_{number}_{place}", made.name, made.arguments)
        for place, made in enumerate(turn.tool_calls)
    )
    return msgspec.structs.replace(turn, tool_calls=calls)


class ScriptedModel:
    """A model that follows a script. Implements `contracts.model.Model`.

    Args:
        script: turns, a function, or scripts by a text that occurs in the instruction.
        name: `provider/name`.
        failures: errors to raise on the first calls, in order; None answers.

    Attributes:
        calls: the messages of each call, as they were given.
        closed: whether `aclose` was called.
    """

    def __init__(
        self,
        script: Script | Mapping[str, Script],
        name: str = "scripted/model",
        failures: Sequence[Exception | None] = (),
    ) -> None:
        self._script, self._name, self._failures = script, name, list(failures)
        self.calls: list[tuple[Message, ...]] = []
        self.params: list[Sampling | None] = []
        self.closed = False

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    async def sample(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        params: Sampling | None = None,
    ) -> Completion:
        """The script's next turn. Raises ScriptError, or the next of `failures`."""
        self.calls.append(tuple(messages))
        self.params.append(params)
        failure = self._failures.pop(0) if self._failures else None
        await asyncio.sleep(0)  # a model takes its time: others get theirs, and can cancel this
        if failure is not None:
            raise failure
        reply = await next_reply(self._script, messages)
        return reply.completion(messages, self._name)

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True
