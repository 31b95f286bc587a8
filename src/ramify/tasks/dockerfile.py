"""A hint from a Dockerfile: the work directory of the image it builds."""

from __future__ import annotations

import posixpath
import re

_HEREDOC = re.compile(r"<<-?\s*(?P<quote>[\"']?)(?P<word>\w+)(?P=quote)")
_FROM = re.compile(
    r"^FROM\s+(?:--\S+\s+)*(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?\s*$", re.IGNORECASE
)
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
