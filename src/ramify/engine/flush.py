"""Making files durable that others wrote: all of a file system at once.

A rollout leaves hundreds of small files behind. Syncing each costs a flush of the disk per file
(half a second for 300), and needs the right to open what an agent made; one syncfs(2) costs about
as much as the sync of one file, and whoever asks meanwhile shares the next.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import StoreError


def sync_file_system(handle: int) -> None:
    """Write out the whole file system that an open file is on. Blocks. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).syncfs(handle):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Flusher:
    """Makes what was written below a directory durable; for use on one event loop.

    After a failure every call fails: the kernel forgets pages that it could not write, and whose
    they were is not known.

    Args:
        path: the directory.
        sync: writes out the file system of an open directory. Blocks; raises OSError.
    """

    def __init__(self, path: Path, sync: Callable[[int], None] = sync_file_system) -> None:
        self._path = path
        self._sync = sync
        # Held open: the kernel reports each failed write to those who had a file open by then.
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._turn = asyncio.Lock()
        self._asked = 0
        self._done = 0
        self._failure = ""

    async def flush(self) -> None:
        """Return when all that was written before will survive a power failure.

        Raises: StoreError.
        """
        self._asked = mine = self._asked + 1
        async with self._turn:
            if self._done < mine and not self._failure:
                asked = self._asked
                try:
                    await uninterrupted(asyncio.to_thread(self._sync, self._handle))
                except OSError as error:
                    self._failure = error.strerror or str(error)
                self._done = asked
        if self._failure:
            raise StoreError(
                f"{self._path}: files could not be written to the disk ({self._failure}); mend "
                "that and run the same command again: what was acknowledged is safe"
            )

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of the directory. Idempotent."""
        async with self._turn:
            self.close()

    def close(self) -> None:
        """Let go of the directory, with nothing under way. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
