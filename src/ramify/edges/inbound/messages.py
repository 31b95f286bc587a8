"""Messages as others write them: the chat-completions form with the liberties that are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from ramify.contracts.messages import Message, Role, ToolCall

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def foreign_messages(found: object, role: Role) -> tuple[Message, ...]:
    """A list of messages, or a text that is one message of this role.

    Raises: ValueError (it is neither; says which part of it is wrong).
    """
    if found is None:
        return ()
    if isinstance(found, str):
        return (Message(role, found),)
    if not isinstance(found, list):
        raise ValueError(f"messages are a list or a text, not {type(found).__name__}")
    records = cast("list[object]", found)
    return tuple(_message(index, record) for index, record in enumerate(records))


def _message(index: int, record: object) -> Message:
    if not isinstance(record, dict):
        raise ValueError(f"message {index} is no object")
    given = cast("dict[str, Any]", record)
    role = _ROLES.get(str(given.get("role")))
    if role is None:
        raise ValueError(f"message {index} has the role {given.get('role')!r}")
    reasoning = given.get("reasoning_content", given.get("reasoning"))
    return Message(
        role=role,
        content=_text(given.get("content")),
        tool_calls=tuple(_call(index, call) for call in given.get("tool_calls") or ()),
        tool_call_id=_optional(given.get("tool_call_id")),
        name=_optional(given.get("name")),
        reasoning=None if reasoning is None else _text(reasoning),
    )


def _text(content: object) -> str:
    """The text of a message; of several parts, their texts one after the other."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return msgspec.json.encode(content).decode()
    texts: list[str] = []
    for part in cast("list[object]", content):
        text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else part
        texts.append(text if isinstance(text, str) else msgspec.json.encode(part).decode())
    return "".join(texts)


def _call(index: int, call: object) -> ToolCall:
    if not isinstance(call, dict):
        raise ValueError(f"message {index} has a tool call that is no object")
    given = cast("dict[str, Any]", call)
    function = given.get("function", given)
    if not isinstance(function, dict) or not isinstance(
        name := cast("dict[str, Any]", function).get("name"), str
    ):
        raise ValueError(f"message {index} has a tool call without a name")
    arguments = cast("dict[str, Any]", function).get("arguments", "")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(str(given.get("id", "")), name, arguments)


def _optional(value: object) -> str | None:
    return None if value is None else str(value)
