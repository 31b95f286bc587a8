"""Reading a job directory, also while an engine is writing it. Nothing here changes its records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import StoreError, UsageError
from ramify.contracts.events import AnyEvent, LeaseEvent, NodeEvent
from ramify.contracts.result import RolloutResult
from ramify.engine.blobs import BlobStore, join, references_in
from ramify.engine.index import Index
from ramify.engine.lines import read_lines
from ramify.engine.revisions import Overlay, read_revisions

JOB_FILE = "job.json"
RESULTS_FILE = "results.jsonl"
_FORMAT = 1
_EVENTS_FILE = re.compile(r"events-([0-9]+)\.jsonl")

_events: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_results = msgspec.json.Decoder(RolloutResult)


class Plan(msgspec.Struct, frozen=True):
    """What a job runs: every task `repeats` times. `model` is None for agents without one.

    `tasks` is where the tasks were found, as it was given; empty for a Taskset object.
    """

    task_ids: tuple[str, ...]
    repeats: int
    agent: str
    model: str | None
    sandbox: str
    seed: int
    tasks: str = ""


class JobRecord(msgspec.Struct, frozen=True):
    """job.json: what was asked, and with what.

    `created_at` is UTC seconds since the epoch. `config` is what `config_hash` is taken of, with
    secrets redacted before it comes here. `versions` names at least ramify, python and platform.
    `git` holds commit and whether it was dirty, or is None outside a repository.
    """

    job_id: str
    config_hash: str
    created_at: float
    plan: Plan
    config: dict[str, Any]
    versions: dict[str, str]
    git: dict[str, str] | None = None
    argv: tuple[str, ...] = ()
    format: int = _FORMAT


_decoder = msgspec.json.Decoder(JobRecord)


def read_job(path: Path) -> JobRecord:
    """What the job in directory `path` was asked to do.

    Raises UsageError if it is not a job directory or of a newer Ramify, StoreError if damaged.
    """
    file = path / JOB_FILE
    try:
        job = _decoder.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} is not a job directory: it has no {JOB_FILE}") from None
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror})") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{file}: is damaged ({error}); restore it from a copy") from error
    if job.format > _FORMAT:
        raise UsageError(f"{file}: was written by a newer Ramify; update this one to read it")
    return job


def read_results(path: Path) -> dict[str, RolloutResult]:
    """The result of each finished rollout, by rollout id, each counted once. Raises StoreError.

    Scores that were given later (`engine.revisions`) are in it.
    """
    found = recorded_results(path)
    revisions = read_revisions(path, found)
    return {**found, **{key: revision.result for key, revision in revisions.items()}}


def recorded_results(path: Path) -> dict[str, RolloutResult]:
    """The same as each was when its rollout ended. Raises StoreError."""
    found: dict[str, RolloutResult] = {}
    _read_results_into(found, path, 0)
    return found


def _read_results_into(found: dict[str, RolloutResult], path: Path, start: int) -> int:
    """Add those that stand from a byte of the file on; returns where that ends."""
    file = path / RESULTS_FILE
    if not file.exists():
        return start
    for offset, line in read_lines(file, start):
        try:
            result = _results.decode(line)
        except msgspec.DecodeError as error:
            raise StoreError(f"{file}: byte {offset}: is not a result ({error})") from error
        if supersedes(result, found.get(result.rollout_id)):
            found[result.rollout_id] = result
        start = offset + len(line)
    return start


def supersedes(result: RolloutResult, standing: RolloutResult | None) -> bool:
    """Whether a later `result` counts in place of the one that stands: a final one never yields."""
    return standing is None or not standing.outcome.final


def read_events(path: Path, rollout_id: str | None = None) -> Iterator[AnyEvent]:
    """Events of a job, or of one rollout (`JobReader.events`). Raises StoreError."""
    return JobReader(path).events(rollout_id)


class JobReader:
    """The records of a job as they are at one moment, for reading many of its rollouts.

    Args:
        path: the job directory.
        revised: with the scores that were given later in place of the first ones.

    Raises: StoreError, UsageError (no such directory).
    """

    def __init__(self, path: Path, *, revised: bool = True) -> None:
        self._path, self._revised = path, revised
        # Results come first: what they speak of is in the events that are read afterwards.
        self._first: dict[str, RolloutResult] = {}
        self._read = _read_results_into(self._first, path, 0)
        self._index = Index.load(path, event_files(path))
        self._blobs = BlobStore(path / "blobs")
        self._revise()

    def update(self) -> None:
        """Take in what was recorded since, of the engine that has the job open. Blocks.

        Costs as much as there is to take in, whatever was read before; but with `revised` all
        revisions are read again.
        """
        self._read = _read_results_into(self._first, self._path, self._read)
        self._index.extend()
        self._revise()

    def _revise(self) -> None:
        first = self._first
        self._revisions = read_revisions(self._path, first) if self._revised else {}
        later = {key: revision.result for key, revision in self._revisions.items()}
        self.results: Mapping[str, RolloutResult] = {**first, **later} if later else first

    def _fence(self, rollout_id: str) -> int | None:
        """The lease of the attempt that is read; None if there was none."""
        newest = self._index.newest_fence(rollout_id)
        result = self._first.get(rollout_id)
        return newest if newest is None or result is None else result.fence

    def events(self, rollout_id: str | None = None) -> Iterator[AnyEvent]:
        """Events of the job, or of one rollout, in the order of files and lines.

        Of each rollout only the attempt whose result counts is given, or while there is none the
        newest attempt. One rollout is found through the index (`events.idx`), which is made or
        brought up to date as needed. Signals that were given later come last. Raises StoreError,
        also in the midst of iteration.
        """
        if rollout_id is not None:
            events = self._recorded(self._index.lines(rollout_id))
            if (revision := self._revisions.get(rollout_id)) is not None:
                events = Overlay(revision).apply(events)
            return events
        if not self._revisions:
            return self._recorded(self._lines())
        return self._all()

    def _all(self) -> Iterator[AnyEvent]:
        for event in self._recorded(self._lines()):
            if event.rollout_id not in self._revisions:
                yield event
        for rollout_id in self._revisions:
            yield from self.events(rollout_id)

    def _lines(self) -> Iterator[tuple[Path, int, bytes]]:
        for _, file in event_files(self._path):
            for offset, line in read_lines(file):
                yield file, offset, line

    def _recorded(self, lines: Iterator[tuple[Path, int, bytes]]) -> Iterator[AnyEvent]:
        current: dict[str, int] = {}
        for file, offset, line in lines:
            event = _decode(file, offset, line, self._blobs)
            key = event.rollout_id
            if isinstance(event, LeaseEvent):
                current[key] = event.fence
            if current.get(key) == self._fence(key):
                yield event


def event_files(path: Path) -> list[tuple[int, Path]]:
    """Number and path of each events file of a job, in order.

    Raises UsageError if there is no such directory, StoreError if it cannot be read.
    """
    try:
        entries = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} is not a job directory: there is no such directory") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    found = [(_EVENTS_FILE.fullmatch(entry.name), entry) for entry in entries]
    return sorted((int(match[1]), entry) for match, entry in found if match)


def events_file(worker: int) -> str:
    """Name of the events file with this number."""
    return f"events-{worker}.jsonl"


def _decode(file: Path, offset: int, line: bytes, blobs: BlobStore) -> AnyEvent:
    try:
        event = _events.decode(line)
        references = references_in(line)
    except msgspec.DecodeError as error:
        raise StoreError(f"{file}: byte {offset}: is not an event ({error})") from error
    if references and isinstance(event, NodeEvent):
        return join(event, references, blobs)
    return event
