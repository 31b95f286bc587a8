"""Export as the linear record of the `verifiers` library: one line per scored trajectory.

Fields: example_id, task_id, prompt, completion, answer, reward, metrics, is_completed,
is_truncated, stop_condition, error, timing, token_usage, info. Tool calls stay tool calls, tool
answers keep the role `tool`, and what was never scored has reward null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import StoreError
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome
from ramify.engine.reading import read_events, read_results
from ramify.kernel.trajectory import Trajectory, trajectories
from ramify.kernel.tree import tree_from_events


def export_verifiers(
    job: Path, *, scored_only: bool = False, check: bool = False
) -> Iterator[dict[str, Any]]:
    """Records of a job, by rollout id and leaf.

    Args:
        job: the run directory.
        scored_only: leave out rollouts that were never scored.
        check: read each record back, and compare its messages with those that were recorded.

    Raises:
        StoreError: the run directory cannot be read, or a record does not read back the same.
    """
    results = read_results(job)
    example_ids = {
        task_id: n for n, task_id in enumerate(sorted({r.task_id for r in results.values()}))
    }
    for rollout_id, result in sorted(results.items()):
        if scored_only and not result.outcome.counts:
            continue
        tree = tree_from_events(read_events(job, rollout_id))
        for path in trajectories(tree):
            record = _record(result, path, example_ids[result.task_id])
            if check:
                _compare(record, path)
            yield record


def read_messages(records: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """Messages of a record's `prompt` or `completion`, as they were recorded.

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


def _compare(record: dict[str, Any], path: Trajectory) -> None:
    """Raises StoreError unless the record, written and read, holds the path's messages."""
    again = msgspec.json.decode(msgspec.json.encode(record))
    for name, messages in (("prompt", path.prompt), ("completion", path.completion)):
        if read_messages(again[name]) != messages:
            info = record["info"]
            raise StoreError(
                f"the {name} of {info['rollout_id']} (leaf {info['leaf']}) does not read back as "
                "it was recorded"
            )


def _record(result: RolloutResult, path: Trajectory, example_id: int) -> dict[str, Any]:
    return {
        "example_id": example_id,
        "task_id": result.task_id,
        "prompt": _messages(path.prompt),
        "completion": _messages(path.completion),
        "reward": result.reward,
        "metrics": dict(result.items),
        "is_completed": result.outcome is Outcome.SCORED,
        "is_truncated": result.outcome is Outcome.AGENT_TIMEOUT,
        "stop_condition": result.outcome.value,
        "error": msgspec.to_builtins(result.error) if result.error else None,
        "timing": dict(result.timings),
        "token_usage": {
            "input_tokens": result.usage.input_tokens,
            "output_tokens": result.usage.output_tokens,
        },
        "info": {
            "task_id": result.task_id,
            "rollout_id": result.rollout_id,
            "leaf": path.leaf,
            "repeat": result.repeat,
            "attempt": result.attempt,
            "agent": result.agent,
            "model": result.model,
            "outcome": result.outcome.value,
            "invalid_reason": result.invalid_reason,
            "grader_isolation": result.grader_isolation,
            "trajectory_hash": result.trajectory_hash,
            "tools": next((s.info["tools"] for s in path.steps if "tools" in s.info), None),
        },
    }


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
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
