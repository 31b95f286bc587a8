"""Answers of models that think aloud first: `<think>…</think>` and then the answer."""

from __future__ import annotations

from typing import Any

from ramify.planes.reward.parsers.base import Parser

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkParser(Parser):
    """Reads what follows the thinking, which has to be there and to have ended.

    The opening tag may be missing, since some chat templates put it into the prompt. A text that
    ends while the model is thinking has no answer.

    Args:
        extract: the text after the thinking → answer.
    """

    def parse(self, text: str) -> Any:
        """What follows the last block of thinking; None without a block, or in the midst of one."""
        before, closed, rest = text.rpartition(_CLOSE)
        if not closed:
            return self._unthought(before + rest)
        return None if _OPEN in rest else super().parse(rest.strip())

    def _unthought(self, text: str) -> Any:
        """What a text without any closing tag says."""
        return None

    def format_score(self, text: str) -> float:
        """1 for one block of thinking at the start with an answer after it, else 0."""
        once = text.count(_OPEN) == 1 and text.count(_CLOSE) == 1
        answered = bool(text.rpartition(_CLOSE)[2].strip())
        return float(once and answered and text.lstrip().startswith(_OPEN))


class MaybeThinkParser(ThinkParser):
    """The same for models that may answer without thinking: then the whole text counts."""

    def _unthought(self, text: str) -> Any:
        return None if _OPEN in text else Parser.parse(self, text.strip())

    def format_score(self, text: str) -> float:
        """1 also for a text without any tag."""
        if _OPEN not in text and _CLOSE not in text:
            return float(bool(text.strip()))
        return super().format_score(text)
