"""Clean-up that is not left half done: what a guarantee "nothing is left behind" rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile, as often as may be.

    For clean-up that must not be left half done; `work` keeps its own deadline. The caller's
    cancellation is raised once `work` has ended, with an error of `work` as its cause.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error  # raised below: first the work ends
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
