"""A build cache between runs, for pipelines that ask for one. Off by default.

An entry is what the first run to pass left in /artifacts/cache. It is found again by what it was
made from: the content of the files that the pipeline names (lock files), the image, and the steps.
An entry never changes: steps see it copy-on-write, and what they add to it is dropped. So a run
that fails leaves nothing to those after it, and one that passes at most what its own steps made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from ramify.apps.pipeline.records import StepSpec
from ramify.contracts.removal import REMOVED, in_use, remove_unused

_KEPT = 10


def cache_key(
    repository: Path, files: Mapping[str, str], image: str, steps: tuple[StepSpec, ...]
) -> str:
    """Name of the entry of a repository for these files (path → digest), image and steps."""
    made_from = (os.fsencode(repository.resolve()), sorted(files.items()), image, steps)
    return sha256(msgspec.json.encode(made_from)).hexdigest()


@contextmanager
def cache_entry(cache: Path, key: str) -> Generator[Path | None]:
    """The entry of that name, kept from being removed meanwhile; None where there is none yet."""
    place = cache / key
    with ExitStack() as stack:
        try:
            stack.enter_context(in_use(place, shared=True))
            os.utime(place)
        except OSError:  # not there, or not ours to use
            place = None
        yield place


def keep_entry(cache: Path, key: str, made: Path) -> bool:
    """Make the directory `made` the entry of that name, and remove the oldest beyond ten.

    False where there is one already: then `made` stays where it is. Raises: OSError.
    """
    try:
        os.rename(made, cache / key)
        os.utime(cache / key)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    for place in _superfluous(cache):
        with suppress(OSError):  # another user's, or somebody else is removing it
            remove_unused(place)
    return True


def _superfluous(cache: Path) -> list[Path]:
    """Entries that were not used for longest, and what is left of those that were removed."""
    begun: list[Path] = []
    entries: list[tuple[float, Path]] = []
    with os.scandir(cache) as found:
        for entry in found:
            if entry.name.startswith(REMOVED):
                begun.append(Path(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                entries.append((entry.stat(follow_symlinks=False).st_mtime, Path(entry.path)))
    entries.sort(reverse=True)
    return begun + [place for _used, place in entries[_KEPT:]]
