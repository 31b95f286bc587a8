"""YAML with line numbers, read strictly: what stands there is what is meant, or it is refused.

Plain words are not guessed at: a text is the characters that stand in the file (`command: true`,
`PORT: 0755`, `version: 3.10`), a number is decimal, a truth value is `true` or `false`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ramify.contracts.errors import ConfigError

_LARGEST = 1024 * 1024
_MAX_DEPTH = 32
_MAX_EVENTS = 200_000
_MAX_VISITS = 50_000
_YAML: Any = yaml  # its stubs do not know what these two give
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG = "tag:yaml.org,2002:"
_NULL = _TAG + "null"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Value:
    """A node of a file, and the dotted name of the field that it is the value of."""

    document: Document
    field: str
    node: Node

    def error(self, message: str) -> ConfigError:
        """What is wrong here, with file and line."""
        return self.document.error(self.node.start_mark.line, self.field, message)

    @property
    def is_table(self) -> bool:
        """Whether keys and values stand here."""
        return isinstance(self.node, MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether a list stands here."""
        return isinstance(self.node, SequenceNode)

    def table(self, example: str) -> dict[str, Value]:
        """Key → value, in order. Raises ConfigError: no table, a key twice, a key that is none."""
        if not isinstance(self.node, MappingNode):
            raise self.error(f"must be a table of keys and values, such as `{example}`")
        found: dict[str, Value] = {}
        for key, value in self._pairs(self.node):
            place = Value(self.document, self.field, key)
            if not isinstance(key, ScalarNode):
                raise place.error("has a key that is not a word")
            if key.tag == _TAG + "merge":
                raise place.error("`<<` (merging) is not supported; write the keys out")
            name = key.value
            field = f"{self.field}.{name}" if self.field else name
            if name in found:
                first = found[name].node.start_mark.line + 1
                raise Value(self.document, field, key).error(
                    f"stands here a second time (first on line {first}); remove one"
                )
            found[name] = Value(self.document, field, value)
        return found

    def items(self, example: str) -> list[Value]:
        """The entries of a list. Raises ConfigError: no list."""
        if not isinstance(self.node, SequenceNode):
            raise self.error(f"must be a list, such as `{example}`")
        nodes: list[Node] = self.node.value
        for _ in nodes:
            self.document.visit(self)
        return [Value(self.document, f"{self.field}[{n}]", node) for n, node in enumerate(nodes)]

    def text(self) -> str:
        """The characters that stand there. Raises ConfigError: none, or none that can be used."""
        node = self._scalar("a text")
        if node.tag == _NULL and not node.style:
            raise self.error(
                "is empty; write a text (in quotes where it looks like something else)"
            )
        if "\0" in node.value or not _encodable(node.value):
            raise self.error("holds a character that no program can be given")
        return node.value

    def boolean(self) -> bool:
        """`true` or `false`."""
        node = self._scalar("true or false")
        if not node.style and node.value in ("true", "false"):
            return node.value == "true"
        raise self.error(f"must be true or false, not {shown(node.value)}")

    def integer(self, low: int, high: int) -> int:
        """A decimal number within bounds."""
        node = self._scalar("a number")
        if not node.style and _INTEGER.fullmatch(node.value):
            number = int(node.value)
            if low <= number <= high:
                return number
        raise self.error(f"must be a number from {low} to {high}, not {shown(node.value)}")

    def number(self) -> float | None:
        """A decimal number that is not negative; None for a text that is none."""
        node = self._scalar("a number")
        return float(node.value) if _NUMBER.fullmatch(node.value) else None

    def unknown(self, key: str, known: dict[str, str] | set[str], why: str = "") -> ConfigError:
        """The error for a key of this table that does not exist."""
        line = next(
            pair[0].start_mark.line
            for pair in self.node.value
            if isinstance(pair[0], ScalarNode) and pair[0].value == key
        )
        if not why:
            near = get_close_matches(key.replace("-", "_").lower(), sorted(known), n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            why = f"no such key; {hint}known are: {', '.join(sorted(known))}"
        field = f"{self.field}.{key}" if self.field else key
        return self.document.error(line, field if key.isprintable() else self.field, why)

    def _pairs(self, node: MappingNode) -> list[tuple[Node, Node]]:
        pairs: list[tuple[Node, Node]] = node.value
        for _ in pairs:
            self.document.visit(self)
        return pairs

    def _scalar(self, wanted: str) -> ScalarNode:
        self.document.visit(self)
        node = self.node
        if not isinstance(node, ScalarNode):
            kind = "a table" if isinstance(node, MappingNode) else "a list"
            raise self.error(f"must be {wanted}, not {kind}")
        if node.tag not in _SCALARS:
            raise self.error(f"has the tag {shown(node.tag)}; only plain values are read")
        return node


class Document:
    """One YAML file. Reading it is bounded, also where its parts refer to each other."""

    def __init__(self, data: bytes, file: str) -> None:
        self._file, self._visits = file, 0
        self._root = self._compose(data)

    def root(self) -> Value | None:
        """What stands in the file; None where that is nothing."""
        return None if self._root is None else Value(self, "", self._root)

    def error(self, line: int | None, field: str, message: str) -> ConfigError:
        """An error at a line (counted from 0)."""
        file = self._file if line is None else f"{self._file}:{line + 1}"
        return ConfigError(message, file=file, field=field or None)

    def visit(self, value: Value) -> None:
        """Count a look at a part. Raises ConfigError: too many, as when references multiply."""
        self._visits += 1
        if self._visits > _MAX_VISITS:
            raise value.error("holds too many values, counting those that aliases stand for")

    def _compose(self, data: bytes) -> Node | None:
        if len(data) > _LARGEST:
            raise self.error(None, "", f"is larger than {_LARGEST} bytes; no pipeline is")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n")
            raise self.error(line, "", "is not UTF-8 text; save it as UTF-8") from None
        try:
            self._measure(text)
            return cast("Node | None", _YAML.compose(text, Loader=_LOADER))
        except yaml.YAMLError as error:
            raise self._broken(text, error) from None
        except ConfigError:  # a ValueError too
            raise
        except (ValueError, RecursionError) as error:  # a scalar like a number that is none
            raise self.error(None, "", f"is not YAML: {error}") from None

    def _measure(self, text: str) -> None:
        """Refuse, without recursion, what composing could choke on."""
        depth = 0
        events: Iterator[Event] = _YAML.parse(text, Loader=_LOADER)
        for count, event in enumerate(events):
            if isinstance(event, CollectionStartEvent):
                depth += 1
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
            if depth > _MAX_DEPTH or count > _MAX_EVENTS:
                line: int = event.start_mark.line
                raise self.error(line, "", "is nested too deep or too long to be a pipeline")

    def _broken(self, text: str, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        position = getattr(error, "position", None)
        line = mark.line if mark is not None else None
        if line is None and isinstance(position, int):
            line = text[:position].count("\n")
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        context = getattr(error, "context", None)
        where = f" ({context})" if context else ""
        hint = "; indent with spaces" if "\\t" in repr(said) or "token" in said else ""
        return self.error(line, "", " ".join(f"is not YAML: {said}{where}{hint}".split()))


def shown(text: str) -> str:
    """A text from a file as it may stand in an error: short, in quotes, nothing to control with."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from an escape
        return False
    return True
