"""The engine's own terminal, lent to a person who works in a sandbox's shell."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
import tty
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from ramify.contracts.errors import UsageError
from ramify.contracts.process import PtySize


class Terminal:
    """A terminal in raw mode, by its two descriptors. Use `raw` around `read` and `write`.

    Raises:
        UsageError: `fd_in` is no terminal.
    """

    def __init__(self, fd_in: int = 0, fd_out: int = 1) -> None:
        if not os.isatty(fd_in):
            raise UsageError(
                "the shell agent needs a person at a terminal, and standard input is none; "
                "run it from a terminal, or give it a script (-A script=FILE)"
            )
        self._in, self._out = fd_in, fd_out
        self._keys: asyncio.Queue[bytes] = asyncio.Queue()

    def size(self) -> PtySize:
        """Its size now."""
        rows, cols = termios.tcgetwinsize(self._in)
        return PtySize(rows or 24, cols or 80)

    @asynccontextmanager
    async def raw(self, resized: Callable[[], None]) -> AsyncGenerator[None]:
        """Raw mode; `resized` is called when its size changes. Restored on exit."""
        loop = asyncio.get_running_loop()
        before = termios.tcgetattr(self._in)
        tty.setraw(self._in)
        try:
            loop.add_reader(self._in, self._take)
            loop.add_signal_handler(signal.SIGWINCH, resized)
            yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_reader(self._in)
            with suppress(termios.error):  # It hung up: there is nothing left to restore.
                termios.tcsetattr(self._in, termios.TCSADRAIN, before)

    async def read(self) -> bytes:
        """What was typed; b"" when the terminal is gone."""
        return await self._keys.get()

    async def write(self, data: bytes) -> None:
        """Show bytes, however slow the terminal is."""
        await asyncio.to_thread(_write_all, self._out, data)

    def _take(self) -> None:
        try:
            data = os.read(self._in, 4096)
        except OSError:
            data = b""  # The other end hung up (EIO): that is the end of what is typed.
        if not data:
            asyncio.get_running_loop().remove_reader(self._in)
        self._keys.put_nowait(data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
