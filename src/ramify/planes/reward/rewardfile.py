"""The grammar of reward files. Everything in them may be an agent's work; nothing is guessed.

`reward.json` is one object of numbers, with nested objects for further metrics and details. Where
one of the numbers is called `reward`, anything may stand beside it; without that name, nothing but
numbers and nested objects:

    {"reward": 0.5, "done": true, "metrics": {"recall": 0.9}, "details": {"failed": ["test_b"]}}

`reward.txt` is one decimal number and nothing else. Where both exist, reward.json counts; if it
names a `reward` that reward.txt contradicts, one of them was not written by the tests.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, cast

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.sandbox import MIB

MAX_REWARD_BYTES = MIB
"""A reward file larger than this is malformed."""

_MAX_DEPTH = 8
_MAX_ITEMS = 1000
_MAX_NAME = 200
_SPACE = b" \t\r\n"
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class ParsedReward(NamedTuple):
    """What a reward file says: the reward, other numbers by name, and everything else."""

    reward: float
    items: dict[str, float]
    details: dict[str, Any]


def parse_reward(
    json_bytes: bytes | None, txt_bytes: bytes | None, reward_range: tuple[float, float]
) -> ParsedReward:
    """Read the reward from the content of reward.json, or else of reward.txt.

    The reward is the number called `reward`, or the only number at the top level. Names of nested
    numbers are joined by dots. Booleans, strings, null and lists are kept as details; at the top
    level they are refused where no number is called `reward`.

    Raises:
        InvalidRewardError: `missing` (neither file), `malformed`, `range` or `tampered`.
    """
    if json_bytes is not None:
        parsed, named = _parse_json(json_bytes)
        if named and txt_bytes is not None and _parse_txt(txt_bytes) != parsed.reward:
            raise InvalidRewardError("tampered", "reward.json and reward.txt contradict each other")
    elif txt_bytes is not None:
        parsed = ParsedReward(_parse_txt(txt_bytes), {}, {})
    else:
        raise InvalidRewardError("missing", "the tests left neither reward.json nor reward.txt")
    low, high = reward_range
    if not low <= parsed.reward <= high:
        raise InvalidRewardError("range", f"reward {parsed.reward:g} is not in {low:g}..{high:g}")
    return parsed


def _parse_txt(data: bytes) -> float:
    _check_size(data, "reward.txt")
    number = data.strip(_SPACE)
    if not _DECIMAL.fullmatch(number):
        _malformed(f"reward.txt is not one decimal number: {_shown(number)}")
    return _finite("reward", float(number))


def _parse_json(data: bytes) -> tuple[ParsedReward, bool]:
    """What reward.json says, and whether it calls a number `reward`."""
    _check_size(data, "reward.json")
    _check_depth(data)
    try:
        document: object = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=lambda text: _finite("a number", float(text)),
            parse_int=_whole,
        )
    except UnicodeDecodeError:
        _malformed("reward.json is not UTF-8")
    except json.JSONDecodeError as error:
        _malformed(f"reward.json is not JSON: {error.msg} at byte {error.pos}")
    if not isinstance(document, dict):
        _malformed("reward.json is not an object")
    top = cast(dict[str, Any], document)
    items: dict[str, float] = {}
    details: dict[str, Any] = {}
    named = isinstance(top.get("reward"), float)
    for name, value in top.items():
        if not named and not isinstance(value, (float, dict)):
            _malformed(f"{_shown(name.encode())} in reward.json is not a number")
    for name, value in _leaves(top, ""):
        if name in items or name in details:
            _malformed(f"{name!r} stands twice in reward.json")
        (items if isinstance(value, float) else details)[name] = value
    if len(items) > _MAX_ITEMS:
        _malformed(f"reward.json holds more than {_MAX_ITEMS} numbers")
    name = "reward" if named else _only_number(top)
    return ParsedReward(items.pop(name), items, details), named


def _only_number(top: dict[str, Any]) -> str:
    numbers = [name for name, value in top.items() if isinstance(value, float)]
    if len(numbers) != 1:
        _malformed("reward.json has no number called `reward`")
    return numbers[0]


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            _malformed("reward.json has a name that is empty, too long or not printable")
        if name in found:
            _malformed(f"{name!r} stands twice in reward.json")
        found[name] = _kept(value)
    return found


def _kept(value: Any) -> Any:
    """A value that can be written again: a lone surrogate in a string cannot."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_kept(entry) for entry in cast(list[Any], value)]
    return value


def _whole(text: str) -> float:
    # Through float, never int: Python refuses to read an int of more than 4300 digits.
    return _finite("a number", float(text))


def _constant(text: str) -> NoReturn:
    _malformed(f"reward.json holds {text}")


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        _malformed(f"{name} is too large for a finite number")
    return value


def _check_size(data: bytes, name: str) -> None:
    if len(data) > MAX_REWARD_BYTES:
        _malformed(f"{name} is larger than {MAX_REWARD_BYTES} bytes")
    if not data.strip(_SPACE):
        _malformed(f"{name} is empty")


def _check_depth(data: bytes) -> None:
    """Bound the nesting before the parser recurses into it."""
    depth = 0
    for token in _STRUCTURE.finditer(data):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > _MAX_DEPTH:
            _malformed(f"reward.json is nested deeper than {_MAX_DEPTH}")


def _shown(data: bytes) -> str:
    return ascii(data[:60].decode(errors="replace"))


def _malformed(message: str) -> NoReturn:
    raise InvalidRewardError("malformed", message)
