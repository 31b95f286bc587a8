"""The conversation of an agent that grades, kept beside the rollout instead of in its tree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

import msgspec

from ramify.contracts.messages import Message, Usage
from ramify.contracts.tree import Step


class TranscriptRecorder:
    """Writes steps to a file of JSON lines. Implements `contracts.context.Recorder`.

    Each step stands in the file before the agent goes on. What an earlier grader wrote is gone.

    Attributes:
        count: steps so far.
        used: what their model calls cost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.count = 0
        self.used = Usage()

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        """Write what opens the conversation. Raises: OSError."""
        await self._write({"opening": messages})

    async def step(self, step: Step) -> int:
        """Write a step; returns its number, from 1. Raises: OSError."""
        self.count += 1
        if step.usage is not None:
            self.used += step.usage
        await self._write({"step": step})
        return self.count

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            await asyncio.to_thread(file.close)

    async def _write(self, record: object) -> None:
        if self._file is None:
            self._file = await asyncio.to_thread(_fresh, self._path)
        line = msgspec.json.encode(record) + b"\n"
        await asyncio.to_thread(_append, self._file, line)


def _fresh(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _append(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()
