"""Tools: a plain function becomes something a policy can call.

The JSON schema comes from the function's signature and docstring; arguments are validated
against the same types; parameters that are not the policy's to fill are injected.

    async def bash(command: str, box: Box) -> str: ...

    tool = Tool.of(bash, {Box: "box"})
    await tool.run('{"command": "ls"}', {"box": box})
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec

from ramify.contracts.calls import Call, resolve
from ramify.contracts.errors import ConfigError
from ramify.contracts.messages import ToolSpec


class ToolError(Exception):
    """A tool's answer that something did not work: it goes to the policy, and is counted."""


class Runnable(Protocol):
    """What a policy can call."""

    @property
    def spec(self) -> ToolSpec:
        """As the policy sees it."""
        ...

    @property
    def safe(self) -> bool:
        """Whether calls change nothing, so that they may run side by side."""
        ...

    async def run(self, arguments: str, values: Mapping[str, Any]) -> str:
        """Answer a call. Raises ToolError."""
        ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a policy can call.

    Attributes:
        spec: as the policy sees it.
        call: the function with its arguments resolved.
        arguments: a record type of the policy's arguments.
        safe: calls change nothing, so that they may run side by side.
    """

    spec: ToolSpec
    call: Call
    arguments: type[msgspec.Struct]
    safe: bool = False

    @staticmethod
    def of(
        func: Callable[..., Any],
        injected: Mapping[type, str] | None = None,
        *,
        safe: bool = False,
    ) -> Tool:
        """Make a tool of a function.

        Its docstring's text is the description; an `Args:` section describes parameters.

        Args:
            func: sync or async, with annotated parameters; what it returns is the answer.
            injected: type → name: parameters annotated with such a type are filled from the
                values given to `run`, and the policy does not see them.
            safe: it changes nothing.

        Raises:
            ConfigError: a parameter without a type that JSON has, or `*args`, `**kwargs`.
        """
        name = getattr(func, "__name__", type(func).__name__)
        description, explained = _documented(inspect.getdoc(func) or "")
        types = dict(injected or {})
        hints = typing.get_type_hints(func, include_extras=True)
        fields: list[Any] = []
        for parameter in inspect.signature(func).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ConfigError(f"tool {name}() takes {parameter}, which no schema can say")
            hint = hints.get(parameter.name)
            if isinstance(hint, type) and issubclass(hint, tuple(types)):
                continue
            if hint is None:
                raise ConfigError(f"tool {name}(): parameter {parameter.name!r} has no type")
            if about := explained.get(parameter.name):
                hint = Annotated[hint, msgspec.Meta(description=about)]
            if parameter.default is parameter.empty:
                fields.append((parameter.name, hint))
            else:
                fields.append((parameter.name, hint, parameter.default))
        names = {field[0] for field in fields}
        call = resolve(func, names | set(types.values()), types)
        try:
            arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
            schema = _schema(arguments)
        except TypeError as error:
            raise ConfigError(f"tool {name}(): {error}") from None
        return Tool(ToolSpec(name, description, schema), call, arguments, safe)

    async def run(self, arguments: str, values: Mapping[str, Any]) -> str:
        """Validate the policy's arguments (JSON text), inject `values`, and call.

        Raises:
            ToolError: the arguments are not what the schema says, or the tool's own.
        """
        try:
            given = msgspec.json.decode(arguments.strip() or "{}", type=self.arguments)
        except (msgspec.DecodeError, UnicodeError) as error:
            # DecodeError also covers a value of the wrong type, whose text names the field.
            raise ToolError(f"invalid arguments for {self.spec.name}: {error}") from None
        filled = {name: getattr(given, name) for name in self.arguments.__struct_fields__}
        return str(await self.call({**filled, **values}))


def _schema(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON schema of a record as one object, as endpoints want it."""
    (top,), others = msgspec.json.schema_components((arguments,), ref_template="#/$defs/{name}")
    schema = others.pop(top["$ref"].rpartition("/")[2])
    schema.pop("title", None)
    schema.setdefault("required", [])
    return {**schema, "$defs": others} if others else schema


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Description, and what is said of each parameter, of a docstring."""
    head, _, rest = text.partition("\nArgs:\n")
    explained: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line[0].isspace():
            break  # the next section
        if match := re.match(r"\s{1,4}(\w+):\s*(.*)", line):
            name = match[1]
            explained[name] = match[2]
        elif name and line.strip():
            explained[name] += f" {line.strip()}"
    return re.split(r"\n(?:Returns|Raises):\n", head)[0].strip(), explained


def clipped(text: str, limit: int, dropped: int = 0) -> str:
    """`text` of at most about `limit` characters: its head, a note, its tail.

    `dropped` is how much was already left out of its middle.
    """
    if len(text) <= limit and not dropped:
        return text
    half = limit // 2
    tail = text[-half:] if half else ""
    cut = max(0, len(text) - 2 * half) + dropped
    if len(text) <= limit:
        half, tail = len(text) // 2, text[len(text) // 2 :]
        cut = dropped
    return f"{text[:half]}\n[... {cut} characters left out ...]\n{tail}"
