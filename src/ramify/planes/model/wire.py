"""The chat-completions format: requests as they are sent, answers put together whole.

A streamed chunk and a whole answer have nearly the same shape, so one `Assembler` takes both: an
answer that does not stream is a stream of one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.messages import Message, TokenSpan, ToolCall, ToolSpec, Usage
from ramify.contracts.model import Completion


class WireError(ValueError):
    """An answer that is not a completion; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How requests differ between endpoints.

    Attributes:
        stream: ask for a stream.
        token_ids: ask for token ids (vLLM and what is compatible with it).
        send_reasoning: give the reasoning of earlier answers back.
        max_tokens_field: the name of the limit on an answer's tokens.
    """

    stream: bool = False
    token_ids: bool = False
    send_reasoning: bool = False
    max_tokens_field: str = "max_tokens"


def request_body(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    params: Sampling,
    dialect: Dialect,
) -> bytes:
    """The JSON body of one request."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, dialect) for message in messages],
    }
    if tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for tool in tools
        ]
    if params.temperature is not None:
        body["temperature"] = params.temperature
    if params.top_p is not None:
        body["top_p"] = params.top_p
    if params.max_tokens is not None:
        body[dialect.max_tokens_field] = params.max_tokens
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logprobs:
        body["logprobs"] = True
    if dialect.token_ids:
        body["return_token_ids"] = True
    if dialect.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)


def _message(message: Message, dialect: Dialect) -> dict[str, Any]:
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        record["content"] = message.content or None
        record["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        record["tool_call_id"] = message.tool_call_id
    elif message.name is not None:
        record["name"] = message.name
    if dialect.send_reasoning and message.reasoning is not None:
        record["reasoning_content"] = message.reasoning
    return record


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function
    index: int | None = None
    id: str | None = None


class _Said(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float
    token: str = ""


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class Piece(msgspec.Struct):
    """A whole answer, or one chunk of a stream."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None
    prompt_token_ids: list[int] | None = None


_decoder = msgspec.json.Decoder(Piece)


def read_piece(data: bytes) -> Piece:
    """Parse an answer or a chunk. Raises WireError."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"malformed JSON ({error})") from None


@dataclass(slots=True)
class _Slot:
    """A tool call as it grows."""

    id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Assembler:
    """Puts the pieces of one answer together."""

    content: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    slots: list[_Slot] = field(default_factory=list[_Slot])
    by_index: dict[int, _Slot] = field(default_factory=dict[int, _Slot])
    ids: list[int] = field(default_factory=list[int])
    prompt_ids: tuple[int, ...] = ()
    logprobs: list[float] = field(default_factory=list[float])
    finish_reason: str | None = None
    usage: _Usage | None = None
    model: str = ""
    answered: bool = False

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        self.model = piece.model or self.model
        self.usage = piece.usage or self.usage
        if piece.prompt_token_ids:
            self.prompt_ids = tuple(piece.prompt_token_ids)
        for choice in piece.choices or ():
            if choice.index == 0:
                self._choice(choice)

    def completion(self, whole: bool) -> Completion:
        """The answer. `whole`: it came in one piece, so that its end needs no mark.

        Raises:
            WireError: there is no answer, or not all of it.
        """
        if not self.answered:
            raise WireError("no choices in the answer")
        if self.finish_reason is None and not whole:
            raise WireError("the stream was cut before the answer's end")
        for slot in self.slots:
            if not slot.name:
                raise WireError("a tool call without a name")
        message = Message(
            role="assistant",
            content="".join(self.content),
            tool_calls=tuple(
                ToolCall(slot.id, slot.name, "".join(slot.arguments)) for slot in self.slots
            ),
            reasoning="".join(self.reasoning) or None,
        )
        return Completion(
            message=message,
            finish_reason=self.finish_reason or ("tool_calls" if self.slots else "stop"),
            usage=self._used(),
            tokens=self._tokens(),
            prompt_ids=self.prompt_ids,
            model=self.model,
        )

    def _choice(self, choice: _Choice) -> None:
        said = choice.message or choice.delta
        self.answered = self.answered or said is not None
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.token_ids:
            self.ids.extend(choice.token_ids)
        if choice.logprobs is not None:
            self._scored(choice.logprobs.content or ())
        if said is None:
            return
        self.content.extend(_texts(said.content))
        if said.refusal:
            self.content.append(said.refusal)
        reasoning = said.reasoning_content or said.reasoning
        if isinstance(reasoning, str):
            self.reasoning.append(reasoning)
        for place, call in enumerate(said.tool_calls or ()):
            self._call(call, place if choice.message is not None else call.index)

    def _scored(self, tokens: Iterable[_TokenLogprob]) -> None:
        for token in tokens:
            self.logprobs.append(token.logprob)
            # vLLM's return_tokens_as_token_ids
            if token.token.startswith("token_id:") and token.token[9:].isdecimal():
                self.ids.append(int(token.token[9:]))

    def _call(self, call: _Call, index: int | None) -> None:
        slot = self.by_index.get(index) if index is not None else None
        if slot is None and index is None and self.slots and not call.id:
            slot = self.slots[-1]
        if slot is None or (call.id and call.id != slot.id):
            # Endpoints that number every call 0 tell calls apart by id alone.
            slot = _Slot(call.id or f"call_{len(self.slots)}")
            self.slots.append(slot)
            if index is not None:
                self.by_index[index] = slot
        slot.name = slot.name or call.function.name or ""
        arguments = call.function.arguments
        if isinstance(arguments, dict):
            slot.arguments.append(msgspec.json.encode(arguments).decode())
        elif arguments:
            slot.arguments.append(arguments)

    def _used(self) -> Usage:
        used = self.usage
        if used is None:
            return Usage(calls=1)
        details = used.prompt_tokens_details
        return Usage(
            input_tokens=used.prompt_tokens,
            output_tokens=used.completion_tokens or 0,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            calls=1,
        )

    def _tokens(self) -> TokenSpan | None:
        if not self.ids and not self.logprobs:
            return None
        ids, logprobs = tuple(self.ids), tuple(self.logprobs)
        if ids and len(ids) != len(logprobs):
            return TokenSpan(ids)  # which belongs to which is not known, so neither is claimed
        return TokenSpan(ids, logprobs)


def _texts(content: str | list[dict[str, Any]] | None) -> list[str]:
    """Text of a content that is a string, a list of parts, or nothing."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    return [text for part in content if isinstance(text := part.get("text"), str)]


def error_text(error: Any) -> tuple[str, str]:
    """Code and message of an `error` member, whatever its shape; empty where it has none."""
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    fields = cast("dict[str, Any]", error)
    code, message = fields.get("code") or fields.get("type"), fields.get("message")
    return str(code or ""), message if isinstance(message, str) else ""
