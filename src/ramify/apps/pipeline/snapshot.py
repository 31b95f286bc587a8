"""What a repository holds, as one value: its files and their content, before and after a run.

Files are those that git tracks and those it does not ignore. What is ignored, and `.git`, belong
to nobody's candidate: editors and tools write there all the time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ramify.apps.pipeline.git import GITLINK, Git, TreeEntry, find_git, head_of
from ramify.apps.pipeline.ignore import Ignores
from ramify.apps.pipeline.lfs import is_content, pointers_of
from ramify.contracts.errors import ConfigError

_CHUNK = 1 << 20
_MOST_FILES = 1_000_000
_RULES_MAX = 1 << 20


class Stamp(NamedTuple):
    """What `lstat` says of a file. Nothing changes a file and leaves all of this as it was."""

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one moment.

    Attributes:
        files: path → mode (as git writes it) and content id, of everything but ignored files. What
            Git LFS keeps outside has the id of its pointer, as in a commit.
        stamps: path → what `lstat` said.
        commit: what HEAD names; empty without git or before the first commit.
        tree: id of the git tree of `files`; `sha256:...` without git.
        base: path → the same, of HEAD's own tree.
        staged: path → the same, of the index.
        git: how to read more of it, None without git.
        exclude: the rules of `.git/info/exclude`.
        directories: everything above the files.
        outside: path → what `files` would say of it, of what Git LFS keeps outside.
    """

    files: Mapping[str, TreeEntry]
    stamps: Mapping[str, Stamp]
    commit: str
    tree: str
    base: Mapping[str, TreeEntry]
    staged: Mapping[str, TreeEntry]
    git: Git | None
    exclude: bytes = b""
    directories: frozenset[str] = field(default_factory=frozenset[str])
    outside: Mapping[str, TreeEntry] = field(default_factory=dict[str, TreeEntry])

    @property
    def dirty(self) -> bool:
        """Whether the files are not exactly the commit's."""
        return bool(self.commit) and dict(self.files) != dict(self.base)

    @property
    def patch_sha256(self) -> str:
        """Identifies the difference to the commit: the sorted lines of old and new mode and id."""
        if not self.dirty:
            return ""
        hasher = hashlib.sha256()
        for path in sorted(set(self.files) | set(self.base)):
            old, new = self.base.get(path), self.files.get(path)
            if old != new:
                line = f"{_shown(old)} {_shown(new)}\0".encode() + os.fsencode(path)
                hasher.update(line + b"\n")
        return hasher.hexdigest()


def with_files(snapshot: Snapshot, changed: Mapping[str, TreeEntry | None]) -> Snapshot:
    """The snapshot with some files as given; None: not there."""
    files = {path: entry for path, entry in snapshot.files.items() if path not in changed}
    files |= {path: entry for path, entry in changed.items() if entry is not None}
    return replace(snapshot, files=files, directories=_directories(files))


async def take_snapshot(repo: Path, shadow: Path | None) -> Snapshot:
    """Read a repository. `shadow` is a directory to be made, needed as long as the result.

    Without one its `.git` is not read: then it is a tree like any other.

    Raises: ConfigError (git refuses it, or a file cannot be read).
    """
    dirs = find_git(repo) if shadow is not None else None
    git = Git(repo, dirs, shadow) if shadow is not None and dirs is not None else None
    commit, root, base, staged = "", "", dict[str, TreeEntry](), dict[str, TreeEntry]()
    if git is not None:
        commit = await git.commit("HEAD") or ""
        staged = await git.index()
        if commit:
            root, base = await git.tree(commit)
    tracked = {**base, **staged}
    exclude = git.exclude if git is not None else b""
    stamps = await asyncio.to_thread(_walk, repo, frozenset(tracked), exclude)
    files = await _contents(repo, stamps, git)
    outside = await _kept_outside(repo, git, files, tracked) if git is not None else {}
    files |= {path: TreeEntry(e.mode, tracked[path].oid) for path, e in outside.items()}
    for path, entry in tracked.items():
        if entry.mode == GITLINK:
            at = head_of(repo / path)
            if at is not None or (repo / path).is_dir():
                files = {p: e for p, e in files.items() if not p.startswith(f"{path}/")}
                files[path] = TreeEntry(GITLINK, at or entry.oid)
    if root and files == base:
        tree = root
    else:
        tree = await asyncio.to_thread(git.tree_oid if git else _plain_tree, files)
    directories = _directories(stamps)
    return Snapshot(files, stamps, commit, tree, base, staged, git, exclude, directories, outside)


async def _kept_outside(
    repo: Path, git: Git, files: Mapping[str, TreeEntry], tracked: Mapping[str, TreeEntry]
) -> dict[str, TreeEntry]:
    """Those files that are the content of what is tracked as a pointer."""
    pointers = await pointers_of(git, files, tracked)

    def same() -> dict[str, TreeEntry]:
        hashes = _hashes(repo, list(pointers))
        return {
            path: files[path]
            for path, pointer in pointers.items()
            if is_content(repo / path, pointer, hashes[path])
        }

    try:
        return await asyncio.to_thread(same)
    except OSError as error:
        raise _unreadable(repo, error) from error


async def changed_since(repo: Path, before: Snapshot) -> list[str]:
    """The paths whose content, mode or existence is another than in the snapshot, sorted.

    Raises: ConfigError (a file cannot be read any more).
    """
    tracked = frozenset(before.stamps)
    now = await asyncio.to_thread(_walk, repo, tracked, before.exclude)
    suspects = {path for path, stamp in now.items() if before.stamps.get(path) != stamp}
    moved = {path for path in before.stamps if path not in now}
    moved |= {path for path in suspects if path not in before.stamps}
    again = await _contents(repo, {p: now[p] for p in suspects - moved}, before.git)
    moved |= {
        path
        for path, entry in again.items()
        if before.outside.get(path, before.files.get(path, entry)) != entry
    }
    return sorted(moved)


async def _contents(
    repo: Path, stamps: Mapping[str, Stamp], git: Git | None
) -> dict[str, TreeEntry]:
    regular = [path for path, stamp in stamps.items() if stat.S_ISREG(stamp.mode)]
    try:
        if git is not None:
            oids = await git.hash_files(regular)
        else:
            oids = await asyncio.to_thread(_hashes, repo, regular)
        return await asyncio.to_thread(_entries_of, repo, stamps, oids, git)
    except OSError as error:
        raise _unreadable(repo, error) from error


def _unreadable(repo: Path, error: OSError) -> ConfigError:
    said = f"{error.filename}: {error.strerror}; it must not change while it is read"
    return ConfigError(said, str(repo))


def _entries_of(
    repo: Path, stamps: Mapping[str, Stamp], oids: Mapping[str, str], git: Git | None
) -> dict[str, TreeEntry]:
    found: dict[str, TreeEntry] = {}
    for path, stamp in stamps.items():
        if stat.S_ISREG(stamp.mode):
            mode = "100755" if stamp.mode & 0o100 else "100644"
            found[path] = TreeEntry(mode, oids[path])
        else:
            target = os.fsencode(os.readlink(repo / path))
            oid = git.oid(b"blob", target) if git else hashlib.sha256(target).hexdigest()
            found[path] = TreeEntry("120000", oid)
    return found


def _walk(repo: Path, tracked: frozenset[str], exclude: bytes) -> dict[str, Stamp]:
    """Regular files and links that are tracked or not ignored."""

    def read(place: str) -> bytes | None:
        return _rules(repo / place / ".gitignore")

    ignores = Ignores(read, exclude)
    kept = _directories(dict.fromkeys(tracked))
    found: dict[str, Stamp] = {}
    pending = [""]
    while pending:
        place = pending.pop()
        for entry in _entries(repo, place):
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.name == ".git":
                continue
            if entry.is_dir(follow_symlinks=False):
                if path in kept or not ignores.ignored(path, is_directory=True):
                    pending.append(path)
                continue
            if path not in tracked and ignores.ignored(path, is_directory=False):
                continue
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode):
                found[path] = stamp_of(facts)
        if len(found) > _MOST_FILES:
            raise ConfigError(f"has more than {_MOST_FILES} files", str(repo))
    return found


def stamp_of(facts: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return Stamp(facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


def _entries(repo: Path, place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(repo / place) as entries:
            return list(entries)
    except FileNotFoundError:
        return []  # removed meanwhile: the end of the run tells that it moved
    except PermissionError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(repo / place)) from error


def _rules(file: Path) -> bytes | None:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # git does not follow a linked .gitignore either
    with os.fdopen(fd, "rb") as opened:
        return opened.read(_RULES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _hashes(repo: Path, paths: list[str]) -> dict[str, str]:
    return {path: file_sha256(repo / path) for path in paths}


def file_sha256(file: Path) -> str:
    """Of a regular file. Raises: OSError."""
    hasher = hashlib.sha256()
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
        while chunk := opened.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _plain_tree(files: Mapping[str, TreeEntry]) -> str:
    hasher = hashlib.sha256()
    for path in sorted(files):
        hasher.update(f"{files[path].mode} {files[path].oid}\0".encode() + os.fsencode(path))
        hasher.update(b"\0")
    return f"sha256:{hasher.hexdigest()}"


def _directories(paths: Mapping[str, object]) -> frozenset[str]:
    """Every directory above one of the paths."""
    return frozenset(place for path in paths for place in _above(path))


def _above(path: str) -> Iterator[str]:
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)


def _shown(entry: TreeEntry | None) -> str:
    return f"{entry.mode}:{entry.oid}" if entry is not None else "-"
