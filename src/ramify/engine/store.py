"""One directory per job: what was asked, everything that happened, and what came of it.

```
<job>/
  job.json                what was asked (written once)
  events-<worker>.jsonl   every event, in order; a new file each time the job is opened
  results.jsonl           one line per finished rollout
  revisions.jsonl         scores that were given after a rollout had ended (engine.revisions)
  blobs/                  large payloads, content-addressed
  rollouts/<id>/          artifacts of one rollout; durable before its result is recorded
  lock                    held by the engine that has the job open
  events.idx              derived; may be deleted at any time
```
Files of a job are read with `ramify.engine.reading`, also while it runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import StoreError, UsageError
from ramify.contracts.events import (
    AnyEvent,
    LeaseEvent,
    LogEvent,
    MetricEvent,
    NodeEvent,
    Observer,
    RewardGiven,
)
from ramify.contracts.result import RolloutResult
from ramify.contracts.scratch import sweep_scratch
from ramify.engine.blobs import BlobStore
from ramify.engine.flush import Flusher
from ramify.engine.journal import Journal, sync_directory
from ramify.engine.reading import (
    JOB_FILE,
    RESULTS_FILE,
    JobRecord,
    event_files,
    events_file,
    read_job,
    read_results,
    supersedes,
)

_LOCK_FILE = "lock"
_FENCES_PER_OPENING = 1_000_000_000
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHOWN_DIFFERENCES = 8

_log = logging.getLogger(__name__)


class Store:
    """A job directory, open for writing by this process alone. Open it with `create_or_open`."""

    def __init__(self, path: Path, job: JobRecord, lock: int) -> None:
        self._path = path
        self._job = job
        self._lock = lock
        blobs = BlobStore(path / "blobs")
        blobs.clear()
        sweep_scratch(path)
        self._results = read_results(path)
        self._leases: dict[str, int] = {}
        self._recording: set[str] = set()
        self._places: set[str] = set()
        worker = 1 + max((number for number, _ in event_files(path)), default=0)
        self._fence = worker * _FENCES_PER_OPENING
        with ExitStack() as opened:
            self._files = Flusher(path)
            opened.callback(self._files.close)
            self._result_log = Journal(path / RESULTS_FILE)
            opened.callback(self._result_log.close)
            self._event_log = Journal(path / events_file(worker), blobs)
            opened.pop_all()
        self._sink = _Sink(self._event_log, self._leases)

    @classmethod
    async def create_or_open(cls, path: Path, job: JobRecord) -> Store:
        """Make the directory of a new job, or open that of an old one to go on with it.

        Raises:
            UsageError: another process has it open, it belongs to another configuration, or it
                is some other directory with something in it.
            StoreError: it cannot be read or written, or is damaged.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(cls._open, path, job))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await uninterrupted(_close_when_open(opening))
            raise

    @classmethod
    def _open(cls, path: Path, job: JobRecord) -> Store:
        try:
            _prepare(path)
            lock = _acquire(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be made ({error.strerror})") from error
        try:
            return cls(path, _settle_job(path, job), lock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def path(self) -> Path:
        """The job directory."""
        return self._path

    @property
    def job(self) -> JobRecord:
        """What the job was created with: its own id and time, not those of this opening."""
        return self._job

    @property
    def observer(self) -> Observer:
        """Takes every event of every rollout. Never blocks, never raises."""
        return self._sink

    def next_fence(self) -> int:
        """A number for a new lease: higher than any before, over all openings of the job.

        The lease holds from when a LeaseEvent with it is emitted to `observer`.
        """
        self._fence += 1
        return self._fence

    async def ready(self) -> None:
        """Return when there is room for more events (backpressure): at once, as a rule.

        Raises StoreError for as long as the store cannot be written.
        """
        await self._event_log.ready()

    async def record(self, result: RolloutResult) -> bool:
        """Record how a rollout ended. Its files and events, then the result, are durable on return.

        So whoever finds the result after a crash or a power failure finds the whole of it.

        False, and a warning in the log, if it does not count: the rollout has a final result
        already, or a newer lease (a lease ends with the opening of the job that gave it).
        Raises StoreError: nothing is acknowledged; call again when the cause is gone (after files
        were lost, every call raises: open the job again, and the rollout runs again). Cancelled
        while it waits, it finishes first.
        """
        if (reason := self._why_not(result)) is not None:
            fields = {"fence": result.fence, "attempt": result.attempt, "reason": reason}
            text = "result ignored"
            self._sink.emit(
                LogEvent(result.rollout_id, result.finished_at, "warning", text, fields)
            )
            return False
        _require_storable(result)
        self._recording.add(result.rollout_id)
        await uninterrupted(self._record(result))
        return True

    def results(self) -> dict[str, RolloutResult]:
        """The result of each rollout that has one, by rollout id; each counted once."""
        return dict(self._results)

    def finished(self) -> frozenset[str]:
        """Rollouts whose result is final: a resumed job leaves them alone."""
        return frozenset(key for key, value in self._results.items() if value.outcome.final)

    def rollout_dir(self, rollout_id: str) -> Path:
        """The directory for a rollout's artifacts; made if missing.

        Raises UsageError for an id that is not safe as a name, StoreError if it cannot be made.
        """
        if not _SAFE_NAME.fullmatch(rollout_id):
            raise UsageError(
                f"{rollout_id!r} cannot name a directory: use letters, digits, dot, dash and "
                "underscore, at most 200, and begin with a letter or digit"
            )
        path = self._path / "rollouts" / rollout_id
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be made ({error.strerror})") from error
        self._places.add(rollout_id)
        return path

    async def aclose(self) -> None:
        """Make everything durable and let go of the directory. Idempotent. Raises StoreError."""
        if self._lock < 0:
            return
        try:
            await self._event_log.aclose()
        finally:
            try:
                await self._result_log.aclose()
            finally:
                await self._files.aclose()
                os.close(self._lock)
                self._lock = -1

    async def _record(self, result: RolloutResult) -> None:
        try:
            if result.rollout_id in self._places:
                await self._files.flush()
            await self._event_log.commit()
            await self._result_log.append_durable(result)
            self._results[result.rollout_id] = result
        finally:
            self._recording.discard(result.rollout_id)

    def _why_not(self, result: RolloutResult) -> str | None:
        key = result.rollout_id
        lease = self._leases.get(key)
        if lease is None:
            return "no lease of this opening"
        if result.fence != lease:
            return f"the lease is {lease}"
        if key in self._recording:
            return "the same result is being recorded"
        if not supersedes(result, self._results.get(key)):
            return "a final result stands"
        return None


async def _close_when_open(opening: asyncio.Future[Store]) -> None:
    await (await opening).aclose()


class _Sink:
    """The store's observer."""

    def __init__(self, journal: Journal, leases: dict[str, int]) -> None:
        self._journal = journal
        self._leases = leases

    def emit(self, event: AnyEvent) -> None:
        if isinstance(event, LeaseEvent):
            self._leases[event.rollout_id] = max(
                event.fence, self._leases.get(event.rollout_id, event.fence)
            )
        try:
            self._journal.append(_storable(event))
        except StoreError as error:  # an observer must not raise; this one came after `aclose`
            _log.warning("event of %s not stored: %s", event.rollout_id, error)


def _storable(event: AnyEvent) -> AnyEvent:
    """The event with numbers that JSON has: it knows neither NaN nor infinities."""
    if isinstance(event, RewardGiven | MetricEvent) and not math.isfinite(event.value):
        fields = {"name": event.name, "value": str(event.value)}
        return LogEvent(event.rollout_id, event.ts, "error", "value is not finite", fields)
    if not isinstance(event, NodeEvent) or event.step is None:
        return event
    step, tokens = event.step, event.step.tokens
    if tokens is not None and not math.isfinite(sum(tokens.logprobs)):
        logprobs = tuple(_finite(value) for value in tokens.logprobs)
        tokens = msgspec.structs.replace(tokens, logprobs=logprobs)
        step = msgspec.structs.replace(step, tokens=tokens)
    if step.logprob is not None and not math.isfinite(step.logprob):
        step = msgspec.structs.replace(step, logprob=_finite(step.logprob))
    return event if step is event.step else msgspec.structs.replace(event, step=step)


def _require_storable(result: RolloutResult) -> None:
    spent = {"cost": result.usage, "cost of grading": result.grading}
    costs = {name: usage.cost_usd or 0.0 for name, usage in spent.items()}
    numbers = {"reward": result.reward or 0.0, **result.items, **result.timings, **costs}
    if wrong := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise StoreError(
            f"result of {result.rollout_id}: {', '.join(wrong)} is not a finite number, so it "
            "cannot be recorded; a reward that cannot be given is None"
        )


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -sys.float_info.max


def _prepare(path: Path) -> None:
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        # A lock and a draft of job.json are all that a creation that was killed leaves behind.
        strange = {n for n in names if n != _LOCK_FILE and not n.startswith(f".{JOB_FILE}.")}
        if JOB_FILE not in names and strange:
            raise UsageError(
                f"{path} is not a job directory and not empty (it holds {sorted(strange)[0]!r}); "
                "name another directory with --out"
            )
        return
    if path.exists():
        raise UsageError(f"{path} is not a directory; name another one with --out")
    path.mkdir(parents=True, exist_ok=True)
    sync_directory(path.parent)


def _acquire(path: Path) -> int:
    lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 4096, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        raise UsageError(
            f"{path} is open in {holder}; wait until it has finished, stop it, or name another "
            "directory with --out"
        ) from None
    except OSError:
        os.close(lock)
        raise
    command = " ".join(sys.argv)[:1000]
    holder = f"process {os.getpid()} on {socket.gethostname()} ({command})"
    os.ftruncate(lock, 0)
    os.pwrite(lock, holder.encode("utf-8", "replace"), 0)
    return lock


def _settle_job(path: Path, job: JobRecord) -> JobRecord:
    if not (path / JOB_FILE).exists():
        try:
            _write_job(path, job)
        except OSError as error:
            raise StoreError(
                f"{path / JOB_FILE}: cannot be written ({error.strerror}); free space on that "
                "file system and run the same command again"
            ) from error
        return job
    stored = read_job(path)
    if stored.config_hash != job.config_hash:
        raise UsageError(
            f"{path} belongs to another configuration: {_differences(stored, job)}. Go on with "
            "it by giving the same options as before, or name another directory with --out"
        )
    return stored


def _write_job(path: Path, job: JobRecord) -> None:
    draft = path / f".{JOB_FILE}.draft"  # ours alone: the lock is held
    content = msgspec.json.format(msgspec.json.encode(job), indent=2) + b"\n"
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path / JOB_FILE)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path)


def _differences(stored: JobRecord, given: JobRecord) -> str:
    sides = [
        _leaves({"plan": msgspec.to_builtins(side.plan), "config": side.config})
        for side in (stored, given)
    ]
    missing = "(not set)"
    lines = [
        f"{key} was {sides[0].get(key, missing)}, now {sides[1].get(key, missing)}"
        for key in sorted(sides[0].keys() | sides[1].keys())
        if sides[0].get(key, missing) != sides[1].get(key, missing)
    ]
    if not lines:
        return f"its config hash was {stored.config_hash}, now {given.config_hash}"
    more = len(lines) - _SHOWN_DIFFERENCES
    shown = "; ".join(lines[:_SHOWN_DIFFERENCES])
    return f"{shown}; and {more} more" if more > 0 else shown


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            text = repr(value)
            found[prefix + key] = text if len(text) <= 80 else f"{text[:77]}..."
    return found
