"""Watching how much disk a sandbox uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

_INTERVAL_SEC = 0.5
_BLOCK = 512


class DiskWatch:
    """Measures what a sandbox has written twice a second and reports when it is too much.

    A watch, not a quota: between two looks more can be written. Single files are bounded exactly
    (RLIMIT_FSIZE, set by the supervisor).

    Args:
        changes: where what the inside writes is kept.
        limit_bytes: how much they may hold.
    """

    def __init__(self, changes: Sequence[Path], limit_bytes: int) -> None:
        self._changes, self._limit = [str(place) for place in changes], limit_bytes
        self._task: asyncio.Task[None] | None = None
        self.kills = 0

    def start(self, kill: Callable[[], None]) -> None:
        """Watch from now on; `kill` is called when the limit is exceeded (again)."""
        self._task = asyncio.ensure_future(self._watch(kill))

    async def _watch(self, kill: Callable[[], None]) -> None:
        allowed = self._limit
        while True:
            await asyncio.sleep(_INTERVAL_SEC)
            used = await asyncio.to_thread(_used, self._changes)
            if used > allowed:
                self.kills += 1
                kill()
                allowed = used  # what is there may be looked at and deleted; it may not grow
            elif used < self._limit:
                allowed = self._limit

    async def aclose(self) -> None:
        """Stop watching. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None


def _used(places: Sequence[str]) -> int:
    """Bytes allocated below directories that may change meanwhile."""
    total, pending = 0, list(places)
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:  # it was removed, or replaced by something else
            continue
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            total += info.st_blocks * _BLOCK
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return total
