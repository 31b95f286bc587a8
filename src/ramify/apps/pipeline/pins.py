"""What the candidate must not decide: the pipeline itself, and the protected paths.

Both come from a commit. Whoever edits `agent.yaml` or a protected path in the working copy does not
pass until a person has committed it (or given another base).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ramify.apps.pipeline.fields import TOP
from ramify.apps.pipeline.git import Git, TreeEntry, find_git
from ramify.apps.pipeline.ignore import Ignores
from ramify.apps.pipeline.lfs import read_pointer
from ramify.apps.pipeline.records import CONFIG_FILE
from ramify.apps.pipeline.snapshot import Snapshot
from ramify.contracts.errors import ConfigError
from ramify.contracts.scratch import Scratch

_LARGEST = 1 << 20
_CACHES = b"__pycache__/\n*.pyc\n"
_HEAD = "HEAD"
_LINK = "120000"


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a pipeline comes from.

    Attributes:
        data: the content of `agent.yaml` that holds.
        file: how to name it to a person.
        base: the commit it and the protected paths come from; empty without one.
        unpinned: no commit has it, so it is the working copy's.
        changed: the working copy has another one.
    """

    data: bytes
    file: str
    base: str = ""
    unpinned: bool = False
    changed: bool = False


async def find_pin(repo: Path, base: str | None = None, file: str = CONFIG_FILE) -> Pin:
    """The `agent.yaml` of the commit `base` (default: HEAD), else the working copy's.

    Raises: ConfigError (no such file, no such commit, or git refuses the repository).
    """
    here = await asyncio.to_thread(_working_copy, repo / file)
    dirs = find_git(repo)
    committed: bytes | None = None
    commit: str | None = None
    if dirs is not None:
        async with Scratch() as shadow:
            git = Git(repo, dirs, shadow)
            commit = await git.commit(base or _HEAD)
            if commit is not None:
                committed = await _committed(git, commit, file)
    if base is not None and commit is None:
        raise ConfigError(f"{base!r} is no commit of it", str(repo), "base")
    if committed is not None:
        return Pin(committed, file, commit or "", changed=here != committed)
    if here is None:
        raise ConfigError(f"there is no {file}; `ramify verify init` writes a first one", str(repo))
    return Pin(here, str(repo / file), commit or "", unpinned=True)


async def _committed(git: Git, commit: str, file: str) -> bytes | None:
    _root, files = await git.tree(commit)
    entry = files.get(file)
    if entry is None:
        return None
    if entry.mode == _LINK:
        raise ConfigError("is a link in the commit; it must be a file", file)
    return (await git.read([entry.oid], b"blob"))[entry.oid]


def _working_copy(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError("is not a regular file", str(path))
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ConfigError("has more than 1 MiB", str(path))
    return data


async def protected_changes(
    repo: Path, snapshot: Snapshot, base: str, patterns: tuple[str, ...]
) -> dict[str, TreeEntry | None]:
    """Protected paths that are not as the base commit has them, with what it has.

    Files that git ignores count too (ignoring is for the candidate to decide), but for caches of
    the interpreter.

    Raises: ConfigError (there is no commit to compare with).
    """
    if not patterns:
        return {}
    if snapshot.git is None or not base:
        raise ConfigError("there is no commit to compare with; commit first", field="protected")
    base_files = snapshot.base
    if base != snapshot.commit:
        _root, base_files = await snapshot.git.tree(base)
    rules = globs(patterns)

    def matches(path: str) -> bool:
        return rules.ignored(path, is_directory=False)

    wanted = {path: entry for path, entry in base_files.items() if matches(path)}
    here = {path: entry for path, entry in snapshot.files.items() if matches(path)}
    others = await asyncio.to_thread(_others, repo, patterns, here)
    changed = {
        path: wanted.get(path) for path in (*wanted, *here) if wanted.get(path) != here.get(path)
    }
    return {**changed, **{path: wanted.get(path) for path in others if matches(path)}}


def without_match(snapshot: Snapshot, patterns: tuple[str, ...]) -> list[str]:
    """Those patterns that no file matches, committed or not: they protect nothing yet."""
    paths = {*snapshot.files, *snapshot.base}
    rules = {pattern: globs((pattern,)) for pattern in patterns}
    return [
        pattern
        for pattern, rule in rules.items()
        if not any(rule.ignored(path, is_directory=False) for path in paths)
    ]


async def put_back(copy: Path, snapshot: Snapshot, changed: dict[str, TreeEntry | None]) -> None:
    """Make protected paths of a copy of the repository what the base commit has.

    Raises: ConfigError (git refuses the repository, or its objects do not have the content),
    OSError.
    """
    assert snapshot.git is not None
    oids = {entry.oid for entry in changed.values() if entry is not None}
    contents = await snapshot.git.read(oids, b"blob") if oids else {}
    for path, entry in changed.items():
        if entry is not None and read_pointer(contents[entry.oid]) is not None:
            raise ConfigError(
                f"{path!r} is kept by Git LFS, so its content cannot be taken from the commit; "
                "use `protected: fail`",
                field="protected",
            )
    await asyncio.to_thread(_put_back, copy, changed, contents)


def _put_back(copy: Path, changed: dict[str, TreeEntry | None], contents: dict[str, bytes]) -> None:
    for path in changed:
        _remove(copy, path)
    for path, entry in changed.items():
        if entry is None:
            continue
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        if entry.mode == _LINK:
            os.symlink(os.fsdecode(contents[entry.oid]), target)
            continue
        mode = 0o755 if entry.mode == "100755" else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, mode), "wb") as file:
            file.write(contents[entry.oid])


def _remove(copy: Path, path: str) -> None:
    """Remove a path, and whatever above it is a file or link where a directory belongs."""
    at = copy
    for name in path.split("/"):
        at = at / name
        if at.is_symlink() or at.is_file():
            at.unlink()
            return


def globs(patterns: tuple[str, ...]) -> Ignores:
    """What matches globs relative to the repository, and everything below what matches."""
    relative = [each.removeprefix(TOP).removeprefix("./") for each in patterns]
    rules = b"".join(b"/" + os.fsencode(each) + b"\n" for each in relative)
    return Ignores(lambda _place: None, rules)


def _others(repo: Path, patterns: tuple[str, ...], known: dict[str, TreeEntry]) -> Iterator[str]:
    """Files below the protected paths that the snapshot does not have: git ignores them."""
    caches = Ignores(lambda _place: None, _CACHES)
    found: set[str] = set()
    for start in {_literal(pattern) for pattern in patterns}:
        root = repo / start
        pending = [root] if root.is_dir() and not root.is_symlink() else []
        while pending:
            place = pending.pop()
            with os.scandir(place) as entries:
                for entry in entries:
                    path = str(Path(entry.path).relative_to(repo))
                    directory = entry.is_dir(follow_symlinks=False)
                    if entry.name == ".git" or caches.ignored(path, is_directory=directory):
                        continue
                    if directory:
                        pending.append(Path(entry.path))
                    elif path not in known:
                        found.add(path)
    return iter(sorted(found))


def _literal(pattern: str) -> str:
    """The directory that everything a glob matches lies in."""
    parts: list[str] = []
    for part in pattern.removeprefix(TOP).removeprefix("./").strip("/").split("/"):
        if any(char in part for char in "*?[\\"):
            break
        parts.append(part)
    return "/".join(parts)
