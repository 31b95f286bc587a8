"""JSON objects from those we ask for a verdict: read without any tolerance."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, cast

_MAX_CHARS = 256 * 1024


class StrictJSONError(ValueError):
    """A text is not one well-formed JSON object. The message never quotes the text."""


def strict_object(text: str) -> dict[str, Any]:
    """The one JSON object that `text` consists of.

    Raises: StrictJSONError (no object, anything beside it, a name that stands twice, a number that
    is not finite, or too much of it).
    """
    if len(text) > _MAX_CHARS:
        raise StrictJSONError("it was far too long")
    try:
        found: object = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite
        )
    except StrictJSONError:
        raise
    except (ValueError, RecursionError):
        # Also a number of thousands of digits, and thousands of brackets.
        raise StrictJSONError("it was not one JSON object alone") from None
    if not isinstance(found, dict):
        raise StrictJSONError("it was not a JSON object")
    return cast("dict[str, Any]", found)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StrictJSONError("a name stood twice in an object")
    return found


def _constant(_: str) -> NoReturn:
    raise StrictJSONError("a number was not finite")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJSONError("a number was not finite")
    return number
