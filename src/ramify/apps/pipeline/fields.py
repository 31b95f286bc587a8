"""The kinds of values in `agent.yaml`: how each is read, and its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ramify.apps.pipeline.yamlnodes import Value, shown
from ramify.contracts.sandbox import MIB

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_LONGEST_SEC = 7 * 86400.0
_SIZES = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s?([A-Za-z]{0,3})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,400}")
_SHELLS = {
    "sh": ("/bin/sh", "-e", "-c"),
    "bash": ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"),
}
_LONGEST_NAME = 200
TOP = ":/"
"""What a path begins with that is relative to the whole repository, as git writes it."""
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read (raising ConfigError at its line), and the JSON Schema that it meets."""

    read: Callable[[Value], Any]
    schema: dict[str, Any]


def choice(*words: str) -> Kind:
    """One of a few words."""

    def read(value: Value) -> str:
        text = value.text()
        if text not in words:
            raise value.error(f"must be {' or '.join(words)}, not {shown(text)}")
        return text

    return Kind(read, {"enum": list(words)})


def _name(value: Value) -> str:
    text = value.text().strip()
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise value.error(f"must be one line of 1 to {_LONGEST_NAME} characters")
    return text


def _command(value: Value) -> str:
    text = value.text()
    if not text.strip():
        raise value.error("is empty; an empty command would always pass")
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        raise value.error("holds nothing but comments; it would always pass")
    return text


def _env(value: Value) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, entry in value.table("{CI: 1}").items():
        if not _VARIABLE.fullmatch(name):
            raise entry.error(f"{shown(name)} is no name of a variable (letters, digits and _)")
        found[name] = entry.text()
    return found


def _names(value: Value) -> tuple[str, ...]:
    names = [(entry, entry.text()) for entry in value.items("[NPM_TOKEN]")]
    for entry, name in names:
        if not _VARIABLE.fullmatch(name):
            raise entry.error(
                f"{shown(name)} is no name of a variable; name it, its value comes from where "
                "`ramify verify` is started"
            )
    return tuple(name for _, name in names)


def _inside(value: Value, text: str) -> str:
    path = PurePosixPath(text)
    if not text.strip() or path.is_absolute() or ".." in path.parts or text.startswith((":", "~")):
        raise value.error(
            f"must be a path within the repository, relative to it, not {shown(text)}"
        )
    return text


def _relative(value: Value) -> str:
    return str(PurePosixPath(_inside(value, value.text())))


def _rooted(value: Value) -> tuple[str, ...]:
    found: list[str] = []
    for entry in value.items("[tests/**]"):
        text = entry.text()
        below = text.removeprefix(TOP)
        _inside(entry, below)
        found.append(text)
    return tuple(found)


def _paths(value: Value) -> tuple[str, ...]:
    return tuple(_inside(entry, entry.text()) for entry in value.items("[dist/**]"))


def _directories(value: Value) -> tuple[str, ...]:
    found: list[str] = []
    for entry in value.items("[build]"):
        path = _relative(entry)
        if path == ".":
            raise entry.error("is everything; use `repo_write: discard`")
        found.append(path)
    return tuple(found)


def _shell(value: Value) -> tuple[str, ...]:
    if value.is_list:
        words = tuple(entry.text() for entry in value.items("[bash, -c]"))
        if not words or not words[0]:
            raise value.error("is empty; name a program, such as `[bash, -c]`")
        return words
    text = value.text()
    if text not in _SHELLS:
        raise value.error(f"must be sh, bash, or a list such as `[zsh, -e, -c]`, not {shown(text)}")
    return _SHELLS[text]


def _duration(value: Value) -> float:
    seconds = value.number()
    if seconds is None:
        text = value.text()
        parts = _PART.findall(text)
        if not parts or "".join(map("".join, parts)) != text:
            raise value.error(
                f"{shown(text)} is no duration; write seconds, or such as 90s, 10m, 1h30m"
            )
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST_SEC:
        raise value.error(f"must be more than 0 and at most 7 days, not {seconds:g} seconds")
    return seconds


def _size(value: Value) -> int:
    text = value.text()
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _SIZES:
        raise value.error(f"{shown(text)} is no size; write such as 512MiB or 10GiB")
    size = int(float(match[1]) * _SIZES[match[2].upper()])
    if size < 1:
        raise value.error("must be more than 0")
    return size


def _mebibytes(value: Value) -> int:
    size = _size(value)
    if size < MIB:
        raise value.error(f"{shown(value.text())} is less than 1MiB; did you forget the unit?")
    return size // MIB


def _codes(value: Value) -> tuple[int, ...]:
    return tuple(entry.integer(0, 255) for entry in value.items("[5]"))


def _cpus(value: Value) -> float:
    cpus = value.number()
    if cpus is None or not 0 < cpus <= 1024:
        raise value.error(f"must be a number of cores, such as 2 or 0.5, not {shown(value.text())}")
    return cpus


def _image(value: Value) -> str:
    text = value.text()
    if not _IMAGE.fullmatch(text):
        raise value.error(f"{shown(text)} is no name of an image; write such as python:3.12-slim")
    return text


_STRINGS = {"type": "array", "items": {"type": "string", "minLength": 1}}
_VARIABLES = {"type": "string", "pattern": f"^{_VARIABLE.pattern}$"}

NAME = Kind(_name, {"type": "string", "minLength": 1, "maxLength": _LONGEST_NAME})
COMMAND = Kind(_command, {"type": "string", "minLength": 1})
ENV = Kind(
    _env,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{_VARIABLE.pattern}$"},
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    },
)
NAMES = Kind(_names, {"type": "array", "items": _VARIABLES})
RELATIVE = Kind(_relative, {"type": "string", "minLength": 1})
PATHS = Kind(_paths, _STRINGS)
DIRECTORIES = Kind(_directories, _STRINGS)
ROOTED = Kind(_rooted, _STRINGS)
SHELL = Kind(_shell, {"anyOf": [{"enum": list(_SHELLS)}, {**_STRINGS, "minItems": 1}]})
DURATION = Kind(
    _duration,
    {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": _LONGEST_SEC},
            {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"},
        ]
    },
)
SIZE = Kind(
    _size,
    {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s?([KMGTkmgt]([Ii]?[Bb])?|[Bb])?$"},
        ]
    },
)
MEBIBYTES = Kind(_mebibytes, SIZE.schema)
CODES = Kind(_codes, {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}})
CPUS = Kind(_cpus, {"type": "number", "exclusiveMinimum": 0, "maximum": 1024})
COUNT = Kind(
    lambda value: value.integer(1, _MOST), {"type": "integer", "minimum": 1, "maximum": _MOST}
)
FLAG = Kind(Value.boolean, {"type": "boolean"})
IMAGE = Kind(_image, {"type": "string", "pattern": f"^{_IMAGE.pattern}$"})
