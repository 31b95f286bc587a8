"""The policy under an agent: messages in, one completion out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.messages import Message, TokenSpan, ToolSpec, Usage


class Completion(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer of a policy.

    `finish_reason` is the endpoint's word (`stop`, `length`, `tool_calls`, ...). `tokens` and
    `prompt_ids` are present where the endpoint gives them; they are never re-tokenised guesses.
    """

    message: Message
    finish_reason: str
    usage: Usage = Usage()
    tokens: TokenSpan | None = None
    prompt_ids: tuple[int, ...] = ()
    model: str = ""


class Model(Protocol):
    """A model endpoint.

    Guarantees: either a whole completion with its usage, or an error; never half an answer.
    """

    @property
    def name(self) -> str:
        """`provider/name`."""
        ...

    async def sample(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        params: Sampling | None = None,
    ) -> Completion:
        """Sample one completion. Raises ModelError, LimitExceededError."""
        ...

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        ...
