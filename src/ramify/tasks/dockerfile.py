"""Hints from a Dockerfile: the image's work directory, and what of its context is copied."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from typing import cast

_HEREDOC = re.compile(r"<<-?\s*(?P<quote>[\"']?)(?P<word>\w+)(?P=quote)")
_FROM = re.compile(
    r"^FROM\s+(?:--\S+\s+)*(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?\s*$", re.IGNORECASE
)
_COPY = re.compile(r"^(?:COPY|ADD)\s+(?P<rest>.+)$", re.IGNORECASE)
_WORKDIR = re.compile(r"^WORKDIR\s+(?P<path>.+?)\s*$", re.IGNORECASE)


def workdir_of_dockerfile(text: str) -> str | None:
    """The last WORKDIR of the final stage, also one inherited from an earlier stage of the file.

    None where the file does not say: no WORKDIR, one with a variable in it, or a relative one
    below an unknown directory. The image itself then decides.
    """
    stages: dict[str, str | None] = {}
    current: str | None = None
    name = ""
    for line in _instructions(text):
        if match := _FROM.match(line):
            current = stages.get(match["base"].lower())
            name = (match["name"] or str(len(stages))).lower()
            stages[name] = current
        elif match := _WORKDIR.match(line):
            current = _joined(current, match["path"].strip("\"'"))
            stages[name] = current
    return current


def copied_sources(text: str) -> list[str] | None:
    """The paths of its context that a Dockerfile copies, normalized, relative to the context.

    None where that cannot be told: variables, patterns, or an instruction that is not understood.
    """
    found: list[str] = []
    for line in _instructions(text):
        match = _COPY.match(line)
        if match is None:
            continue
        words = _words(match["rest"])
        flags = [word for word in words if word.startswith("--")]
        if any(flag.startswith("--from=") for flag in flags):
            continue
        sources = [word for word in words if not word.startswith("--")][:-1]
        if not sources or any(re.search(r"[$*?\[]|<<|\\", source) for source in sources):
            return None
        local = [source for source in sources if "://" not in source]
        found += [posixpath.normpath(source.lstrip("/") or ".") for source in local]
    return found


def _words(rest: str) -> list[str]:
    flags = re.match(r"(?:--\S+\s+)*", rest)
    end = flags.end() if flags else 0
    if rest[end:].startswith("["):
        try:
            listed: object = json.loads(rest[end:])
        except ValueError:
            return []
        if not isinstance(listed, list):
            return []
        return rest[:end].split() + [str(word) for word in cast("list[object]", listed)]
    try:
        return shlex.split(rest)
    except ValueError:
        return []


def _joined(current: str | None, path: str) -> str | None:
    if "$" in path:
        return None
    if path.startswith("/"):
        return posixpath.normpath(path)
    return None if current is None else posixpath.normpath(posixpath.join(current, path))


def _instructions(text: str) -> list[str]:
    """Logical lines: continuations joined, comments and the bodies of here-documents left out."""
    joined: list[str] = []
    pending = ""
    heredocs: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if heredocs:
            if line == heredocs[0]:
                heredocs.pop(0)
            continue
        if not line or line.startswith("#"):
            continue
        if line.endswith("\\"):
            pending += f"{line[:-1]} "
            continue
        whole = pending + line
        pending = ""
        joined.append(whole)
        if re.match(r"(RUN|COPY|ADD)\s", whole, re.IGNORECASE):
            heredocs = [match["word"] for match in _HEREDOC.finditer(whole)]
    if pending:
        joined.append(pending.strip())
    return joined
