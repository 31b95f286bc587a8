"""What is kept of a run: declared artifacts, test reports, and the list of it all.

Everything here was written by hostile steps; nothing of it runs any more. No link is followed, only
regular files are read, and there is a bound on each number and size.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ramify import compose
from ramify.apps.pipeline.masks import Masker
from ramify.apps.pipeline.pins import globs
from ramify.apps.pipeline.records import Artifact, TestsReport
from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reports import CaseResult
from ramify.contracts.sandbox import MIB

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)
_CHUNK = MIB
_MOST_FILES = 1000
_MOST_ENTRIES = 200_000
_DEEPEST = 64
_REPORT_MAX = 8 * MIB
_MOST_REPORTS = 200
_MOST_CASES = 20_000


def keep_declared(upper: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy what steps made or changed in the repository, and `patterns` match, to `target`.

    Steps could write to `target` too: what stands in the way there is left, and the file with it.
    """
    for path in _matching(upper, patterns):
        with _opened(upper, path) as source:
            if source >= 0:
                _place(source, target, path)


def read_reports(
    upper: Path | None, junit: Path, patterns: tuple[str, ...], masker: Masker
) -> TestsReport | None:
    """The tests that JUnit reports tell of: those in `junit`, and those that `patterns` match.

    None when there is no report at all. Secrets are masked in what is told.
    """
    places = [(junit, path) for path in _walk(junit) if path.endswith(".xml")]
    if upper is not None:
        places += [(upper, path) for path in _matching(upper, patterns)]
    cases: list[CaseResult] = []
    unreadable = [f"only {_MOST_REPORTS} reports are read"] if len(places) > _MOST_REPORTS else []
    for root, path in places[:_MOST_REPORTS]:
        with _opened(root, path) as fd:
            data = _bounded(fd) if fd >= 0 else None
        try:
            if data is None:
                raise InvalidRewardError("malformed", f"has more than {_REPORT_MAX // MIB} MiB")
            cases += compose.test_report("junit", masker.bytes(data)).cases
        except InvalidRewardError as error:
            unreadable.append(f"{path}: {error.message}")
    if not places:
        return None
    counts = dict.fromkeys(("passed", "failed", "skipped", "error"), 0)
    for case in cases:
        counts[case.status] += 1
    return TestsReport(
        total=len(cases),
        passed=counts["passed"],
        failed=counts["failed"] + counts["error"],
        skipped=counts["skipped"],
        items=tuple(cases[:_MOST_CASES]),
        unreadable=tuple(unreadable),
    )


def list_artifacts(run: Path, names: tuple[str, ...]) -> tuple[Artifact, ...]:
    """The regular files below the directories `names` of a run, by path; at most 1000."""
    found: list[Artifact] = []
    for name in names:
        for path in _walk(run / name):
            if len(found) == _MOST_FILES:
                return tuple(found)
            with _opened(run / name, path) as fd:
                if fd >= 0:
                    size, digest = _digest(fd)
                    found.append(Artifact(f"{name}/{path}", digest, size))
    return tuple(found)


def used_bytes(place: Path) -> int:
    """What a tree takes on disk, in bytes; counting stops at 200,000 entries."""
    total = count = 0
    pending = [place]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    count += 1
                    facts = entry.stat(follow_symlinks=False)
                    total += facts.st_blocks * 512
                    if stat.S_ISDIR(facts.st_mode):
                        pending.append(Path(entry.path))
        except OSError:  # steps remove things while they are counted
            continue
        if count > _MOST_ENTRIES:
            break
    return total


def _matching(upper: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    if not patterns:
        return
    rules = globs(patterns)
    for path in _walk(upper):
        if rules.ignored(path, is_directory=False):
            yield path


def _walk(root: Path) -> list[str]:
    """Paths of what is no directory, sorted; within the bounds on number and depth."""
    found: list[str] = []
    pending = [""]
    while pending and len(found) < _MOST_ENTRIES:
        place = pending.pop()
        fd = _directory(root, place)
        if fd < 0:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    path = f"{place}/{entry.name}" if place else entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        found.append(path)
                    elif path.count("/") < _DEEPEST:
                        pending.append(path)
        finally:
            os.close(fd)
    return sorted(found)


@contextmanager
def _opened(root: Path, path: str) -> Generator[int]:
    """A regular file below `root`, -1 for anything else."""
    place, _, name = path.rpartition("/")
    parent = _directory(root, place)
    fd = -1
    try:
        if parent >= 0:
            try:
                fd = os.open(name, _READ, dir_fd=parent)
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    os.close(fd)
                    fd = -1
            except OSError:  # a link, a device, a socket
                fd = -1
        yield fd
    finally:
        for each in (fd, parent):
            if each >= 0:
                os.close(each)


def _directory(root: Path, path: str) -> int:
    try:
        fd = os.open(root, _DIRECTORY)
    except OSError:
        return -1
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, _DIRECTORY, dir_fd=fd)
        except OSError:
            below = -1
        os.close(fd)
        if below < 0:
            return -1
        fd = below
    return fd


def _place(source: int, target: Path, path: str) -> None:
    fd = os.open(target, _DIRECTORY)
    try:
        *places, name = path.split("/")
        for place in places:
            with suppress(FileExistsError):
                os.mkdir(place, 0o755, dir_fd=fd)
            below = os.open(place, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        copy = os.open(name, flags, os.fstat(source).st_mode & 0o755, dir_fd=fd)
        with os.fdopen(copy, "wb") as file:
            while chunk := os.read(source, _CHUNK):
                file.write(chunk)
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
    finally:
        os.close(fd)


def _bounded(fd: int) -> bytes | None:
    data = bytearray()
    while chunk := os.read(fd, _CHUNK):
        data += chunk
        if len(data) > _REPORT_MAX:
            return None
    return bytes(data)


def _digest(fd: int) -> tuple[int, str]:
    hasher, size = hashlib.sha256(), 0
    while chunk := os.read(fd, _CHUNK):
        hasher.update(chunk)
        size += len(chunk)
    return size, hasher.hexdigest()
