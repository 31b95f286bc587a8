"""Text files of a task directory."""

from __future__ import annotations

import re
from pathlib import Path

from ramify.contracts.errors import ConfigError

_CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)", re.IGNORECASE)


def read_text(path: Path) -> str:
    """The content of a file that must exist and say something. Raises ConfigError."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError("is missing; write it", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", file=str(path)) from None
    if not text.strip():
        raise ConfigError("is empty", file=str(path))
    return text


def read_instruction(path: Path) -> str:
    """An instruction, without the lines at its head that mark benchmark data ("canary").

    They are there to find a benchmark in training data and are not for the agent (Harbor's rule).
    """
    lines = read_text(path).split("\n")
    first = 0
    while first < len(lines) and _CANARY.fullmatch(lines[first].strip()):
        first += 1
    if first:
        while first < len(lines) and not lines[first].strip():
            first += 1
    text = "\n".join(lines[first:])
    if not text.strip():
        raise ConfigError("is empty", file=str(path))
    return text
