"""Answers in JSON, among whatever else a model says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.planes.reward.parsers.base import Parser

MAX_DEPTH = 64
"""Deeper nesting is no answer."""

MAX_WORK = 16
"""How often each character may be looked at, at most; what needs more is no answer."""

_FENCE = re.compile(r"^[ \t]{0,3}```[ \t]*(\w*)[ \t]*\r?$", re.MULTILINE)
_BRACKET = re.compile(r"[\[{]")
_MAX_DIGITS = 4000
_DEEP = 1000
_SURELY_TOO_DEEP = 200


class JSONParser(Parser):
    r"""Reads the last JSON object or array of a text, with prose or code fences around it.

    In this order: a text that is JSON as a whole; the last fenced block that is; the last balanced
    object or array anywhere that is not within another. It has to be strict JSON: no comments, no
    trailing commas, no NaN, no half of a surrogate pair. Of a name that stands there twice the last
    value counts. Where there is a schema, only what fits it counts.

    Args:
        schema: a type as msgspec knows it (Struct, dataclass, TypedDict, `list[int]`, …): the
            answer is of that type.

    Raises:
        ConfigError: msgspec cannot decode such a type.
    """

    def __init__(self, schema: Any = None) -> None:
        super().__init__()
        self._schema = schema
        if schema is not None:
            try:
                msgspec.json.Decoder(schema)  # works the type out, here and not in some thread
            except TypeError as error:
                raise ConfigError(
                    f"no schema can be made of it: {error}", field="schema"
                ) from error

    def parse(self, text: str) -> Any:
        """The last value that fits; None without one."""
        if (whole := self._fitting(_whole(text))) is not None:
            return whole
        for block in reversed(_fenced(text)):
            if (value := self._fitting(_whole(block))) is not None:
                return value
        last = None
        for found, _ in scan(text):
            if found is None:
                return None
            if (value := self._fitting(found[0])) is not None:
                last = value
        return last

    def _fitting(self, value: Any) -> Any:
        if value is None or self._schema is None:
            return value
        try:
            return msgspec.convert(value, self._schema)
        except (msgspec.ValidationError, RecursionError):
            return None


def scan(text: str) -> Iterator[tuple[tuple[Any] | None, int]]:
    """Each outermost object and array, in order: `((value,), work so far)`.

    Work counts the characters that were looked at. Where it would exceed `MAX_WORK` times the
    text, the scan gives up and ends with `(None, work)`: hostile text can make every bracket a
    start that fails at the far end.
    """
    at, skip, work = 0, 0, len(text)
    limit = MAX_WORK * len(text) + _DEEP
    for match in _BRACKET.finditer(text):
        start = match.start()
        if skip or start < at:
            skip = max(0, skip - 1)
            continue
        try:
            value, end, cost = _decode(text, start)
        except RecursionError:
            # Python went hundreds of levels down, so what starts soon after is too deep as well.
            value, end, cost, skip = None, None, _DEEP, _SURELY_TOO_DEEP
        work += cost
        if work > limit:
            yield None, work
            return
        at = start + 1 if end is None else end
        if value is not None:
            yield (value,), work


def _decode(text: str, start: int) -> tuple[Any, int | None, int]:
    """(value or None, where it ends if it is balanced, characters looked at).

    Raises: RecursionError (too deep for Python).
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        # An unterminated string is reported where it starts, but was read to the end.
        far = len(text) if error.msg.startswith("Unterminated") else error.pos
        return None, None, far - start + 1
    except _NotJSONError:
        return None, None, len(text) - start
    return (value if _kept(value) else None), end, end - start


def _whole(text: str) -> Any:
    stripped = text.strip()
    if stripped[:1] not in ("{", "["):
        return None
    try:
        value, end, _ = _decode(stripped, 0)
    except RecursionError:
        return None
    return value if end == len(stripped) else None


def _fenced(text: str) -> list[str]:
    """The contents of code blocks, in order; the last one may lack its end."""
    blocks: list[str] = []
    opened: int | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence.end()
        elif not fence[1]:
            blocks.append(text[opened : fence.start()])
            opened = None
    return blocks if opened is None else [*blocks, text[opened:]]


def _kept(value: Any) -> bool:
    """Whether a value can be handled: not too deep, and of text that can be written again."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                table = cast(dict[str, Any], entry)
                inner += [*table, *table.values()]
            elif isinstance(entry, list):
                inner += cast(list[Any], entry)
            elif isinstance(entry, str) and not _is_text(entry):
                return False
        if not inner:
            return True
        level = inner
    return False


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, written as an escape
        return False
    return True


class _NotJSONError(ValueError):
    """A number that JSON does not have, or that is too large for one."""


def _constant(text: str) -> NoReturn:
    raise _NotJSONError(text)


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _NotJSONError(text[:40])
    return number


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:  # Python refuses to read longer ones, and takes quadratic time
        raise _NotJSONError(text[:40])
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_int)
