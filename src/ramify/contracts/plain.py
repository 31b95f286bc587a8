"""Any value as one that JSON can hold, whatever a hostile inside has put into it."""

from __future__ import annotations

from typing import Any, cast

import msgspec

DEEPEST = 64
"""How deep containers may be nested in a record."""
TOO_DEEP = "(nested too deeply)"
"""What stands for containers below the depth that is kept."""


def plain(value: Any) -> Any:
    """`value` as built-in values that `encoded` takes as they are, and never an error.

    Text that is not Unicode (half a surrogate pair) has `?` in its place, what JSON has no form for
    stands as its repr, and containers nested more than 64 deep are left out. What JSON can hold
    as it is comes out the same.
    """
    return _text_only(msgspec.to_builtins(_shallow(value, DEEPEST), enc_hook=shown))


def encoded(value: Any) -> bytes:
    """JSON of `value`; of what is plain in it where it cannot be written as it is."""
    try:
        return msgspec.json.encode(value, enc_hook=shown)
    except Exception:  # lone surrogates, mostly; depth; keys. Hostile output must not stop a record
        return msgspec.json.encode(plain(value))


def _shallow(value: Any, depth: int) -> Any:
    if isinstance(value, msgspec.Struct):
        if depth == 0:
            return TOO_DEEP
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return msgspec.structs.replace(value, **{k: _shallow(v, depth - 1) for k, v in fields})
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {k: _shallow(v, depth - 1) for k, v in items} if depth else TOO_DEEP
    if isinstance(value, list | tuple | set | frozenset):
        items = [_shallow(item, depth - 1) for item in cast("list[Any]", value)] if depth else None
        # A tuple stays one: a field that holds its default is left out of a record.
        return TOO_DEEP if items is None else tuple(items) if isinstance(value, tuple) else items
    return value


def shown(value: Any) -> str:
    """The repr of any object, also where that raises."""
    try:
        return repr(value)
    except Exception as error:  # it is somebody else's code, and the record matters more
        return f"<{type(value).__name__}, whose repr failed: {type(error).__name__}>"


def _key(key: Any) -> str | int | float:
    """A key that JSON has; it is text there."""
    return _text_only(key) if isinstance(key, str | int | float) else shown(key)


def _text_only(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        members = cast("dict[Any, Any]", value)
        return {_key(key): _text_only(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [_text_only(item) for item in cast("list[Any]", value)]
    return value
