"""What is sent to the policy: the messages so far, kept within its context.

What is recorded is never changed; only what is sent again is shortened, oldest tool outputs
first. Which ones, and to how much, is told, so that every prompt can be made again from the
record: `clipped(content, limit)` (planes/agent/tools.py) of the message at an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ramify.contracts.messages import Message, ToolSpec, Usage
from ramify.planes.agent.tools import clipped

_STUB, _LAST = 400, 2000
"""Characters that are left of a shortened output: of an old one, of one not yet reacted to."""

_OVERHEAD = 16
"""What a message costs besides its text, in characters."""


class Conversation:
    """Messages, and an estimate of their tokens that learns from the endpoint's own counts."""

    def __init__(self, opening: Sequence[Message], tools: Sequence[ToolSpec]) -> None:
        self.messages: list[Message] = list(opening)
        self._tools = len(msgspec.json.encode(tools))
        self._size = self._tools + sum(map(_size, self.messages))
        self._per_token = 3.5

    def copy(self) -> Conversation:
        """A conversation of its own that stands where this one does."""
        made = Conversation(self.messages, ())
        made._tools, made._size, made._per_token = self._tools, self._size, self._per_token
        return made

    @property
    def tokens(self) -> int:
        """About how many tokens the next request has."""
        return int(self._size / self._per_token) + 1

    def add(self, *messages: Message) -> None:
        """Append messages."""
        self.messages.extend(messages)
        self._size += sum(map(_size, messages))

    def counted(self, usage: Usage) -> None:
        """Learn from what the endpoint counted for the messages as they stand."""
        if usage.input_tokens > 0:
            self._per_token = min(8.0, max(1.0, self._size / usage.input_tokens))

    def shorten(self, tokens: int) -> tuple[list[tuple[int, int]], bool]:
        """Shorten tool outputs, oldest first, until the request has about `tokens`.

        A call keeps its answer: contents shrink, messages stay.

        Returns:
            (index, limit) of each message that was shortened, and whether it was enough.
        """
        done: list[tuple[int, int]] = []
        for index, limit in self._candidates():
            if self.tokens <= tokens:
                break
            before = self.messages[index]
            if len(before.content) > limit + 100:  # else the note takes what the cut gives
                after = msgspec.structs.replace(before, content=clipped(before.content, limit))
                self.messages[index] = after
                self._size += _size(after) - _size(before)
                done.append((index, limit))
        return done, self.tokens <= tokens

    def _candidates(self) -> Iterator[tuple[int, int]]:
        answered = [i for i, message in enumerate(self.messages) if message.role == "tool"]
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=-1)
        yield from ((i, _STUB) for i in answered if i < last)
        yield from ((i, _LAST) for i in answered if i > last)
        yield from ((i, _STUB) for i in answered if i > last)


def _size(message: Message) -> int:
    calls = sum(len(c.name) + len(c.arguments) + _OVERHEAD for c in message.tool_calls)
    return len(message.content) + calls + _OVERHEAD
