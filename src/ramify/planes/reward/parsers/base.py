"""The plain parser, and what all parsers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ramify.contracts.messages import Message

Completion = str | Sequence[Message]
"""What an agent said: a text, or the messages since the prompt."""


class Parser:
    """Reads an answer out of what an agent said. Without `extract` that is the whole text.

    Args:
        extract: text → answer; None means that there is none. It must not raise.
    """

    def __init__(self, extract: Callable[[str], Any] | None = None) -> None:
        self._extract = extract

    def parse(self, text: str) -> Any:
        """What the text says; None where it says nothing that can be read."""
        return text if self._extract is None else self._extract(text)

    def parse_answer(self, completion: Completion) -> Any:
        """The answer: what the last message of the agent says; None without one."""
        text = last_text(completion)
        return None if text is None else self.parse(text)

    def get_format_reward(self) -> Callable[..., float]:
        """A reward function: 1 where the last message can be read, else 0."""

        def format_reward(completion: Completion) -> float:
            return 0.0 if self.parse_answer(completion) is None else 1.0

        return format_reward


def last_text(completion: Completion) -> str | None:
    """The text of the agent's last message; None where it said nothing."""
    texts = agent_texts(completion)
    return texts[-1] if texts else None


def agent_texts(completion: Completion) -> list[str]:
    """The texts of the agent's messages, in order."""
    if isinstance(completion, str):
        return [completion]
    return [message.content for message in completion if message.role == "assistant"]
