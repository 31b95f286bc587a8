"""Says what steps did to the repository, from what they wrote over it.

A copy-on-write mount keeps everything that was written in a directory of its own (`upper`, as
overlayfs keeps it). What lies there tells writes that were undone again, changes of mode and
removals, whatever the step's exit code says. Steps may be writing at the same time and are
hostile: directories are opened one by one, without following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ramify.apps.pipeline.git import TreeEntry
from ramify.apps.pipeline.ignore import Ignores, parse_rules
from ramify.apps.pipeline.records import ViolationKind

_CACHES = parse_rules(
    b"__pycache__/\n*.pyc\n.pytest_cache/\n.mypy_cache/\n.ruff_cache/\n.hypothesis/\n.tox/\n.nox/\n"
    b".coverage\n.coverage.*\n.eslintcache\n.stylelintcache\n.nyc_output/\n.cache/\n.gradle/\n"
    b"*.tsbuildinfo\nnode_modules/\n.venv/\n.DS_Store\n"
)
"""What tools leave beside sources, whether or not the repository ignores it."""

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_REDIRECT = ("trusted.overlay.redirect", "user.overlay.redirect")
_RULES_MAX = 1 << 20
_MOST = 1000
_DEEPEST = 256


class Change(NamedTuple):
    """Something done to the repository that a step must not do."""

    path: str
    kind: ViolationKind


class Guarded(NamedTuple):
    """What a guard compares with.

    `files` are the paths that nobody may touch, `directories` everything above them, `writable`
    the directories that steps may write to as they like. `shift` is how much higher the owner and
    group of what they wrote are here than inside.
    """

    repo: Path
    upper: Path
    files: Mapping[str, TreeEntry]
    directories: frozenset[str]
    exclude: bytes = b""
    writable: tuple[str, ...] = ()
    shift: tuple[int, int] = (0, 0)


class _Level(NamedTuple):
    """A directory of the upper layer still to be looked at. `below`: the repository's own shows."""

    path: str
    below: bool
    in_git: bool


def find_changes(what: Guarded, *, lasting: bool = False) -> list[Change]:
    """Everything that was done to the repository, at most 1000 of it, by path. Blocks.

    With `lasting` only what no later action can undo is told: changes to what was there before.
    Writing to `.git/index` is told here as of kind `git`; whether it holds anything new is for
    whoever can read it.
    """
    found = list(_Walk(what, lasting=lasting).changes())
    return sorted(found)


class _Walk:
    def __init__(self, what: Guarded, *, lasting: bool) -> None:
        self._what, self._lasting = what, lasting
        self._hidden: set[str] = set()  # directories whose content in the repository is gone
        self._ignores = Ignores(self._rules, what.exclude, _CACHES)

    def changes(self) -> Iterator[Change]:
        count = 0
        pending = [_Level("", True, False)]
        while pending:
            level = pending.pop()
            for change in self._directory(level, pending):
                yield change
                count += 1
                if count >= _MOST:
                    return

    def _directory(self, level: _Level, pending: list[_Level]) -> Iterator[Change]:
        try:
            fd = _open_below(self._what.upper, level.path)
        except OSError:
            return  # it went away, or became something else, while the step goes on
        try:
            with os.scandir(fd) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                path = f"{level.path}/{name}" if level.path else name
                try:
                    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(facts.st_mode):
                    yield from self._subdirectory(level, path, name, fd, facts, pending)
                else:
                    yield from self._entry(level, path, name, facts)
        finally:
            os.close(fd)

    def _entry(
        self, level: _Level, path: str, name: str, facts: os.stat_result
    ) -> Iterator[Change]:
        gone = stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0
        if level.in_git or name == ".git":
            if not (self._lasting or (gone and not self._in_repo(path))):
                yield Change(path, "git")
        elif path in self._what.files:
            yield Change(path, "delete" if gone else self._how(path, facts))
        elif path in self._what.directories:
            yield Change(path, "delete" if gone else "replace")
        elif not gone and not self._lasting and not self._free(path, is_directory=False):
            yield Change(path, "new")

    def _subdirectory(
        self,
        level: _Level,
        path: str,
        name: str,
        parent: int,
        facts: os.stat_result,
        pending: list[_Level],
    ) -> Iterator[Change]:
        in_git = level.in_git or name == ".git"
        known = path in self._what.directories
        opaque, moved = _marks(parent, name)
        below = level.below and not opaque and self._in_repo(path)
        if path in self._what.files:
            yield Change(path, "replace")
        if opaque and level.below and known:
            yield Change(path, "replace")
        if not known and not in_git and self._free(path, is_directory=True):
            return
        if below and not in_git:
            yield from self._mode(path, facts)
        if moved and not self._lasting:
            yield Change(path, "git" if in_git else "new")
        if not below:
            self._hidden.add(path)
        if path.count("/") >= _DEEPEST:
            yield Change(path, "new")
            return
        pending.append(_Level(path, below, in_git))

    def _how(self, path: str, facts: os.stat_result) -> ViolationKind:
        """A file that was written to, or one of which only mode or owner are different."""
        try:
            before = os.lstat(self._what.repo / path)
        except OSError:
            return "write"
        same = before.st_size == facts.st_size and before.st_mtime_ns == facts.st_mtime_ns
        return "mode" if same and _access(before) != self._access(facts) else "write"

    def _mode(self, path: str, facts: os.stat_result) -> Iterator[Change]:
        try:
            before = os.lstat(self._what.repo / path)
        except OSError:
            return
        if path in self._what.directories and self._access(facts) != _access(before):
            yield Change(path, "mode")

    def _access(self, facts: os.stat_result) -> tuple[int, int, int]:
        user, group = self._what.shift
        return facts.st_mode, facts.st_uid - user, facts.st_gid - group

    def _in_repo(self, path: str) -> bool:
        return os.path.lexists(self._what.repo / path)

    def _free(self, path: str, *, is_directory: bool) -> bool:
        """Whether steps may make this: it is declared writable, ignored, or a tool's cache."""
        inside = f"{path}/"
        if any(inside.startswith(f"{place}/") for place in self._what.writable):
            return True
        return self._ignores.ignored(path, is_directory=is_directory)

    def _rules(self, place: str) -> bytes | None:
        """The `.gitignore` of a directory as the steps see it."""
        try:
            directory = _open_below(self._what.upper, place)
        except OSError:
            directory = -1
        if directory >= 0:
            try:
                return _read_rules(directory)
            except FileNotFoundError:
                pass  # not written over: the repository's own shows
            finally:
                os.close(directory)
        if self._is_hidden(place):
            return None
        try:
            directory = _open_below(self._what.repo, place)
        except OSError:
            return None
        try:
            return _read_rules(directory)
        except FileNotFoundError:
            return None
        finally:
            os.close(directory)

    def _is_hidden(self, place: str) -> bool:
        while place:
            if place in self._hidden:
                return True
            place = place.rpartition("/")[0]
        return False


def _access(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_mode, facts.st_uid, facts.st_gid


def _read_rules(directory: int) -> bytes | None:
    """None: it is there, and holds no rules. Raises: FileNotFoundError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(".gitignore", flags, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError:  # a link, a device: removed or replaced
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(_RULES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _open_below(root: Path, path: str) -> int:
    """A directory below `root`, no component of `path` being a link. Raises: OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(root, flags)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _marks(parent: int, name: str) -> tuple[bool, bool]:
    """Whether a directory hides what it lies over, and whether it stands in for another one."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except OSError:
        return False, False
    try:
        names = set(os.listxattr(fd))
        opaque = any(os.getxattr(fd, mark) == b"y" for mark in _OPAQUE if mark in names)
        return opaque, bool(names.intersection(_REDIRECT))
    except OSError:
        return False, False
    finally:
        os.close(fd)
