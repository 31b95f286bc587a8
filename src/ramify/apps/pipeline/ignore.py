"""Which paths git would ignore, told without git and without the repository's own place.

The rules of a directory come through a function, so that a view that is nowhere on this machine as
a whole (a repository and what was written over it) can be asked about too. The semantics are
gitignore(5) and wildmatch, on bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_SPECIAL = re.compile(rb"[*?\[\\]")
_CLASSES = {
    b"alnum": b"0-9A-Za-z", b"alpha": b"A-Za-z", b"blank": b" \\t", b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9", b"graph": b"!-~", b"lower": b"a-z", b"print": b" -~",
    b"punct": b"!-/:-@\\[-`{-~", b"space": b" \\t-\\r", b"upper": b"A-Z", b"xdigit": b"0-9A-Fa-f",
}  # fmt: skip


class Rule(NamedTuple):
    """One line of a `.gitignore`: `match` sees a base name, or a path below the file's place."""

    match: re.Pattern[bytes]
    negated: bool
    only_directories: bool
    base_name: bool


def parse_rules(text: bytes) -> tuple[Rule, ...]:
    """The rules of a file, in order; what git cannot match with either is left out."""
    found: list[Rule] = []
    for line in text.removeprefix(_BOM).split(b"\n"):
        rule = _rule(line.removesuffix(b"\r"))
        if rule is not None:
            found.append(rule)
    return tuple(found)


class Ignores:
    """Says what is ignored in a tree.

    Args:
        read: the text of the `.gitignore` in a directory (`""`: the root), None without one.
        always: rules that come before all others, as `.git/info/exclude`.
        first: rules that win over all others.
    """

    def __init__(
        self,
        read: Callable[[str], bytes | None],
        always: bytes = b"",
        first: tuple[Rule, ...] = (),
    ) -> None:
        self._read, self._always, self._first = read, parse_rules(always), first
        self._rules: dict[str, tuple[Rule, ...]] = {}
        self._directories: dict[str, bool] = {"": False}

    def ignored(self, path: str, *, is_directory: bool) -> bool:
        """Whether a path (relative, no `/` at its ends) is ignored, itself or through a parent."""
        parent = path.rpartition("/")[0]
        if not is_directory:
            return self._directory(parent) or self._matches(path, parent, is_directory=False)
        return self._directory(path)

    def _directory(self, path: str) -> bool:
        known = self._directories.get(path)
        if known is None:
            parent = path.rpartition("/")[0]
            known = self._directory(parent) or self._matches(path, parent, is_directory=True)
            self._directories[path] = known
        return known

    def _matches(self, path: str, parent: str, *, is_directory: bool) -> bool:
        raw = os.fsencode(path)
        name = raw.rpartition(b"/")[2]
        said = _last(self._first, raw, name, is_directory=is_directory)
        if said:
            return True
        place = parent
        while True:
            below = raw if not place else raw[len(os.fsencode(place)) + 1 :]
            said = _last(self._of(place), below, name, is_directory=is_directory)
            if said is not None:
                return said
            if not place:
                break
            place = place.rpartition("/")[0]
        return _last(self._always, raw, name, is_directory=is_directory) or False

    def _of(self, place: str) -> tuple[Rule, ...]:
        rules = self._rules.get(place)
        if rules is None:
            text = self._read(place)
            rules = self._rules[place] = parse_rules(text) if text else ()
        return rules


def _last(rules: tuple[Rule, ...], path: bytes, name: bytes, *, is_directory: bool) -> bool | None:
    """What the last rule that matches says; None when none does."""
    for rule in reversed(rules):
        if rule.only_directories and not is_directory:
            continue
        if rule.match.fullmatch(name if rule.base_name else path):
            return not rule.negated
    return None


def _rule(line: bytes) -> Rule | None:
    line = _without_trailing_spaces(line)
    if not line or line.startswith(b"#"):
        return None
    negated = line.startswith(b"!")
    pattern = line[1:] if negated else line
    only_directories = pattern.endswith(b"/")
    if only_directories:
        pattern = pattern[:-1]
    base_name = b"/" not in pattern
    expression = _expression(pattern.removeprefix(b"/"), path=not base_name)
    if expression is None:
        return None
    return Rule(re.compile(expression, re.DOTALL), negated, only_directories, base_name)


def _without_trailing_spaces(line: bytes) -> bytes:
    end = at = 0
    while at < len(line):
        if line[at : at + 1] == b"\\":
            at += 2
            end = min(at, len(line))
            continue
        at += 1
        if line[at - 1 : at] != b" ":
            end = at
    return line[:end]


def _expression(pattern: bytes, *, path: bool) -> bytes | None:
    """wildmatch as a regular expression; None for what matches nothing."""
    special = _SPECIAL.search(pattern)
    start = special.start() if special else len(pattern)
    out = [re.escape(pattern[:start])]
    at = start
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"\\":
            if at + 1 == len(pattern):
                return None
            out.append(re.escape(pattern[at + 1 : at + 2]))
            at += 2
        elif char == b"?":
            out.append(b"[^/]")
            at += 1
        elif char == b"*":
            text, at = _stars(pattern, at, start, path=path)
            out.append(text)
        elif char == b"[":
            found = _class(pattern, at)
            if found is None:
                return None
            text, at = found
            out.append(text)
        else:
            out.append(re.escape(char))
            at += 1
    return b"".join(out)


def _stars(pattern: bytes, at: int, start: int, *, path: bool) -> tuple[bytes, int]:
    """`*` and `**`. git skips what is literal first, so `**` counts as leading at `start` too."""
    end = at
    while pattern[end : end + 1] == b"*":
        end += 1
    led = at == start or pattern[at - 1 : at] == b"/"
    rest = pattern[end:]
    if end - at == 1 or not path or not led or not (rest == b"" or rest.startswith((b"/", b"\\/"))):
        return b"[^/]*", end
    if rest.startswith(b"/"):
        return b"(?:.*/)?", end + 1
    return b".*", end


def _class(pattern: bytes, at: int) -> tuple[bytes, int] | None:
    """A bracket expression at `at`; None when it is not closed or malformed."""
    at += 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: list[bytes] = []
    first = True
    while True:
        char = pattern[at : at + 1]
        if not char:
            return None
        if char == b"]" and not first:
            break
        first = False
        if pattern.startswith(b"[:", at):
            end = pattern.find(b"]", at + 2)
            if end < 0:
                return None
            if pattern[end - 1 : end] == b":" and end - 1 >= at + 2:
                named = _CLASSES.get(pattern[at + 2 : end - 1])
                if named is None:
                    return None
                members.append(named)
                at = end + 1
                continue
        low, at = _member(pattern, at)
        if low is None:
            return None
        members.append(_hex(low))
        if pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"]", b""):
            high, at = _member(pattern, at + 1)
            if high is None:
                return None
            if low <= high:
                members.append(_hex(low) + b"-" + _hex(high))
    inner = b"".join(members)
    if negated:
        return b"[^/" + inner + b"]", at + 1
    return (b"(?!/)[" + inner + b"]" if inner else b"(?!)"), at + 1


def _member(pattern: bytes, at: int) -> tuple[int | None, int]:
    if pattern[at : at + 1] == b"\\":
        at += 1
    return (pattern[at], at + 1) if at < len(pattern) else (None, at)


def _hex(byte: int) -> bytes:
    return b"\\x%02x" % byte
