"""Files that an agent must never see: left out of what is uploaded, refused in an image."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.inside import SOLUTION_DIR, TESTS_DIR, VERIFIER_LOGS_DIR, inside
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.scratch import Scratch

_SEARCH_SEC = 300.0
_OURS = frozenset({VERIFIER_LOGS_DIR, TESTS_DIR, SOLUTION_DIR})
"""Directories that are ours: empty, they may be there, whatever a pattern says of their names."""
_SHOWN = 5


class Split(NamedTuple):
    """A directory in two: what an agent may have, and what it may not (None: nothing)."""

    visible: Path
    hidden: Path | None


def is_hidden(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path is hidden, by itself or with a directory above it.

    A pattern may match any run of names in the path; `*`, `?` and `[...]` stay within a name.
    """
    parts = [part for part in path.split("/") if part]
    for pattern in patterns:
        names = pattern.strip("/").split("/")
        for start in range(len(parts) - len(names) + 1):
            pairs = zip(parts[start : start + len(names)], names, strict=True)
            if all(fnmatchcase(part, name) for part, name in pairs):
                return True
    return False


def split_directory(source: Path, patterns: Sequence[str], home: Path) -> Split:
    """Part a directory by patterns. Blocks; the copies are kept below `home`, by content.

    Nothing is copied where nothing is hidden. Raises: OSError, StoreError (not below `home`).
    """
    files = _files(source)
    hidden = [name for name in files if is_hidden(name, patterns)]
    if not hidden:
        return Split(source, None)
    place = home / "hidden" / _key(source, files, patterns)
    if not place.is_dir():
        with Scratch(place.parent) as scratch:
            made = scratch / "split"
            kept = set(files) - set(hidden)
            _copy(source, made / "visible", sorted(kept))
            _copy(source, made / "hidden", hidden)
            try:
                made.rename(place)
            except OSError:
                if not place.is_dir():  # Else another run was faster; the content is the same.
                    raise
    return Split(place / "visible", place / "hidden")


async def refuse_hidden(sandbox: Sandbox, patterns: Sequence[str], below: str, what: str) -> None:
    """Make sure that no file below a directory of a sandbox is hidden from agents.

    Raises: EnvironmentFailed (there is one: named), UnsupportedError (the sandbox has no `find`),
    SandboxError.
    """
    names = {pattern.strip("/").rpartition("/")[2] for pattern in patterns}
    tests = " -o ".join(f"-name {shlex.quote(name)}" for name in sorted(names))
    root = f'"$RAMIFY_ROOT"{shlex.quote(below)}'
    prune = "\\( -path ./proc -o -path ./sys \\) -prune -o " if below == "/" else ""
    found = await sandbox.exec(
        f"command -v find >/dev/null || exit 99; cd {root} || exit 98; "
        f"find . {prune}\\( {tests} \\) -print0",
        user="root",
        cwd="/",
        timeout_sec=_SEARCH_SEC,
    )
    if found.exit_code == 99:
        raise UnsupportedError(
            "the manifest hides files from agents, and this sandbox has no `find` to make sure "
            "that they are not there; use an image that has it"
        )
    if found.exit_code == 98 or found.timed_out or found.stdout_dropped:
        said = found.stderr[-500:].decode(errors="replace").strip()
        raise EnvironmentFailed(f"cannot search {below} for hidden files: {said or 'no end'}")
    paths = [path.removeprefix(b"./") for path in found.stdout.split(b"\0") if path]
    prefix = below.rstrip("/")
    there = [f"{prefix}/{path.decode(errors='replace')}" for path in paths]
    seen = [path for path in there if is_hidden(path, patterns)]
    if ours := _OURS.intersection(seen):
        words = " ".join(inside(path) for path in sorted(ours))
        content = await sandbox.exec(f"find {words} -mindepth 1", user="root", cwd="/")
        seen = [path for path in seen if path not in ours]
        seen += content.stdout.decode(errors="replace").splitlines()
    if seen:
        more = f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
        raise EnvironmentFailed(
            f"{what} holds files that the manifest hides from agents: {', '.join(seen[:_SHOWN])}"
            f"{more}; take them out, the verifier gets its copies from elsewhere"
        )


async def refuse_hidden_in_image(
    sandbox: Sandbox, patterns: Sequence[str], image_digest: str, home: Path
) -> None:
    """`refuse_hidden` for a whole root file system, once for each image. Raises the same."""
    text = "\0".join([image_digest, *sorted(patterns)])
    key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    mark = home / "hidden" / f"{key}.searched"
    if image_digest and await asyncio.to_thread(mark.exists):
        return
    await refuse_hidden(sandbox, patterns, "/", "the image")
    if image_digest:
        await asyncio.to_thread(_mark, mark)


def _mark(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _files(source: Path) -> list[str]:
    found: list[str] = []
    for folder, directories, files in os.walk(source):
        links = [name for name in directories if os.path.islink(os.path.join(folder, name))]
        names = [os.path.join(folder, name) for name in (*files, *links)]
        found += [os.path.relpath(name, source) for name in names]
    return sorted(found)


def _key(source: Path, files: Sequence[str], patterns: Sequence[str]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in files:
        path = source / name
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        mode = path.lstat().st_mode & 0o777
        total.update(f"{name}\0{mode}\0{len(content)}\0".encode(errors="surrogateescape"))
        total.update(content)
    total.update("\0".join(patterns).encode())
    return total.hexdigest()


def _copy(source: Path, target: Path, files: Sequence[str]) -> None:
    target.mkdir(parents=True)
    for name in files:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, place, follow_symlinks=False)
