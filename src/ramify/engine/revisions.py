"""Scores that were given after a rollout had ended, laid over what was recorded when it did.

Some parts of a reward compare siblings, so they wait until the last of these has ended; others
failed, and were computed when that was mended. Neither changes `results.jsonl` or the events: a
line of `revisions.jsonl` holds what became of the rollouts that were scored together, whole, so
that either all of them count or none. A line counts only for the very attempts that it was made
of: it names the lease of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import StoreError
from ramify.contracts.events import (
    AnyEvent,
    OutcomeEvent,
    RewardGiven,
    RewardParts,
    StatusEvent,
)
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import RewardEvent
from ramify.contracts.tree import NodeStatus, Outcome
from ramify.engine.journal import Journal
from ramify.engine.lines import read_lines

REVISIONS_FILE = "revisions.jsonl"


class LeafScore(msgspec.Struct, frozen=True):
    """A leaf as it is scored now: its outcome, signals, and what is still missing (if anything)."""

    node: int
    outcome: Outcome
    events: tuple[RewardEvent, ...] = ()
    parts: RewardParts | None = None


class Revision(msgspec.Struct, frozen=True):
    """A rollout as it is scored now. `result` has the lease of the attempt that was scored."""

    result: RolloutResult
    leaves: tuple[LeafScore, ...]


class Revised(msgspec.Struct, frozen=True):
    """What was scored together: one line. `at` is UTC seconds since the epoch.

    `siblings` are rollout id and lease of all that were compared; none where nothing was.
    """

    task_id: str
    at: float
    rollouts: tuple[Revision, ...]
    siblings: tuple[tuple[str, int], ...] = ()


_lines = msgspec.json.Decoder(Revised)


def comparable(result: RolloutResult) -> bool:
    """Whether a rollout is compared with its siblings: it has a score, or lacks nothing else."""
    return result.outcome.counts or result.unscored_by_us


def _siblings(results: Mapping[str, RolloutResult]) -> dict[str, list[tuple[str, int]]]:
    """Rollout id and lease of each rollout that is compared, by task and then by id."""
    found: dict[str, list[tuple[str, int]]] = {}
    for key, result in sorted(results.items()):
        if comparable(result):
            found.setdefault(result.task_id, []).append((key, result.fence))
    return found


def read_revisions(path: Path, results: Mapping[str, RolloutResult]) -> dict[str, Revision]:
    """What counts of the revisions of a job with these results, by rollout id.

    Raises StoreError where the file is damaged.
    """
    file = path / REVISIONS_FILE
    found: dict[str, Revision] = {}
    if not file.exists():
        return found
    now: dict[str, list[tuple[str, int]]] | None = None
    for offset, line in read_lines(file):
        try:
            revised = _lines.decode(line)
        except msgspec.DecodeError as error:
            raise StoreError(f"{file}: byte {offset}: is not a revision ({error})") from error
        if revised.siblings:
            now = _siblings(results) if now is None else now
            if now.get(revised.task_id) != list(revised.siblings):
                continue
        for one in revised.rollouts:
            stands = results.get(one.result.rollout_id)
            if stands is not None and stands.fence == one.result.fence:
                found[one.result.rollout_id] = one
    return found


@dataclass(frozen=True, slots=True)
class Overlay:
    """Turns the recorded events of one rollout into those of its revision."""

    revision: Revision

    def apply(self, events: Iterator[AnyEvent]) -> Iterator[AnyEvent]:
        """Recorded events, in order; those that no longer hold are replaced or left out."""
        result = self.revision.result
        leaves = {leaf.node: leaf for leaf in self.revision.leaves}
        replaced = {
            (leaf.node if event.node is None else event.node, event.name)
            for leaf in self.revision.leaves
            for event in leaf.events
        }
        last: OutcomeEvent | None = None
        for event in events:
            match event:
                case RewardGiven() if (event.node, event.name) in replaced:
                    continue
                case RewardGiven(name="reward") if event.node in leaves:
                    continue
                case RewardParts() if event.node in leaves:
                    continue
                case StatusEvent() if event.node in leaves:
                    status = NodeStatus(leaves[event.node].outcome.value)
                    yield msgspec.structs.replace(event, status=status)
                case OutcomeEvent():
                    last = msgspec.structs.replace(
                        event, outcome=result.outcome, reward=result.reward
                    )
                case _:
                    yield event
        for leaf in self.revision.leaves:
            yield from _signals(result, leaf)
        if last is not None:
            yield last


def _signals(result: RolloutResult, leaf: LeafScore) -> Iterator[AnyEvent]:
    if leaf.parts is not None:
        yield leaf.parts
    for event in leaf.events:
        yield RewardGiven(
            result.rollout_id,
            result.finished_at,
            leaf.node if event.node is None else event.node,
            event.name,
            event.value,
            event.space.value,
            event.granularity.value,
        )


class Revisions:
    """The revisions of a job, open for writing. Whoever opens it holds the job's store."""

    def __init__(self, job: Path) -> None:
        self._journal = Journal(job / REVISIONS_FILE)

    async def record(self, revised: Revised) -> None:
        """Record what was scored together; durable on return. Raises StoreError."""
        await uninterrupted(self._journal.append_durable(revised))

    async def aclose(self) -> None:
        """Make everything durable. Idempotent. Raises StoreError."""
        await self._journal.aclose()
