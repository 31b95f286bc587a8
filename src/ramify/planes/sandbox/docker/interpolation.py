"""Variables in Compose files: `$NAME`, `${NAME}` with defaults, and `.env` files."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_EXPORT = re.compile(r"export\s+")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}
_MAX_DEPTH = 16


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Replace the variables in a value as Compose does; an unset one is empty.

    `$$` is a dollar sign. `${A:-x}` is x where A is unset or empty, `${A-x}` where it is unset;
    `${A:?why}` and `${A?why}` are errors there; `${A:+x}` and `${A+x}` are x where it is not.
    What follows an operator may hold variables itself. Values are not interpolated again.

    Raises: ValueError, with a reason for a person.
    """
    return _expand(text, env, 0)


def read_env_file(text: str, env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a `.env` file, in which later lines may use earlier ones and `env`.

    Raises: ValueError, with the line and a reason.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = (
            _EXPORT.sub("", raw.strip(), count=1) if raw.lstrip()[:6] == "export" else raw.strip()
        )
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise ValueError(f"line {number}: {name!r} is no name of a variable")
        try:
            if equals:
                found[name] = _value(value.strip(), {**found, **env})
            elif name in env:
                found[name] = env[name]
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return found


def _expand(text: str, env: Mapping[str, str], depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise ValueError("variables are nested too deeply")
    out: list[str] = []
    index = 0
    while (dollar := text.find("$", index)) >= 0:
        out.append(text[index:dollar])
        index = dollar + 1
        if text.startswith("$", index):
            out.append("$")
            index += 1
        elif text.startswith("{", index):
            end = _closing(text, index)
            out.append(_braced(text[index + 1 : end], env, depth))
            index = end + 1
        elif name := _NAME.match(text, index):
            out.append(env.get(name[0], ""))
            index = name.end()
        else:
            raise ValueError(f"a lone `$` in {text!r}; write `$$` for a dollar sign")
    out.append(text[index:])
    return "".join(out)


def _closing(text: str, start: int) -> int:
    """Where the brace at `start` is closed."""
    depth, index = 0, start
    while index < len(text):
        if text.startswith("$$", index):
            index += 2
            continue
        if text.startswith("${", index):
            depth += 1
            index += 2
            continue
        if text[index] == "{" and index == start:
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    raise ValueError(f"`${{` is never closed in {text!r}")


def _braced(inner: str, env: Mapping[str, str], depth: int) -> str:
    name = _NAME.match(inner)
    if name is None:
        raise ValueError(f"`${{{inner}}}` names no variable")
    rest = inner[name.end() :]
    value = env.get(name[0])
    if not rest:
        return value or ""
    operator = _OPERATOR.match(rest)
    if operator is None:
        raise ValueError(f"`${{{inner}}}` is not understood")
    is_set = bool(value) if operator[0].startswith(":") else value is not None
    word = rest[operator.end() :]
    if operator[0].endswith("+"):
        return _expand(word, env, depth + 1) if is_set else ""
    if is_set:
        return value or ""
    if operator[0].endswith("-"):
        return _expand(word, env, depth + 1)
    why = _expand(word, env, depth + 1) or "it must be set"
    raise ValueError(f"the variable {name[0]} is missing: {why}")


def _value(text: str, env: Mapping[str, str]) -> str:
    quote = text[:1]
    if quote not in ("'", '"') or not quote:
        return interpolate(re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip(), env)
    body, end = "", 1
    while end < len(text) and text[end] != quote:
        if quote == '"' and text[end] == "\\" and end + 1 < len(text):
            body += _ESCAPES.get(text[end + 1], "\\" + text[end + 1])
            end += 2
            continue
        body += text[end]
        end += 1
    rest = text[end + 1 :].strip()
    if end >= len(text) or (rest and not rest.startswith("#")):
        raise ValueError(f"a quote is not closed, or something follows it: {text!r}")
    return body if quote == "'" else interpolate(body, env)
