"""A conversation as a page of text, for somebody who judges it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ramify.contracts.messages import Message, ToolCall

_INDENT = "  "


def final_answer(messages: Sequence[Message]) -> str:
    """What the policy said last, of all that it said in words; empty where it said nothing."""
    said = (m.content for m in reversed(messages) if m.role == "assistant" and m.content.strip())
    return next(said, "")


def written(messages: Iterable[Message]) -> str:
    """A conversation: who speaks at the start of a line, and what they say indented below.

    So nothing that is said can look as if somebody else had said it.
    """
    return "\n".join(line for message in messages for line in _message(message))


def written_call(call: ToolCall) -> str:
    """A tool call as text: its name, and its arguments as JSON where they are JSON."""
    try:
        arguments = json.dumps(json.loads(call.arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{call.name} {arguments}"


def _message(message: Message) -> list[str]:
    lines: list[str] = []
    if message.reasoning:
        lines += [f"[{message.role}, thinking]", *_indented(message.reasoning)]
    if message.content or not (message.tool_calls or message.reasoning):
        lines += [f"[{message.role}]", *_indented(message.content)]
    for call in message.tool_calls:
        lines += [f"[{message.role}, calling a tool]", *_indented(written_call(call))]
    return lines


def _indented(text: str) -> list[str]:
    return [f"{_INDENT}{line}" for line in text.splitlines() or [""]]
