"""Explicit state: every key is declared, every write is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from ramify.contracts.errors import StateError


class State(Mapping[str, Any]):
    """A container whose keys and types are fixed by a schema.

    Reading works like a dict. Writing (`state["key"] = value`, `update`) refuses an unknown key
    or a value that is not of the declared type (checked by msgspec in strict mode, so a str is
    not taken for an int). There is no attribute access and no forwarding to anything else.

    Args:
        schema: key → type, e.g. `{"turn": int, "notes": list[str]}`.
        values: initial values, checked like any write.

    Raises:
        StateError: on a write that the schema refuses; the message names the key.
    """

    __slots__ = ("_schema", "_values")

    def __init__(self, schema: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> None:
        self._schema = dict(schema)
        self._values: dict[str, Any] = {}
        self.update(values or {})

    @property
    def schema(self) -> Mapping[str, Any]:
        """Declared keys and their types."""
        return dict(self._schema)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = self._check(key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def update(self, values: Mapping[str, Any]) -> None:
        """Write several keys; either all are accepted or none is written."""
        self._values.update({key: self._check(key, value) for key, value in values.items()})

    def copy(self) -> State:
        """An independent state with the same schema and (shallowly copied) values."""
        return State(self._schema, self._values)

    def _check(self, key: str, value: Any) -> Any:
        if key not in self._schema:
            near = get_close_matches(key, self._schema, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise StateError(f"unknown state key {key!r}{hint} (declared: {sorted(self._schema)})")
        try:
            msgspec.convert(value, self._schema[key], strict=True)
        except msgspec.ValidationError as error:
            raise StateError(f"state key {key!r}: {error}") from None
        return value
