"""Expect/send scripts for a shell on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramify.contracts.errors import ConfigError

_DEFAULT_TIMEOUT_SEC = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a script: a text to wait for, or one to type.

    `timeout_sec` bounds the wait; `prompt` is the index of the prompt it belongs to.
    """

    kind: Literal["expect", "send"]
    text: str
    timeout_sec: float
    prompt: int


def load_dialogue(path: Path) -> tuple[Line, ...]:
    r"""Read a script, one directive per line.

    `expect TEXT` waits until TEXT appears in what came since the last line was typed; `send TEXT`
    types TEXT and Return; `timeout SECONDS` sets how long the following `expect`s wait (30 at
    first); `prompt` begins the part that is run on the next prompt. `#` begins a comment line.

    Raises:
        ConfigError: unreadable, or a line is none of these; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8", file=str(path)) from None
    return tuple(_directives(text, path))


def _directives(text: str, path: Path) -> Iterator[Line]:
    timeout_sec, prompt = _DEFAULT_TIMEOUT_SEC, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        match word:
            case "expect" if rest:
                yield Line("expect", rest, timeout_sec, prompt)
            case "send":
                yield Line("send", rest, timeout_sec, prompt)
            case "timeout":
                timeout_sec = _seconds(rest, path, number)
            case "prompt" if not rest:
                prompt += 1
            case _:
                raise ConfigError(
                    f"{line!r} is none of: expect TEXT, send TEXT, timeout SECONDS, prompt",
                    file=str(path),
                    field=f"line {number}",
                )


def _seconds(text: str, path: Path, number: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{text!r} is no time", file=str(path), field=f"line {number}")
    return seconds
