"""A table of a configuration file as a record: every key is known by name, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from threading import Lock
from typing import Any, TypeVar, cast, get_args

import msgspec

from ramify.contracts.errors import ConfigError

R = TypeVar("R", bound=msgspec.Struct)

_first_meeting = Lock()
_LOCATION = re.compile(r"^(?P<message>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


def table_record(struct: type[R], table: Mapping[str, Any], file: str) -> R:
    """`table` as a record of the kind `struct`; `file` is named in errors.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a key that is missing, a wrong
            type or a value out of range. Names file and field.
    """
    _refuse_unknown(struct, table, "", file)
    with _first_meeting:
        _work_out(struct)
    try:
        return msgspec.convert(table, struct, strict=True)
    except msgspec.ValidationError as error:
        message, field = _split_location(str(error))
        raise ConfigError(message, file=file, field=field) from None


@cache
def _work_out(struct: type[msgspec.Struct]) -> None:
    """Makes msgspec work out what `struct` is, which it does when it first meets one.

    Two threads that meet it at once end the process: one reads what the other has half made.
    """
    msgspec.json.Decoder(struct)


def _refuse_unknown(struct: type[msgspec.Struct], table: Any, prefix: str, file: str) -> None:
    known = _tables_below(struct)
    for key, value in _table(table).items():
        if key not in known:
            raise ConfigError(_unknown_key(key, known), file=file, field=f"{prefix}{key}")
        for inner in known[key]:
            for item in _list(value) or [value]:
                _refuse_unknown(inner, item, f"{prefix}{key}.", file)


@cache
def _tables_below(struct: type[msgspec.Struct]) -> Mapping[str, list[type[msgspec.Struct]]]:
    """Key → kinds of table that may stand there. Kept, as finding out is slow."""
    return {field.encode_name: _structs_of(field.type) for field in msgspec.structs.fields(struct)}


def _table(value: Any) -> dict[str, Any]:
    """`value` itself where it is a table (TOML keys are strings), else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    """`value` itself where it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def _structs_of(kind: Any) -> list[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for part in get_args(kind) for struct in _structs_of(part)]


def _unknown_key(key: str, known: Iterable[str]) -> str:
    """One line about an unknown key, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(key, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names)}"
    return f"unknown key; {hint}"


def _split_location(error: str) -> tuple[str, str | None]:
    """Message and dotted field of one of msgspec's validation errors."""
    match = _LOCATION.match(error)
    if match is None:
        return error, None
    message = match["message"]
    missing = re.fullmatch(r"Object missing required field `(\w+)`", message)
    path = match["path"].removeprefix("$").lstrip(".")
    if missing:
        return "is required", ".".join(part for part in (path, missing[1]) if part)
    return message[:1].lower() + message[1:], path.replace("[...]", "") or None
