"""The engine's end of its reaper (reaper.py): started with the engine, told when all is well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

from ramify.contracts.errors import SandboxStartError

_REAPER = Path(__file__).with_name("reaper.py")
_END_SEC = 10.0


class Watchdog:
    """A process that removes this engine's containers if the engine dies.

    Args:
        address: of the daemon.
        engine: the engine's id, as its containers are labelled.

    Raises:
        SandboxStartError: it cannot be started.
    """

    def __init__(self, address: str, engine: str) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_REAPER), str(read_end), address, engine],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(read_end,),
                start_new_session=True,  # an interrupt at the terminal is not meant for it
                cwd="/",
            )
        except OSError as error:
            os.close(self._write_end)
            raise SandboxStartError(f"cannot start the container watchdog: {error}") from error
        finally:
            os.close(read_end)

    async def aclose(self) -> None:
        """All containers are gone: let it end, and wait for that. Idempotent."""
        if self._write_end < 0:
            return
        with contextlib.suppress(BrokenPipeError):  # killed by somebody: nothing is left to do
            os.write(self._write_end, b"x")
        os.close(self._write_end)
        self._write_end = -1
        await asyncio.to_thread(self._process.wait, _END_SEC)
