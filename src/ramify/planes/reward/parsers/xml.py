"""Answers in XML-like tags: `<reasoning>…</reasoning><answer>…</answer>`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ramify.contracts.errors import ConfigError
from ramify.planes.reward.parsers.base import Completion, Parser, agent_texts

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class XMLParser(Parser):
    """Reads fields that are marked by tags. Of a tag that stands there twice the last one counts.

    A field is a tag's name, or a tuple of names that may stand for each other, the first of which
    is used to write it. What lies between tags is text: nothing in it is unescaped, and tags of
    the same name do not nest.

    Args:
        fields: the fields, in the order in which they are to be written.
        answer_field: the field that holds the answer.
        extract: text of the answer field → answer.

    Raises:
        ConfigError: no field, a name that is none or stands there twice, or no such answer field.
    """

    def __init__(
        self,
        fields: Sequence[str | tuple[str, ...]],
        answer_field: str = "answer",
        extract: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__(extract)
        self._fields = [(field,) if isinstance(field, str) else field for field in fields]
        tags = [tag for names in self._fields for tag in names]
        if not tags or not all(self._fields):
            raise ConfigError("a parser needs fields, and each of them a name", field="fields")
        for tag in tags:
            if _NAME.fullmatch(tag) is None:
                raise ConfigError(f"{tag!r} is not the name of a tag", field="fields")
        if len(set(tags)) < len(tags):
            raise ConfigError("a name stands there twice", field="fields")
        if answer_field not in tags:
            raise ConfigError(
                f"{answer_field!r} is none of the fields ({', '.join(tags)}); name one of them",
                field="answer_field",
            )
        self._answer = next(names for names in self._fields if answer_field in names)

    def parse(self, text: str, strip: bool = True) -> SimpleNamespace:
        """The text of each tag as an attribute of that name; None where it does not appear."""
        found = {tag: _last(text, tag) for names in self._fields for tag in names}
        return SimpleNamespace(
            **{
                tag: None if span is None else text[slice(*span)].strip() if strip
                else text[slice(*span)]
                for tag, span in found.items()
            }
        )  # fmt: skip

    def parse_answer(self, completion: Completion) -> Any:
        """The answer field, under any of its names, of the last message that has it."""
        for text in reversed(agent_texts(completion)):
            spans = [span for tag in self._answer if (span := _last(text, tag)) is not None]
            if spans:
                answer = text[slice(*max(spans))].strip()
                return answer if self._extract is None else self._extract(answer)
        return None

    def format_score(self, text: str) -> float:
        """How well one message keeps to the format.

        0.4 times the share of fields that appear, 0.2 where every tag that opens also closes, 0.2
        for a message that starts with the first field and 0.2 for one that ends with the last; 0
        for a message without any field.
        """
        present = [any(_last(text, tag) for tag in names) for names in self._fields]
        if not any(present):
            return 0.0
        tags = [tag for names in self._fields for tag in names]
        closed = all(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in tags)
        starts = text.lstrip().startswith(tuple(f"<{tag}>" for tag in self._fields[0]))
        ends = text.rstrip().endswith(tuple(f"</{tag}>" for tag in self._fields[-1]))
        share = sum(present) / len(self._fields)
        return (2 * share + closed + starts + ends) / 5

    def get_fields(self) -> list[str]:
        """The fields' names for writing, in order."""
        return [names[0] for names in self._fields]

    def get_format_str(self) -> str:
        """The format as text, for a prompt."""
        lines: list[str] = []
        for names in self._fields:
            tag = names[0] if len(names) == 1 else f"[ {' | '.join(names)} ]"
            lines += [f"<{tag}>", "...", f"</{tag}>"]
        return "\n".join(lines)

    def format(self, values: Mapping[str, object]) -> str:
        """Write the fields, given under any of their names. Raises ConfigError: one is missing."""
        parts: list[str] = []
        for names in self._fields:
            given = [values[name] for name in names if name in values]
            if not given:
                raise ConfigError(f"no value for the field {names[0]!r}", field=names[0])
            parts.append(f"<{names[0]}>\n{given[0]}\n</{names[0]}>")
        return "\n".join(parts)


def _last(text: str, tag: str) -> tuple[int, int] | None:
    """Where the content of the last `<tag>…</tag>` lies."""
    spans = deque(_spans(text, tag), maxlen=1)
    return spans[0] if spans else None


def _spans(text: str, tag: str) -> Iterator[tuple[int, int]]:
    # Plain searches, each from where the last one ended: linear, unlike a regular expression,
    # which would look for the missing end once for every start.
    at = 0
    while (start := text.find(f"<{tag}>", at)) >= 0:
        start += len(tag) + 2
        end = text.find(f"</{tag}>", start)
        if end < 0:
            return
        yield start, end
        at = end + len(tag) + 3
