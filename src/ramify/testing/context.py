"""A Context and a node for trying one plane by itself, in real time.

`fake_context` (testing/fakecontext.py) has a clock that only `sleep` moves, which suits a fake
sandbox. Where something real runs, time has to be real, too: use `make_context`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ramify.contracts.config import RolloutConfig
from ramify.contracts.context import Context
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider
from ramify.contracts.task import Task
from ramify.contracts.tree import NodeStatus, Step
from ramify.testing.fakecontext import FakeRecorder, fake_context


class RealClock:
    """The machine's time. Implements `contracts.context.Clock`."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return datetime.now(UTC).timestamp()

    def monotonic(self) -> float:
        """The event loop's own clock."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def make_context(
    task: Task,
    sandbox: Sandbox | None = None,
    *,
    artifacts: Path,
    provider: SandboxProvider | None = None,
    image: SandboxImage | None = None,
    config: RolloutConfig | None = None,
) -> Context:
    """A Context in real time, whose recorder and observer keep what they are given.

    What was recorded is read with `recorded(ctx)`.
    """
    fake = fake_context(
        task,
        artifacts=artifacts,
        config=config,
        sandbox=sandbox,
        provider=provider,
        image=image,
    )
    return dataclasses.replace(fake, clock=RealClock())


def recorded(ctx: Context) -> list[Step]:
    """The steps that came to the recorder of `make_context`, in order.

    Raises:
        TypeError: the context has another recorder.
    """
    if not isinstance(ctx.recorder, FakeRecorder):
        raise TypeError("recorded() reads the recorder that make_context() made, and no other")
    return ctx.recorder.steps


@dataclass(frozen=True, slots=True)
class ChainNode:
    """A node of a rollout without branches. Implements `contracts.tree.RolloutNode`."""

    id: int
    path: Sequence[ChainNode]
    messages: Sequence[Message]
    step: Step | None = None
    status: NodeStatus = NodeStatus.INNER
    state: str | None = None

    @property
    def depth(self) -> int:
        """Number of steps from the root."""
        return self.id

    @property
    def subtree(self) -> Sequence[ChainNode]:
        """This node alone: what follows it is not kept."""
        return (self,)


def make_node(opening: Sequence[Message] = (), steps: Sequence[Step] = ()) -> ChainNode:
    """The leaf of a chain: `opening` at the root, then one node per step."""
    path: list[ChainNode] = []
    messages = tuple(opening)
    for number, step in enumerate((None, *steps)):
        messages = (*messages, *(step.messages if step else ()))
        earlier: tuple[ChainNode, ...] = tuple(path)
        node = ChainNode(number, earlier, messages, step)
        path.append(dataclasses.replace(node, path=(*earlier, node)))
    return path[-1]
