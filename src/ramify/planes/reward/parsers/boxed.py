r"""The answer in `\boxed{...}`, as mathematical texts give it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPEN = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def extract_boxed_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` or `\fbox{...}` of a text holds; None without one.

    Braces nest; a box that is not closed, as in a text that was cut off, is no answer, and neither
    is an earlier one then.
    """
    start = None
    for match in _OPEN.finditer(text):
        start = match.end()
    if start is None:
        return None
    end = _closing(_BRACE.finditer(text, start))
    return None if end is None else text[start:end].strip()


def _closing(braces: Iterator[re.Match[str]]) -> int | None:
    depth = 1
    for brace in braces:
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
