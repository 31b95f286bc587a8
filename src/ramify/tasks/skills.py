"""Skills that come with a task, and the task without them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Task, TaskPackage


def without_skills(task: Task, home: Path) -> Task:
    """The task as an agent without skills gets it: none of them is in the image it is built from.

    A build context that holds skills (directories with a SKILL.md) is copied below `home` with
    their files left out; directories stay, so that a Dockerfile may still copy them. The copy is
    kept and shared by all runs of the task. A task without such a context is returned as it is.
    """
    package = task.package
    if package is None:
        return task
    source = _context(package)
    spec = package.sandbox
    parts = (
        (*spec.build.sources, spec.build.dockerfile) if spec.build and spec.build.sources else ()
    )
    if source is None or not (skills := _skills(source, parts)):
        return task
    key = hashlib.blake2b(f"{package.digest} {source.name}".encode(), digest_size=16).hexdigest()
    copy = home / "contexts" / f"{key}-no-skill"
    if not copy.is_dir():
        _copy(source, copy, skills, parts)
    if spec.build is not None:
        build = msgspec.structs.replace(spec.build, context=str(copy))
        spec = msgspec.structs.replace(spec, build=build)
    elif spec.compose is not None:
        file = copy / Path(spec.compose.file).name
        compose = msgspec.structs.replace(spec.compose, file=str(file))
        spec = msgspec.structs.replace(spec, compose=compose)
    return msgspec.structs.replace(task, package=msgspec.structs.replace(package, sandbox=spec))


def _context(package: TaskPackage) -> Path | None:
    if package.sandbox.build is not None:
        return Path(package.sandbox.build.context)
    if package.sandbox.compose is not None:
        return Path(package.sandbox.compose.file).parent
    return None


def _skills(source: Path, parts: Sequence[str]) -> set[Path]:
    """Directories that are skills: those with a SKILL.md, however it is cased.

    Given `parts` of the source, nothing else is looked at.
    """
    found: set[Path] = set()
    for place in [source / part for part in parts] or [source]:
        for folder, _, files in os.walk(place):
            if any(name.upper() == "SKILL.MD" for name in files):
                found.add(Path(folder))
    return found


def _copy(source: Path, target: Path, skills: set[Path], parts: Sequence[str]) -> None:
    """Copy all, or some parts, but the files of skills. Who sees `target` sees all of it."""
    wanted = [source / part for part in (*parts, ".dockerignore")]

    def belongs(place: Path) -> bool:
        return not parts or any(
            place.is_relative_to(part) or part.is_relative_to(place) for part in wanted
        )

    def left_out(folder: str, names: list[str]) -> set[str]:
        place = Path(folder)
        others = {name for name in names if not belongs(place / name)}
        if not any(place == skill or skill in place.parents for skill in skills):
            return others
        return others | {name for name in names if not _is_directory(place / name)}

    with Scratch(target.parent) as scratch:
        made = scratch / "context"
        shutil.copytree(source, made, symlinks=True, ignore=left_out)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # Else another run was faster; the content is the same.
                raise


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
