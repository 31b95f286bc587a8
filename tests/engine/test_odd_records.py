"""Whatever a hostile inside puts into a record, the record is kept and the file stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from job_records import JOB, lease, result

from ramify.contracts.events import LeaseEvent, LogEvent, NodeEvent, StatusEvent
from ramify.contracts.messages import Message
from ramify.contracts.plain import TOO_DEEP, encoded, plain
from ramify.contracts.tree import NodeStatus, Step
from ramify.engine.observe import RedactingObserver
from ramify.engine.reading import read_events
from ramify.engine.redact import Redactor
from ramify.engine.store import Store
from ramify.testing.fakecontext import FakeObserver


class Evil:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


ODD: dict[str, Any] = {
    "deep": nested(600),
    "deeper": nested(100_000),
    "keys": {(1, 2): {None: object()}},
    "lone": {"\ud800": ["\udfff"]},
    "evil": Evil(),
    "large": -(1 << 70),
    "bytes": b"\xff",
}


@pytest.mark.parametrize("kind", ODD)
async def test_an_odd_value_is_recorded_and_spoils_nothing(tmp_path: Path, kind: str) -> None:
    store = await Store.create_or_open(tmp_path / "job", JOB)
    fence = lease(store, "r")
    store.observer.emit(LogEvent("r", 1.0, "info", kind, {"value": ODD[kind]}))
    store.observer.emit(LogEvent("r", 1.0, "info", "after"))
    assert await store.record(result("r", fence))
    await store.aclose()
    logs = [e for e in read_events(tmp_path / "job", "r") if isinstance(e, LogEvent)]
    assert [e.message for e in logs] == [kind, "after"]


@pytest.mark.parametrize("kind", ODD)
def test_the_redactor_never_raises(kind: str) -> None:
    seen = FakeObserver()
    event = LogEvent("r", 1.0, "info", "m", {"value": ODD[kind], "key": "top-secret"})
    RedactingObserver(seen, Redactor(["top-secret"])).emit(event)
    (got,) = seen.events
    assert isinstance(got, LogEvent)
    assert got.fields["key"] == "[redacted]"


def test_plain_keeps_what_json_can_hold() -> None:
    value = {"a": [1, 2.5, None, True, "x", {"b": Step(action="y", info={"c": "d"})}]}
    assert msgspec.json.encode(plain(value)) == msgspec.json.encode(value) == encoded(value)
    assert TOO_DEEP in repr(plain(nested(100)))


async def test_a_secret_that_is_an_ordinary_word_leaves_records_what_they_are(
    tmp_path: Path,
) -> None:
    """POSTGRES_PASSWORD=postgres, and a task whose name begins with that word."""
    env = {"POSTGRES_PASSWORD": "postgres", "A_TOKEN": "scored", "B_KEY": "system"}
    redactor = Redactor(env=env)
    store = await Store.create_or_open(tmp_path / "job", JOB)
    observer = RedactingObserver(store.observer, redactor)
    rollout, fence = "postgres-up-1", store.next_fence()
    observer.emit(LeaseEvent(rollout, 1.0, 1, fence, 0))
    step = Step((Message("system", "log in with postgres"),))
    observer.emit(NodeEvent(rollout, 2.0, 1, 0, step))
    observer.emit(StatusEvent(rollout, 2.0, 1, NodeStatus.SCORED))
    assert await store.record(redactor.clean(result(rollout, fence))), "it counts"
    await store.aclose()
    events = list(read_events(tmp_path / "job", rollout))
    assert [e.status for e in events if isinstance(e, StatusEvent)] == [NodeStatus.SCORED]
    (taken,) = [e.step for e in events if isinstance(e, NodeEvent)]
    assert taken is not None
    assert taken.messages == (Message("system", "log in with [redacted]"),)
