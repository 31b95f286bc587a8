"""JSON looked over before it is parsed: how deep it goes, and whether a key stands twice."""

from __future__ import annotations

import json
import re
from typing import Any

_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class _TwiceError(ValueError):
    """Argument: the key."""


def check_json(data: bytes, max_depth: int) -> str:
    """What is wrong with the document: nested too deep, no JSON, or a key twice. Empty: nothing."""
    depth = 0
    for token in _STRUCTURE.finditer(data):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > max_depth:
            return f"it is nested deeper than {max_depth}"
    try:
        json.loads(data.decode(), object_pairs_hook=_once, parse_int=float)
    except _TwiceError as error:
        return f"the key {str(error)[:100]!r} stands twice in one object"
    except ValueError:  # no UTF-8, no JSON
        return "it is not JSON in UTF-8"
    return ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(name)
        found[name] = value
    return found
