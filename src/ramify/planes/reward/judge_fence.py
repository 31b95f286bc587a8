"""Text that nobody trusts, as a judge may be shown it: it cannot leave the place it is put in.

Each line of it begins with a bar, between two lines that carry a mark which nobody could know when
the text was written. Whatever could be taken for something other than text on a page is spelled
out: control characters, characters that are not seen or that turn the direction of writing, and
the tokens by which chat templates tell who speaks.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_BAR = "| "
_LINE_ENDS = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Categories of characters that are spelled out; a tab is not."""
_SELECTORS = (range(0xFE00, 0xFE0F), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))
"""Variation selectors: unseen, and enough of them to carry a text. U+FE0F alone is common."""
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f")
"""Letters and marks that are not seen."""
_TEMPLATE = re.compile(
    r"<(?=[|\uff5c])"
    r"|<(?=/?(?:s|bos|eos|unk|pad|mask|think|thinking|tool_call|tool_response|tools|function|"
    r"start_of_turn|end_of_turn|system|user|assistant|model|human)>)"
    r"|<(?=<\s*/?\s*SYS\s*>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Fenced:
    """A text in its fence. `cut` is how many characters of it were left out."""

    text: str
    cut: int


def fence(name: str, text: str, mark: str, limit: int) -> Fenced:
    """Put a text between two lines with a mark; `limit` is how many characters are kept.

    What counts is how it is shown, bars and what is spelled out included. Of a longer text the head
    and the tail are kept, with a line between them, outside of the bars, that says how much is
    missing.
    """
    parts, cut = _bounded(text, mark, limit)
    gap = f"[{mark}: about {cut} characters are left out here, {name} goes on]"
    body = f"\n{gap}\n".join(parts)
    return Fenced(f"[{mark}: begin {name}]\n{body}\n[{mark}: end {name}]", cut)


def plain(text: str) -> str:
    """`text` with everything spelled out that is not text on a page; line ends become `\\n`.

    What is spelled out reads `\\u{202e}`.
    """
    text = _LINE_ENDS.sub("\n", text)
    if not text.isascii() or any(c < " " and c not in "\n\t" or c == "\x7f" for c in text):
        text = "".join(_seen(char) for char in text)
    return _TEMPLATE.sub(lambda match: _spelled(match[0]), text)


def _bounded(text: str, mark: str, limit: int) -> tuple[list[str], int]:
    """The text behind bars, in one part or in two, and how much is missing between them."""
    head_size = (limit + 1) // 2
    tail_size = limit - head_size
    if len(text) <= 2 * limit:
        shown = _barred(text, mark)
        if len(shown) <= limit:
            return [shown], 0
        head = tail = shown
        missing = len(shown) - limit
    else:
        head, tail = _barred(text[:limit], mark), _barred(text[-limit:], mark)
        missing = len(text) - 2 * limit + len(head) + len(tail) - limit
    # Wherever the tail was cut, it begins behind a bar.
    return [head[:head_size], _BAR + tail[len(tail) - tail_size :]], missing


def _barred(text: str, mark: str) -> str:
    lines = plain(text).replace(mark, "(mark)").split("\n")
    return "\n".join(f"{_BAR}{line}" for line in lines)


def _seen(char: str) -> str:
    if char in "\n\t":
        return char
    point = ord(char)
    hidden = (
        unicodedata.category(char) in _UNSEEN
        or char in _BLANK_LETTERS
        or any(point in block for block in _SELECTORS)
    )
    return _spelled(char) if hidden else char


def _spelled(char: str) -> str:
    return f"\\u{{{ord(char):x}}}"
