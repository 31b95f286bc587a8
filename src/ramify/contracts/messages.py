"""What is said between a policy, its tools and its user."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of a tool. `arguments` is the JSON text as the policy wrote it, valid or not."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message. `tool_call_id` links a tool's answer to the call it answers."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens and money of one or more model calls, as the endpoint or gateway counted them.

    `cost_usd` is None where the price is not known; it is never a guess.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0
    cost_usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [c for c in (self.cost_usd, other.cost_usd) if c is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
            sum(costs) if costs else None,
        )


class TokenSpan(msgspec.Struct, frozen=True):
    """Token ids of one completion and the behaviour policy's log-probability of each.

    `ids` and `logprobs` have equal length where the endpoint gives both; else one is empty.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a policy sees it. `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: dict[str, Any]
