"""Which repository a project belongs to: its own, or one above it that holds several projects.

The directory of `agent.yaml` is the project: its steps run there, and what the file says of paths
is relative to it. Everything else is about the repository as a whole: what is guarded, what is
hashed, what is locked, and the commit that the file is pinned to.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from msgspec.structs import replace

from ramify.apps.pipeline.fields import TOP
from ramify.apps.pipeline.git import Git, GitDirs, find_git
from ramify.apps.pipeline.records import PipelineSpec, StepSpec
from ramify.contracts.scratch import Scratch


class Project(NamedTuple):
    """A project: `place` is its directory relative to `repo`, empty where it is all of it."""

    repo: Path
    place: str

    def file(self, name: str) -> str:
        """A file of the project, relative to the repository."""
        return f"{self.place}/{name}" if self.place else name


async def find_project(directory: Path) -> Project:
    """The repository that a directory belongs to.

    That is the nearest one, itself or above, if it has anything of the directory committed or
    staged and is of the same owner (or ours); else the directory is on its own, without git.

    Raises: ConfigError (what looks like a repository is none, or git refuses it).
    """
    directory, repo, dirs = await asyncio.to_thread(_nearest, directory)
    if dirs is not None and repo != directory:
        place = str(directory.relative_to(repo))
        if await _holds(repo, dirs, place):
            return Project(repo, place)
    return Project(directory, "")


def placed(spec: PipelineSpec, place: str) -> PipelineSpec:
    """A pipeline of the project in `place`, with all of its paths relative to the repository."""
    if not place:
        return spec
    root = PurePosixPath(place)

    def moved(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            each.removeprefix(TOP)
            if each.startswith(TOP)
            else f"{_literally(place)}/{each.removeprefix('./')}"
            for each in paths
        )

    def step(each: StepSpec) -> StepSpec:
        return replace(
            each,
            cwd=str(root / each.cwd),
            artifacts=moved(each.artifacts),
            junit=moved(each.junit),
        )

    cache = spec.cache
    return replace(
        spec,
        steps=tuple(map(step, spec.steps)),
        protected_paths=moved(spec.protected_paths),
        writable=tuple(str(root / each) for each in spec.writable),
        cache=replace(cache, key=moved(cache.key)) if cache is not None else None,
    )


def _literally(place: str) -> str:
    """A path as a glob that matches it alone."""
    return "".join(f"\\{char}" if char in "*?[\\" else char for char in place)


def _nearest(directory: Path) -> tuple[Path, Path, GitDirs | None]:
    """A directory, really, and the repository that it is or lies in."""
    directory = directory.resolve()
    if directory.is_dir():
        for place in (directory, *directory.parents):
            if place == directory or _is_ours(place / ".git", directory):
                dirs = find_git(place)
                if dirs is not None:
                    return directory, place, dirs
    return directory, directory, None


def _is_ours(dot: Path, directory: Path) -> bool:
    """Whether there is a `.git` of whoever owns the directory, or of whoever runs this."""
    try:
        owner = dot.lstat().st_uid
    except FileNotFoundError:
        return False
    return owner in (directory.stat().st_uid, os.geteuid())


async def _holds(repo: Path, dirs: GitDirs, place: str) -> bool:
    """Whether anything below `place` is committed or staged."""
    async with Scratch() as shadow:
        git = Git(repo, dirs, shadow)
        if any(path.startswith(f"{place}/") for path in await git.index()):
            return True
        commit = await git.commit("HEAD")
        if commit is None:
            return False
        _root, files = await git.tree(commit)
        return any(path.startswith(f"{place}/") for path in files)
