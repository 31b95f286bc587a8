"""Records and a filled job directory for the tests of the store. No tests in here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ramify.contracts.events import AnyEvent, LeaseEvent, NodeEvent
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Outcome, Step
from ramify.engine.reading import JobRecord, Plan
from ramify.engine.store import Store

PLAN = Plan(("set:1", "set:2"), 2, "nop", None, "local", 7)
JOB = JobRecord("job-1", "hash-1", 1.0, PLAN, {"model": {"name": "m"}}, {"ramify": "0"})


def node(rollout: str, number: int, text: str = "text") -> NodeEvent:
    return NodeEvent(rollout, 2.0, number, number - 1, Step((Message("tool", text),)))


def result(
    rollout: str, fence: int, outcome: Outcome = Outcome.SCORED, reward: float | None = 1.0
) -> RolloutResult:
    return RolloutResult(
        rollout, "job-1", "set:1", 0, 1, fence, outcome, "hash-1", 0, reward, finished_at=9.0
    )


def lease(store: Store, rollout: str) -> int:
    fence = store.next_fence()
    store.observer.emit(LeaseEvent(rollout, 1.0, 1, fence, 0))
    return fence


def texts(events: Iterable[AnyEvent]) -> list[str]:
    return [e.step.messages[0].content for e in events if isinstance(e, NodeEvent) and e.step]


async def filled(path: Path, rollouts: int = 3, nodes: int = 4) -> None:
    store = await Store.create_or_open(path, JOB)
    fences = {f"r{number}": lease(store, f"r{number}") for number in range(rollouts)}
    for number in range(nodes):
        for rollout in fences:
            store.observer.emit(node(rollout, number, f"{rollout} {number}"))
    for rollout, fence in fences.items():
        assert await store.record(result(rollout, fence))
    await store.aclose()
