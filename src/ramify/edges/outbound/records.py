"""What records of several formats have in common: messages, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.result import RolloutResult
from ramify.kernel.outline import Number


def write_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages in the chat-completions form."""
    found: list[dict[str, Any]] = []
    for message in messages:
        record: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            record["reasoning_content"] = message.reasoning
        if message.tool_calls:
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
        if message.name is not None:
            record["name"] = message.name
        found.append(record)
    return found


def read_messages(records: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """Messages of a record, as they were recorded.

    Raises:
        KeyError, TypeError: what was given is no such list.
    """
    return tuple(
        Message(
            role=record["role"],
            content=record["content"],
            tool_calls=tuple(
                ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in record.get("tool_calls", ())
            ),
            tool_call_id=record.get("tool_call_id"),
            name=record.get("name"),
            reasoning=record.get("reasoning_content"),
        )
        for record in records
    )


def rollout_info(result: RolloutResult) -> dict[str, Any]:
    """Where a record comes from."""
    return {
        "task_id": result.task_id,
        "rollout_id": result.rollout_id,
        "repeat": result.repeat,
        "attempt": result.attempt,
        "agent": result.agent,
        "model": result.model,
        "outcome": result.outcome.value,
        "invalid_reason": result.invalid_reason,
        "grader_isolation": result.grader_isolation,
        "trajectory_hash": result.trajectory_hash,
    }


def as_float(number: Number | None) -> float | None:
    """A number as JSON has it."""
    return None if number is None else float(number)
