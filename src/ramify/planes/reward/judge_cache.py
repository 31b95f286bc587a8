"""Verdicts that need no second call: kept by the content of what was asked, in memory or files."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import msgspec

from ramify.contracts.errors import StoreError, UsageError
from ramify.contracts.scratch import Scratch
from ramify.planes.reward.judge_verdict import Verdict

_decoder = msgspec.json.Decoder(Verdict)


class VerdictCache(Protocol):
    """Keeps verdicts by key. Only verdicts: what failed is asked again."""

    async def get(self, key: str) -> Verdict | None:
        """The verdict kept under this key."""
        ...

    async def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict. Raises: StoreError."""
        ...


class MemoryVerdicts:
    """The verdicts asked for last, in memory.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = 10_000) -> None:
        if limit < 1:
            raise UsageError(f"a cache of {limit} verdicts keeps none")
        self._limit = limit
        self._kept: OrderedDict[str, Verdict] = OrderedDict()

    async def get(self, key: str) -> Verdict | None:
        """The verdict kept under this key."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; the one that nobody asked for longest may go."""
        self._kept[key] = verdict
        self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)


class FileVerdicts:
    """Verdicts as files below a directory, one each; several processes may share it.

    A file that cannot be read as a verdict counts as none, and is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def get(self, key: str) -> Verdict | None:
        """The verdict kept under this key. Raises: StoreError."""
        return await asyncio.to_thread(self._read, key)

    async def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, whole or not at all. Raises: StoreError."""
        await asyncio.to_thread(self._write, key, msgspec.json.encode(verdict))

    def _place(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _read(self, key: str) -> Verdict | None:
        try:
            return _decoder.decode(self._place(key).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        except OSError as error:
            raise StoreError(f"{self._place(key)} cannot be read: {error.strerror}") from error

    def _write(self, key: str, data: bytes) -> None:
        place = self._place(key)
        try:
            with Scratch(self._folder) as scratch:
                place.parent.mkdir(exist_ok=True)
                (scratch / place.name).write_bytes(data)
                (scratch / place.name).replace(place)
        except OSError as error:
            raise StoreError(f"{place} cannot be written: {error.strerror}") from error
