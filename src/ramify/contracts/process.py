"""A running command in a sandbox: its streams, its end, and why it ended."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


class PtySize(msgspec.Struct, frozen=True):
    """Size of a pseudo-terminal in characters."""

    rows: int = 24
    cols: int = 80


class Process(Protocol):
    """A running command with streams. Close it with `aclose` (or let the sandbox's end do it).

    Guarantees: reads never lose bytes and apply backpressure to the process; `wait` depends on
    the process, never on its pipes; after `aclose` nothing that the command started is alive,
    whatever session or process group it moved to.
    """

    @property
    def pid(self) -> int:
        """Process id as the inside sees it."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to standard input. Raises BrokenPipeError when the process closed it."""
        ...

    async def close_stdin(self) -> None:
        """Send end of file. Idempotent."""
        ...

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard output (or of the terminal); b"" at the end."""
        ...

    async def read_err(self, max_bytes: int = 65536) -> bytes:
        """Next bytes of standard error; b"" at the end, at once under a terminal."""
        ...

    async def resize(self, size: PtySize) -> None:
        """Change the terminal's size. No effect without a terminal."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        ...

    async def wait(self) -> int:
        """Exit code (128+n for signal n). Raises SandboxLostError if the sandbox ends first."""
        ...

    async def aclose(self) -> None:
        """Kill what is left of the command, all descendants included, and free its streams."""
        ...


class Usage(msgspec.Struct, frozen=True):
    """What a command and everything it started used, as the kernel counted it at their ends.

    `cpu_ms` is CPU time of user and system, in milliseconds. `peak_rss` is what the largest single
    process of it held in memory at most, in bytes; None where that is less than `least_rss`, the
    bytes that starting a process takes. Processes whose parent ignores SIGCHLD are not in it.
    """

    cpu_ms: int
    peak_rss: int | None
    least_rss: int


@runtime_checkable
class KnowsUsage(Protocol):
    """A `Process` that can tell what it used."""

    @property
    def usage(self) -> Usage | None:
        """Once `aclose` has returned: what all of it used; None where that was lost."""
        ...


@runtime_checkable
class KnowsMemory(Protocol):
    """A `Process` that can tell why it was killed."""

    @property
    def oom_killed(self) -> bool:
        """Once `wait` has returned: whether the kernel killed something of it for memory."""
        ...
