"""An agent's turn as a task, which can wait between two steps while a checkpoint is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ramify.contracts.agent import Session, StopReason
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import AgentTimeoutError
from ramify.kernel.phases import Phases
from ramify.kernel.policy import Fork, Keep

Work = Coroutine[Any, Any, StopReason]


class Turn:
    """The turn of one path: none at first, and at most one at a time."""

    def __init__(self) -> None:
        self._task: asyncio.Task[StopReason] | None = None
        self._asked: asyncio.Future[Fork | Keep] | None = None

    async def until_asked(self, work: Work, seconds: float) -> Fork | Keep | None:
        """Start a turn and let it work until it has ended (None), or `wait` asks for a checkpoint.

        Whatever this raises, the turn is still there: `stop` it.

        Raises: AgentTimeoutError.
        """
        asked = self._asked = asyncio.get_running_loop().create_future()
        task = self._task = asyncio.create_task(work)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            if not scope.expired():
                raise
            raise AgentTimeoutError(f"the agent did not finish within {seconds:g} s") from None
        return asked.result() if asked.done() else None

    async def wait(self, asked: Fork | Keep) -> None:
        """Called within the turn: ask for a checkpoint, and wait here until that ends the turn."""
        if self._asked is not None:
            self._asked.set_result(asked)
            await asyncio.Event().wait()

    def ended(self) -> None:
        """Be done with a turn that has ended. Raises what the agent raised."""
        task, self._task = self._task, None
        assert task is not None
        task.result()

    async def stop(self, phases: Phases, session: Session | None) -> None:
        """End the turn, if one runs or waits; what follows may free its sandbox."""
        task, self._task, self._asked = self._task, None, None  # so that it does not wait again
        if task is not None:
            await uninterrupted(_end(task, phases, session))


async def _end(task: asyncio.Task[StopReason], phases: Phases, session: Session | None) -> None:
    task.add_done_callback(_seen)
    if not task.done():
        task.cancel()

        async def ended() -> None:
            await asyncio.wait({task})

        await phases.clean("turn", ended)
    if session is not None:
        await phases.clean("turn", session.cancel)


def _seen(task: asyncio.Task[StopReason]) -> None:
    if not task.cancelled():
        task.exception()  # whatever it was: the turn is of no use any more
