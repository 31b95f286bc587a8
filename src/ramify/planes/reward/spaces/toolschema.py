"""Whether a tool's arguments are what its JSON Schema says.

The part of JSON Schema that tools are described by; other keywords are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

_MAX_DEPTH = 64


def mismatch(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Where and how a value is not what a schema says; None where it is."""
    return _mismatch(value, schema, schema, "", 0)


def _mismatch(value: Any, schema: Any, top: Mapping[str, Any], at: str, depth: int) -> str | None:
    if depth > _MAX_DEPTH:
        return f"{at or 'it'} is nested too deep"
    if schema is False:
        return f"{at or 'it'} is not allowed"
    if not isinstance(schema, Mapping):
        return None
    table = cast("Mapping[str, Any]", schema)
    if isinstance(reference := table.get("$ref"), str):
        return _mismatch(value, _found(reference, top), top, at, depth + 1)
    return _plain(value, table, at) or _whole(value, table, top, at, depth)


def _plain(value: Any, schema: Mapping[str, Any], at: str) -> str | None:
    """What concerns the value itself."""
    kinds = schema.get("type")
    if kinds is not None:
        named = cast("list[str]", kinds) if isinstance(kinds, list) else [str(kinds)]
        if not any(_is(value, kind) for kind in named):
            return f"{at or 'it'} is no {' or '.join(named)}"
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        return f"{at or 'it'} is none of the values allowed"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{at or 'it'} is not the value allowed"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            return f"{at or 'it'} is too short or too long"
        if "pattern" in schema and re.search(schema["pattern"], value) is None:
            return f"{at or 'it'} does not match the pattern"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = schema.get("minimum", -math.inf) <= value > schema.get("exclusiveMinimum", -math.inf)
        high = schema.get("maximum", math.inf) >= value < schema.get("exclusiveMaximum", math.inf)
        if not (low and high):
            return f"{at or 'it'} is out of range"
    return None


def _whole(
    value: Any, schema: Mapping[str, Any], top: Mapping[str, Any], at: str, depth: int
) -> str | None:
    """What concerns the parts of the value, and alternatives."""
    for each in schema.get("allOf", ()):
        if (wrong := _mismatch(value, each, top, at, depth + 1)) is not None:
            return wrong
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if options and all(_mismatch(value, each, top, at, depth + 1) for each in options):
            return f"{at or 'it'} fits none of the alternatives"
    if isinstance(value, list):
        return _items(cast("list[Any]", value), schema, top, at, depth)
    if isinstance(value, dict):
        return _properties(cast("dict[str, Any]", value), schema, top, at, depth)
    return None


def _items(
    value: list[Any], schema: Mapping[str, Any], top: Mapping[str, Any], at: str, depth: int
) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return f"{at or 'it'} has too few or too many entries"
    for index, entry in enumerate(value):
        wrong = _mismatch(entry, schema.get("items", True), top, f"{at}[{index}]", depth + 1)
        if wrong is not None:
            return wrong
    return None


def _properties(
    value: dict[str, Any], schema: Mapping[str, Any], top: Mapping[str, Any], at: str, depth: int
) -> str | None:
    known: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{name} is missing"
    for name, entry in value.items():
        inner = known.get(name, schema.get("additionalProperties", True))
        if inner is False:
            return f"there is no argument {name}"
        wrong = _mismatch(entry, inner, top, f"{at}.{name}" if at else name, depth + 1)
        if wrong is not None:
            return wrong
    return None


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return True


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _found(reference: str, top: Mapping[str, Any]) -> Any:
    """What a reference within the schema leads to; everything is allowed where it leads nowhere."""
    at: Any = top
    names = reference.removeprefix("#").strip("/")
    for name in names.split("/") if names else ():
        at = cast("Mapping[str, Any]", at).get(name) if isinstance(at, Mapping) else None
    return True if at is None else at
