"""YAML of foreign task files: plain data only, bounded, with errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from ramify.contracts.errors import ConfigError
from ramify.tasks.texts import read_text

_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 100_000
_MAX_DEPTH = 64


def load_yaml(path: Path) -> dict[str, Any]:
    """The table that a YAML file holds.

    Raises:
        ConfigError: not there, not YAML, not a table, or too large (also by its own references).
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, file: str) -> dict[str, Any]:
    """The table that a YAML text holds; `file` is named in errors, as of `load_yaml`."""
    value = parse_yaml_value(text, file)
    if not isinstance(value, dict):
        raise ConfigError("is not a table of keys and values", file=file)
    return cast("dict[str, Any]", value)


def parse_yaml_value(text: str, file: str) -> Any:
    """Whatever a YAML text holds, as tables with text keys, lists, texts, numbers and None."""
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"is larger than {_MAX_CHARACTERS} characters", file=file)
    try:
        loaded: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {_one_line(error)}", file=file) from None
    except (ValueError, OverflowError, RecursionError, TypeError, AttributeError) as error:
        # A scalar that looks like a date or number but is none, or too deep for the parser.
        raise ConfigError(f"is not YAML: {error}", file=file) from None
    return _Plain(file).value(loaded, 0)


class _Plain:
    """Copies loaded YAML, so that what refers to itself ends."""

    def __init__(self, file: str) -> None:
        self._file, self._seen = file, 0

    def value(self, given: object, depth: int) -> Any:
        self._seen += 1
        if self._seen > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ConfigError("holds too many values, or one within itself", file=self._file)
        if isinstance(given, dict):
            table = cast("dict[object, object]", given)
            return {self._key(key): self.value(value, depth + 1) for key, value in table.items()}
        if isinstance(given, list):
            return [self.value(value, depth + 1) for value in cast("list[object]", given)]
        if given is None or isinstance(given, str | bool | int | float):
            return given
        return str(given)

    def _key(self, key: object) -> str:
        if isinstance(key, str | int | float | bool) or key is None:
            return str(key)
        raise ConfigError(f"has a key that is not text: {key!r}", file=self._file)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}" if isinstance(mark, yaml.Mark) else ""
    said = getattr(error, "problem", None) or str(error)
    return " ".join(f"{said}{where}".split())
