"""A value in a Compose file that knows where it stands, so that every complaint names the place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.composer import ComposerError

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.planes.sandbox.docker.interpolation import interpolate

_MAX_BYTES = 1024 * 1024
_MAX_VALUES = 100_000
_MAX_DEPTH = 32
_BYTES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Node:
    """A value (text, list, map or None) and its place: a file and a path of keys in it."""

    value: Any
    file: str
    path: str = ""

    def error(self, message: str) -> ConfigError:
        """What is wrong here, to be raised."""
        return ConfigError(message, file=self.file, field=self.path or None)

    def refusal(self, why: str) -> UnsupportedError:
        """What cannot be served, to be raised."""
        return UnsupportedError(f"{self.file}: {self.path}: {why}")

    @property
    def absent(self) -> bool:
        """Nothing is given, or a variable that stands here is empty."""
        return self.value is None or self.value == ""

    @property
    def is_map(self) -> bool:
        """It holds names and values."""
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        """It holds values in order."""
        return isinstance(self.value, list)

    def entries(self) -> dict[str, Node]:
        """A map's values; nothing is an empty map."""
        if self.value is None:
            return {}
        if not self.is_map:
            raise self.error("must be a map of names to values")
        found = cast("dict[Any, Any]", self.value)
        return {str(key): self._child(value, str(key)) for key, value in found.items()}

    def items(self) -> Iterator[Node]:
        """A list's values; nothing is an empty list."""
        if self.value is None:
            return
        if not self.is_list:
            raise self.error("must be a list")
        for index, value in enumerate(cast("list[Any]", self.value)):
            yield Node(value, self.file, f"{self.path}[{index}]")

    def known(self, allowed: frozenset[str], refused: Mapping[str, str] | None = None) -> None:
        """Raise UnsupportedError for a key that is not allowed; `refused` gives reasons."""
        for key, node in self.entries().items():
            if key in allowed or key.startswith("x-"):
                continue
            raise node.refusal((refused or {}).get(key, "is not supported"))

    def text(self) -> str:
        """A scalar, as it was written."""
        if not isinstance(self.value, str):
            raise self.error("must be a single value")
        return self.value

    def words(self) -> tuple[str, ...]:
        """A command: a list, or a line that is split as a shell would."""
        if isinstance(self.value, str):
            try:
                return tuple(shlex.split(self.value))
            except ValueError as error:
                raise self.error(f"cannot be split into words: {error}") from None
        return tuple(item.text() for item in self.items())

    def texts(self) -> tuple[str, ...]:
        """A list of scalars, or one."""
        return (self.value,) if isinstance(self.value, str) else tuple(
            item.text() for item in self.items()
        )  # fmt: skip

    def pairs(self, separator: str = "=") -> dict[str, str | None]:
        """A map of scalars, or a list of `NAME=value`; a bare name has no value."""
        if self.is_list:
            split = [item.text().partition(separator) for item in self.items()]
            return {name: value if found else None for name, found, value in split}
        entries = self.entries().items()
        return {key: None if node.value is None else node.text() for key, node in entries}

    def flag(self) -> bool:
        """`true` or `false`."""
        word = self.text().lower()
        if word not in ("true", "false", "yes", "no"):
            raise self.error(f"{word!r} is neither true nor false")
        return word in ("true", "yes")

    def number(self) -> float:
        """A number that is not negative."""
        try:
            value = float(self.text())
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e12:
            raise self.error(f"{self.value!r} is no number")
        return value

    def size(self) -> int:
        """Bytes: `512m`, `1.5gb`, `1048576`."""
        match = _SIZE.fullmatch(self.text().strip())
        if match is None:
            raise self.error(f"{self.value!r} is no size such as 512m")
        return int(float(match[1]) * _BYTES[match[2].lower()])

    def seconds(self) -> float:
        """A duration: `1m30s`, `500ms`."""
        text = self.text().strip()
        parts = _DURATION.findall(text)
        if text == "0":
            return 0.0
        if not parts or "".join(a + b for a, b in parts) != text:
            raise self.error(f"{text!r} is no duration such as 1m30s")
        return sum(float(amount) * _SECONDS[unit] for amount, unit in parts)

    def _child(self, value: Any, key: str) -> Node:
        return Node(value, self.file, f"{self.path}.{key}" if self.path else key)


def read_yaml(file: Path, env: Mapping[str, str]) -> Node:
    """The content of a Compose file, its variables replaced; blocking.

    Raises: ConfigError (it cannot be read, is no YAML, or a variable in it is wrong).
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"is larger than {_MAX_BYTES} bytes", file=str(file))
    try:
        value = yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"is no YAML: {error}", file=str(file)) from error
    return Node(_Replacer(env).replaced(Node(value, str(file))), str(file))


class _Replacer:
    """Copies a document with its variables replaced; bounded, as aliases may multiply it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._left = _MAX_VALUES

    def replaced(self, node: Node, depth: int = 0) -> Any:
        """The value with its variables replaced; keys stay as they are. Raises: ConfigError."""
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise node.error("is nested too deeply, or repeated too often")
        if isinstance(node.value, str):
            try:
                return interpolate(node.value, self._env)
            except ValueError as error:
                raise node.error(str(error)) from None
        if node.is_map:
            return {key: self.replaced(item, depth + 1) for key, item in node.entries().items()}
        if node.is_list:
            return [self.replaced(item, depth + 1) for item in node.items()]
        return node.value


class _Loader(yaml.SafeLoader):
    """Scalars stay text, as Compose takes them (`yes`, `0755` and `22:22` are no surprises).

    Only null and the merge key keep their meaning. A key that comes twice is an error.
    """

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A map. Raises: ComposerError where a key is no text, or comes twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                what = "is no text" if not isinstance(key, yaml.ScalarNode) else "comes twice"
                raise ComposerError(None, None, f"a key {what}", key.start_mark)
            seen.add(key.value)
        return node
