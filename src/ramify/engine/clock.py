"""The time that real runs use."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """The machine's time, as a `contracts.context.Clock`.

    `monotonic` and `sleep` are the running event loop's own, so that a loop with virtual time
    (`ramify.testing.sim`) owns every deadline. Both need a running loop.
    """

    def now(self) -> float:
        """UTC seconds since the epoch. For records; it may jump."""
        return time.time()  # noqa: TID251  (this is the Clock that all others are told to use)

    def monotonic(self) -> float:
        """Seconds on the running loop's clock.

        Raises:
            RuntimeError: no event loop is running.
        """
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative time is none."""
        await asyncio.sleep(max(0.0, seconds))
