"""How many paths of one rollout may be alive at once: its own place, and what the job can spare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

Extra = Callable[[], AbstractAsyncContextManager[None]]
"""Waits for one more place among those that all rollouts of a job share."""


class Places:
    """The places of one rollout.

    A rollout owns one place, which whoever runs holds; while a path waits for its children it
    holds none, so there is always progress. More children run side by side as `extra` grants.

    Args:
        extra: where further places come from; None: there are as many as anybody wants.
    """

    def __init__(self, extra: Extra | None) -> None:
        self._extra = extra
        self._own = asyncio.Semaphore(1)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Have a place during the body: the rollout's own, or a further one, whichever is first."""
        if self._extra is None:
            yield
            return
        if not self._own.locked():
            async with self._own:
                yield
            return
        first: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done = asyncio.Event()
        waits = [
            asyncio.ensure_future(_stay(place, index, first, done))
            for index, place in enumerate((self._own, self._extra()))
        ]
        try:
            waits[1 - await first].cancel()
            yield
        except BaseException:
            for wait in waits:
                wait.cancel()
            raise
        finally:
            done.set()
            await asyncio.wait(waits)


async def _stay(
    place: AbstractAsyncContextManager[None],
    index: int,
    first: asyncio.Future[int],
    done: asyncio.Event,
) -> None:
    """Take a place, unless the other one came first, and give it back when all is done."""
    try:
        async with place:
            if not first.done():
                first.set_result(index)
                await done.wait()
    except Exception as error:
        if first.done():
            raise
        first.set_exception(error)
