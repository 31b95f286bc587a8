"""Lines of a file or a pipe as they come, read beside the event loop."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ramify.contracts.context import CancelScope
from ramify.contracts.errors import ConfigError

STANDARD_INPUT = "-"
MAX_LINE = 64 << 20
_CHUNK = 1 << 20
_PIPE_CHUNKS = 8
_LOOK_AGAIN_SEC = 0.25


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its newline. `number` counts from 1.

    `problem` says why there is no content to speak of; `torn`: the newline is missing.
    """

    number: int
    content: bytes
    torn: bool = False
    problem: str = ""


async def tail(
    place: str, cancel: CancelScope, *, follow: bool = False, max_line: int = MAX_LINE
) -> AsyncGenerator[Line]:
    """Lines of a file, in order, until its end; with `follow` until `cancel` says so.

    A file that is followed and replaced or cut is read anew from its beginning. No more than a line
    and a few chunks are held in memory: a line that is longer than `max_line` bytes is given as a
    problem. Empty lines are counted and left out.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    splitter = _Splitter(max_line)
    source = _file(place, cancel, follow) if _is_file(place) else _pipe(place, cancel)
    async with aclosing(source) as chunks:
        async for chunk in chunks:
            for line in splitter.rest() if chunk is None else splitter.feed(chunk):
                yield line
    for line in splitter.rest():
        yield line


@dataclass(slots=True)
class _Splitter:
    """Cuts bytes into lines."""

    limit: int
    number: int = 0
    _held: bytearray = field(default_factory=bytearray)
    _dropping: bool = False

    def feed(self, chunk: bytes) -> list[Line]:
        found: list[Line] = []
        *whole, left = chunk.split(b"\n")
        for piece in whole:
            self._hold(piece)
            found += self._take(torn=False)
        self._hold(left)
        return found

    def rest(self) -> list[Line]:
        """What is left where the input ends."""
        return self._take(torn=True) if self._held or self._dropping else []

    def _hold(self, piece: bytes) -> None:
        if self._dropping:
            return
        self._held += piece
        if len(self._held) > self.limit:
            self._held, self._dropping = bytearray(), True

    def _take(self, *, torn: bool) -> list[Line]:
        self.number += 1
        content, dropped = bytes(self._held), self._dropping
        self._held, self._dropping = bytearray(), False
        if dropped:
            return [Line(self.number, b"", torn, f"is longer than {self.limit} bytes")]
        return [Line(self.number, content, torn)] if content.strip() else []


def _is_file(place: str) -> bool:
    """Whether it is a regular file. Raises ConfigError where there is nothing to read."""
    if place == STANDARD_INPUT:
        return False
    try:
        mode = os.stat(place).st_mode
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=place) from None
    if stat.S_ISDIR(mode):
        raise ConfigError("is a directory; name a file of JSON lines", file=place)
    return stat.S_ISREG(mode)


def _open(place: str) -> BinaryIO:
    try:
        return Path(place).open("rb", buffering=0)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=place) from None


async def _file(place: str, cancel: CancelScope, follow: bool) -> AsyncGenerator[bytes | None]:
    """Bytes of a regular file; None where another one took its place."""
    file = await asyncio.to_thread(_open, place)
    try:
        while not cancel.cancelled:
            if chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk
                continue
            if not follow:
                return
            if await asyncio.to_thread(_replaced, place, file):
                file.close()
                file = await asyncio.to_thread(_open, place)
                yield None
                continue
            try:
                async with asyncio.timeout(_LOOK_AGAIN_SEC):
                    await cancel.wait()
            except TimeoutError:
                continue
    finally:
        file.close()


def _replaced(place: str, file: BinaryIO) -> bool:
    """Whether another file stands there, or the same one was cut."""
    try:
        there = os.stat(place)
    except FileNotFoundError:
        return False  # between being moved away and made anew
    ours = os.fstat(file.fileno())
    if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        return True
    return there.st_size < file.tell()


async def _pipe(place: str, cancel: CancelScope) -> AsyncGenerator[bytes | None]:
    """Bytes of standard input, or of a pipe with a name, until its other end is closed.

    They are read by a thread of its own: nothing can interrupt it while it waits, so at the end it
    is left waiting and goes with the process.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue(_PIPE_CHUNKS)
    reading = threading.Thread(
        target=_read_on, args=(place, loop, queue), name=f"reader of {place}", daemon=True
    )
    reading.start()
    stopped = asyncio.ensure_future(cancel.wait())
    try:
        while True:
            coming = asyncio.ensure_future(queue.get())
            await asyncio.wait({coming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return
            chunk = coming.result()
            if isinstance(chunk, OSError):
                raise ConfigError(f"cannot be read: {chunk.strerror}", file=place)
            if not chunk:
                return
            yield chunk
    finally:
        stopped.cancel()


def _read_on(
    place: str, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[bytes | OSError]
) -> None:
    chunk: bytes | OSError = b"?"
    try:
        handle = 0 if place == STANDARD_INPUT else os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        while chunk:
            chunk = os.read(handle, _CHUNK)
            asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
    except OSError as error:
        asyncio.run_coroutine_threadsafe(queue.put(error), loop).result()
    except RuntimeError:
        return  # the loop is closed: nobody reads any more
