"""The memory space: what became of memory and skills, compared with what should have."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InvalidRewardError, TransferLimitError
from ramify.contracts.reward import Space, VerifyResult
from ramify.contracts.sandbox import MIB, TransferLimits
from ramify.contracts.scratch import Scratch
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.spaces.walking import signal
from ramify.planes.reward.stage import agent_sandbox

_LIMITS = TransferLimits(
    max_bytes=64 * MIB, max_file_bytes=16 * MIB, max_entries=10_000, links="drop"
)


class MemoryDiff(msgspec.Struct, frozen=True):
    """What changed between two states of a store, by entry, each in order."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class MemoryExpectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What should become of a store.

    Each is a list of patterns of entries (`notes/*.md`; `*` also matches `/`): for each pattern at
    least one entry has to be added, removed, changed or left as it is. `allowed` may change in any
    way or not at all. Whatever else changes is drift.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


def memory_diff(before: Mapping[str, str], after: Mapping[str, str]) -> MemoryDiff:
    """Compare two states: entry → content, or a digest of it."""
    both = before.keys() & after.keys()
    return MemoryDiff(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(name for name in both if before[name] != after[name])),
        kept=tuple(sorted(name for name in both if before[name] == after[name])),
    )


def read_store(folder: Path) -> dict[str, str]:
    """Path → digest of each file below a directory; links are not followed. Blocks.

    A directory that is not there holds nothing. Raises: OSError.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


class MemoryUpdated:
    """Whether memory and skills were updated as they should be. Implements `Reward`.

    The reward is the share of what was expected and met among all that was expected or drifted: 1
    where everything expected happened, and nothing else did. Without an expectation of its own it
    is that of the task's metadata, `memory`: a table with `added`, `removed`, `changed`, `kept`,
    `allowed`.

    It looks into the agent's sandbox, so it has to be asked before a verifier that ends it.

    Args:
        place: the directory inside, absolute, or relative to the work directory.
        before: what it held at the start: a directory of the host, or entry → digest.
        expected: what should become of it; None: the task's own.
    """

    name = "memory_updated"

    def __init__(
        self,
        place: str,
        before: Path | Mapping[str, str],
        expected: MemoryExpectation | None = None,
    ) -> None:
        self._place, self._before, self._expected = place, before, expected

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Compare.

        Raises: InvalidRewardError (`no_evidence`: it exceeds what may cross), ConfigError (the
        task's metadata holds something else), InfraError, SandboxError.
        """
        expected = self._expected or _of_task(ctx)
        before = self._before
        if isinstance(before, Path):
            before = await asyncio.to_thread(read_store, before)
        return memory_result(memory_diff(before, await self._after(ctx)), expected)

    async def _after(self, ctx: Context) -> dict[str, str]:
        sandbox, _ = agent_sandbox(ctx)
        async with Scratch() as folder:
            local = folder / "store"
            place = self._place if self._place.startswith("/") else f"{ctx.workdir}/{self._place}"
            try:
                await sandbox.download(place, local, limits=_LIMITS)
            except FileNotFoundError:
                return {}
            except TransferLimitError as error:
                raise InvalidRewardError("no_evidence", f"{place}: {error}") from error
            return await asyncio.to_thread(read_store, local)


def memory_result(diff: MemoryDiff, expected: MemoryExpectation) -> VerifyResult:
    """A diff held against an expectation, as `MemoryUpdated` scores it; for stores of any kind."""
    met: list[str] = []
    missed: list[str] = []
    meant: set[str] = set()
    for how in ("added", "removed", "changed", "kept"):
        entries: Sequence[str] = getattr(diff, how)
        for pattern in getattr(expected, how):
            fitting = {name for name in entries if fnmatchcase(name, pattern)}
            (met if fitting else missed).append(f"{how} {pattern}")
            if how != "kept":
                meant |= fitting
    drift = [
        name
        for name in (*diff.added, *diff.removed, *diff.changed)
        if name not in meant and not any(fnmatchcase(name, each) for each in expected.allowed)
    ]
    total = len(met) + len(missed) + len(drift)
    reward = len(met) / total if total else 1.0
    counts = {how: float(len(getattr(diff, how))) for how in ("added", "removed", "changed")}
    items = {**counts, "missed": float(len(missed)), "drift": float(len(drift))}
    details = {
        "diff": {how: list(getattr(diff, how)) for how in ("added", "removed", "changed")},
        "missed": missed,
        "drift": drift,
    }
    return signal("memory_updated", Space.MEMORY, reward, {}, details, items)


def _of_task(ctx: Context) -> MemoryExpectation:
    given = ctx.task.metadata.get("memory")
    if given is None:
        raise ConfigError(
            "says nothing of what should become of memory; add it, or give `expected`",
            file=ctx.task.task_id,
            field="metadata.memory",
        )
    try:
        return msgspec.convert(given, MemoryExpectation)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), file=ctx.task.task_id, field="metadata.memory") from None
