"""Where a task's Dockerfile is built: beside it, or at the root of the collection it is from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ramify.contracts.sandbox import BuildSpec
from ramify.tasks.dockerfile import copied_sources
from ramify.tasks.texts import read_text


def build_spec(task: Path, folder: Path, timeout_sec: float) -> BuildSpec:
    """How the Dockerfile in `folder` of a task is built.

    The context is `folder`. Some collections write Dockerfiles for a build at their root instead
    (`COPY tasks/NAME/data /data`): where something that the Dockerfile copies is not in `folder`,
    and from a directory above the task all of it is there and some of it leads back into this very
    task, that directory is the context, and the build sees what is copied and nothing else.
    """
    beside = BuildSpec(context=str(folder), timeout_sec=timeout_sec)
    sources = copied_sources(read_text(folder / "Dockerfile"))
    if not sources or all((folder / source).exists() for source in sources):
        return beside
    for root in task.parents:
        if _is_root(root, task, sources):
            return BuildSpec(
                context=str(root),
                dockerfile=(folder / "Dockerfile").relative_to(root).as_posix(),
                timeout_sec=timeout_sec,
                sources=tuple(dict.fromkeys(sources)),
            )
    return beside


def _is_root(root: Path, task: Path, sources: Sequence[str]) -> bool:
    """Whether a Dockerfile of the task with these sources was written for a build at `root`."""
    own = f"{task.relative_to(root).as_posix()}/"
    if not any(source.startswith(own) for source in sources):
        return False
    # Whoever copies a directory that the task is in copies its tests: no Dockerfile means that.
    if any(source in (".", "..") or own.startswith(f"{source}/") for source in sources):
        return False
    return all(_is_below(root, source) for source in sources)


def _is_below(root: Path, source: str) -> bool:
    place = root / source
    return place.exists() and place.resolve().is_relative_to(root)
