"""The plain parser, and what all parsers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ramify.contracts.messages import Message

Completion = str | Sequence[Message]
"""What an agent said: a text, or the messages since the prompt."""


class Parser:
    """Reads an answer out of what an agent said. Without `extract` that is the whole text.

    No parser of ours raises, whatever the text, and the time each takes is linear in its length.

    Args:
        extract: text → answer; None means that there is none.
    """

    def __init__(self, extract: Callable[[str], Any] | None = None) -> None:
        self._extract = extract

    def parse(self, text: str) -> Any:
        """What the text says; None where it says nothing that can be read."""
        return text if self._extract is None else self._extract(text)

    def parse_answer(self, completion: Completion) -> Any:
        """The answer: what the last message of the agent says; None without one."""
        texts = agent_texts(completion)
        return self.parse(texts[-1]) if texts else None

    def format_score(self, text: str) -> float:
        """How well one message keeps to the format, from 0 to 1. Here: whether it can be read."""
        return 0.0 if self.parse(text) is None else 1.0

    def get_format_reward(self) -> Callable[..., float]:
        """A reward function: the mean of `format_score` over the agent's messages; 0 for none."""

        def format_reward(completion: Completion) -> float:
            scores = [self.format_score(text) for text in agent_texts(completion)]
            return sum(scores) / len(scores) if scores else 0.0

        return format_reward


def agent_texts(completion: Completion) -> list[str]:
    """The texts of the agent's messages, in order."""
    if isinstance(completion, str):
        return [completion]
    return [message.content for message in completion if message.role == "assistant"]
