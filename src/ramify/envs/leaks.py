"""What gives a solution or hidden tests away: their distinctive lines, wherever those lie.

Names mean nothing here. A text is found again by its content: by enough of the lines that only it
has, or, where it has none, by being the same byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramify.contracts.task import Task, TaskPackage

Texts = Mapping[str, bytes]
"""Path below the work directory → content."""

_MAX_TEXT = 256 * 1024
_MAX_FILES = 200
_MAX_WORK = 40
_LEAST_LINE, _LEAST_LETTERS, _LEAST_ALONE, _LEAST_COPY = 12, 8, 20, 24
_MANY_LINES = 20
_COMMONPLACE = 25
_CODE = {
    ".bash", ".c", ".cc", ".cpp", ".cs", ".go", ".h", ".java", ".js", ".jsx", ".kt", ".lua", ".mjs",
    ".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx",
}  # fmt: skip
_MADE = {
    "__pycache__", "node_modules", "target", "build", "dist", "venv", "site-packages",
}  # fmt: skip
"""Directories of what tools made or fetched: it says nothing of who solved the task."""
_BOILERPLATE = re.compile(
    r"""(\#|//|/\*|\*|--\s|;|<!--|"{3}|'{3})         # comments: licences, mostly
    |(import|from|use|using|package|require|include|export|source|set|cd|exit|mkdir|module)\b
    |(const|let|var)\s.*\brequire\(
    |(def\s+main|if\s+__name__|unittest\.main|sys\.exit|apt-get|apt|pip|npm|diff\s+--git|index\s)
    |(@@|\+\+|--)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A text that should not be in the agent's sandbox.

    Attributes:
        kind: whose it is.
        name: which of them.
        lines: those that only it has, as `bare` makes them.
        copy: the whole of it, where a copy would say something.
    """

    kind: Literal["solution", "tests"]
    name: str
    lines: frozenset[str]
    copy: bytes = b""

    def given_away(self, found: Collection[str]) -> int:
        """How many of its lines are among these, if they are enough to give it away; else 0."""
        here = self.lines.intersection(found)
        least = len(self.lines) if len(self.lines) < 3 else (len(self.lines) + 1) // 2
        enough = len(here) >= min(least, _MANY_LINES) and sum(map(len, here)) >= _LEAST_ALONE
        return len(here) if here and enough else 0


def bare(line: str) -> str:
    """A line without what a patch or another indentation adds to it."""
    return line.lstrip(" \t+").rstrip(" \t\r\n")


def documents(task: Task, before: Texts, after: Texts) -> list[Document]:
    """What must not lie in the sandbox of a task when its agent comes.

    That is the text of its solution and of its tests, and what the solution made of the work
    directory. What the agent is told, and what stood in the files that the solution changed, gives
    nothing away. Nor does what lies openly in the work directory, of the tests and of what the
    solution made: that may be sorted, moved and put together of what was there. Blocks.

    Args:
        task: with its package.
        before, after: the work directory as the agent finds it, and as the solution leaves it.
    """
    package = task.package
    if package is None:
        return []
    changed = {name: data for name, data in after.items() if before.get(name) != data}
    told = _lines(task.instruction.encode())
    known = told.union(*(_lines(before[name]) for name in changed if name in before))
    openly = told.union(*(_lines(data) for data in before.values()))
    found = [
        Document("solution", name, frozenset(_lines(data) - known))
        for name, data in _solutions(package)
    ]
    for name, data in sorted(changed.items())[:_MAX_WORK]:
        if any(part in _MADE or part.startswith(".") for part in Path(name).parts):
            continue
        copy = data if len(data) >= _LEAST_COPY and data not in before.values() else b""
        found.append(Document("solution", name, frozenset(_lines(data) - openly), copy))
    for name, data in _tests(package):
        found.append(Document("tests", name, frozenset(_lines(data) - openly)))
    return [document for document in found if document.lines or document.copy]


def copies(wanted: Iterable[Document]) -> dict[str, Document]:
    """Digest → the document of which a file or git object with it is a copy, of those whose lines
    are too few to give them away.

    Of a file it is the SHA-256, of a git object its name in a repository of either format.
    """
    found: dict[str, Document] = {}
    for document in wanted:
        if document.copy and not document.given_away(document.lines):
            blob = b"blob %d\0%s" % (len(document.copy), document.copy)
            found[hashlib.sha256(document.copy).hexdigest()] = document
            found[hashlib.sha1(blob, usedforsecurity=False).hexdigest()] = document
            found[hashlib.sha256(blob).hexdigest()] = document
    return found


def found_in(
    wanted: Collection[Document], places: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Place → what is given away there, in words. `places`: place → lines that were found in it.

    A line that stands in many places is nobody's in particular.
    """
    counted = Counter(line for lines in places.values() for line in set(lines))
    common = {line for line, count in counted.items() if count > _COMMONPLACE}
    found: dict[str, list[str]] = {}
    for place, lines in sorted(places.items()):
        for document in wanted:
            if count := document.given_away(set(lines) - common):
                said = f"{count} of {len(document.lines)} distinctive lines of the {document.kind}"
                found.setdefault(place, []).append(f"{said} ({document.name})")
    return found


def _solutions(package: TaskPackage) -> list[tuple[str, bytes]]:
    solutions = [step.solution for step in package.steps] or [package.solution]
    found: list[tuple[str, bytes]] = []
    for solution in solutions:
        if solution is not None and solution.script is not None:
            found.append(("solve.sh", solution.script.encode()))
        elif solution is not None:
            found += _files(Path(package.path), solution.path)
    return found


def _tests(package: TaskPackage) -> list[tuple[str, bytes]]:
    settings = [step.verifier for step in package.steps] or [package.verifier]
    names = dict.fromkeys(name for one in settings for name in (one.tests, *one.more_tests) if name)
    found = [file for name in names for file in _files(Path(package.path), name)]
    return [(name, data) for name, data in found if Path(name).suffix.lower() in _CODE]


def _files(root: Path, name: str) -> list[tuple[str, bytes]]:
    """The files of a part of a package that are small enough to be written by somebody."""
    place = root / name  # what a world brings lies elsewhere, and its name is absolute
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    small = [path for path in paths if path.stat().st_size <= _MAX_TEXT][:_MAX_FILES]
    return [(str(Path(place.name, path.relative_to(place))), path.read_bytes()) for path in small]


def _lines(data: bytes) -> set[str]:
    """The distinctive lines of a text; none of what is no text, or a large one."""
    if len(data) > _MAX_TEXT or b"\0" in data:
        return set()
    try:
        lines = {bare(line) for line in data.decode().split("\n")}
    except UnicodeDecodeError:
        return set()
    return {line for line in lines if _distinctive(line)}


def _distinctive(line: str) -> bool:
    letters = sum(character.isalnum() for character in line)
    return (
        len(line) >= _LEAST_LINE
        and letters >= _LEAST_LETTERS
        and not _BOILERPLATE.match(line)
        and "\t" not in line
    )
