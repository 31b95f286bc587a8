import asyncio
import json
import logging
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.events import (
    AnyEvent,
    Event,
    LogEvent,
    MetricEvent,
    NodeEvent,
    OutcomeEvent,
    Phase,
    PhaseEvent,
    StatusEvent,
)
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import NodeStatus, Outcome, Step
from ramify.engine.callbacks import CallbackObserver
from ramify.engine.clock import SystemClock
from ramify.engine.observe import FanOut, LoggingObserver, Metrics, RedactingObserver
from ramify.engine.redact import Redactor
from ramify.testing.sim import SimClock, simulate

SECRET = 'p"ä/s\\s\nw€rd😀'


class Seen:
    def __init__(self) -> None:
        self.events: list[AnyEvent] = []

    def emit(self, event: AnyEvent) -> None:
        self.events.append(event)


def log(message: str = "m", **fields: Any) -> LogEvent:
    return LogEvent("r", 1.0, "info", message, fields)


def status(node: int) -> StatusEvent:
    return StatusEvent("r", 1.0, node, NodeStatus.INNER)


def result() -> RolloutResult:
    return RolloutResult("r", "j", "t:1", 0, 1, 0, Outcome.SCORED, "c", 1, reward=1.0)


def test_one_bad_observer_does_not_keep_events_from_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad:
        def emit(self, event: AnyEvent) -> None:
            raise RuntimeError("mine")

    first, last = Seen(), Seen()
    fan = FanOut([first, Bad(), last])
    for node in range(3):
        fan.emit(status(node))
    assert first.events == last.events == [status(0), status(1), status(2)]
    assert [record.message for record in caplog.records] == ["observer Bad failed"]


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        json.dumps(json.dumps({"key": SECRET})),
        json.dumps(json.dumps(json.dumps(SECRET))),
        json.dumps(SECRET).replace("/", "\\/"),
        "".join(f"\\u{ord(c):04X}" if ord(c) < 0x10000 else "\\uD83D\\uDE00" for c in SECRET),
    ],
)
def test_a_secret_is_found_however_json_writes_it(text: str) -> None:
    cleaned = Redactor([SECRET]).text(f"before {text} after")
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    assert cleaned.strip('"\\').count("[redacted]") == 1
    assert "rd" not in cleaned.replace("redacted", "")


@example("00000\\", 2, False)
@given(st.text(min_size=6, max_size=30), st.integers(1, 3), st.booleans())
def test_no_secret_survives_json(secret: str, depth: int, ascii_only: bool) -> None:
    secret = secret.strip()
    assume(len(secret) >= 6 and not any(0xD800 <= ord(c) < 0xE000 for c in secret))

    def wrap(text: str) -> str:
        for _ in range(depth):
            text = json.dumps({"v": text}, ensure_ascii=ascii_only)
        return text

    redactor = Redactor([secret])
    assume(redactor.text(wrap("x")) == wrap("x"))  # not a piece of the wrapping itself
    value: Any = redactor.text(wrap(secret))
    for _ in range(depth):  # still JSON, and the value is the mask
        value = json.loads(value)["v"]
    assert value == "[redacted]"


def test_environment_names_say_what_is_secret() -> None:
    env = {
        "OPENAI_API_KEY": "value-one",
        "PGPASSWORD": "value-two",
        "my_secret": "value-three",
        "HF_TOKEN_2": "value-four",
        "MAX_TOKENS": "100000",
        "KEYBOARD": "value-five",
        "SHORT_KEY": "abc",
        "PATH": "/usr/bin:/bin",
    }
    redactor = Redactor(env=env)
    for name, value in env.items():
        hidden = redactor.text(f"<{value}>") == "<[redacted]>"
        assert hidden == (name in ("OPENAI_API_KEY", "PGPASSWORD", "my_secret", "HF_TOKEN_2")), name


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("key sk-proj-a1b2c3d4e5f6g7h8 end", "key [redacted] end"),
        ("sk-" + "a" * 24, "[redacted]"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [redacted]"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("token ghp_" + "a" * 36, "token [redacted]"),
        ("hf_" + "a" * 34, "[redacted]"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----",
        ),
        # Training data is not to be spoilt: none of these is a credential.
        ("the bearer certificates are old", "the bearer certificates are old"),
        ("pip install sk-learn-contrib", "pip install sk-learn-contrib"),
        ("task-force and risk-assessment-committee", "task-force and risk-assessment-committee"),
        ("high, through, AsiaPacific", "high, through, AsiaPacific"),
    ],
)
def test_shapes_of_credentials(text: str, cleaned: str) -> None:
    assert Redactor().text(text) == cleaned


def test_every_string_of_an_event_is_cleaned_and_nothing_else_touched() -> None:
    secret = "hunter2-hunter2"
    call = ToolCall("1", "bash", json.dumps({"cmd": f"curl -u {secret}"}))
    step = Step(
        (Message("assistant", "ok", (call,)),), action=secret, info={secret: [{"a": secret}]}
    )
    event = NodeEvent(
        "r", 1.0, 1, 0, step, (Message("user", f"use {secret}"), Message("user", "x"))
    )
    seen = Seen()
    RedactingObserver(seen, Redactor([secret])).emit(event)
    [cleaned] = seen.events
    assert isinstance(cleaned, NodeEvent)
    assert secret.encode() not in msgspec.json.encode(cleaned)
    assert msgspec.json.encode(cleaned).count(b"[redacted]") == 5
    assert cleaned.messages[1] is event.messages[1]
    harmless = status(3)
    assert Redactor([secret]).clean(harmless) is harmless


def test_odd_values_in_fields_are_cleaned_too() -> None:
    secret = "hunter2-hunter2"
    cleaned = Redactor([secret]).clean(
        log(a=(1, secret), b={secret}, c=secret.encode(), d=ValueError(secret), e=None, f=1.5)
    )
    assert cleaned.fields == {
        "a": (1, "[redacted]"),
        "b": {"[redacted]"},
        "c": b"[redacted]",
        "d": "[redacted]",
        "e": None,
        "f": 1.5,
    }


async def test_a_hostile_text_does_not_slow_the_redactor_down() -> None:
    redactor = Redactor([SECRET, "another-secret"])
    loop = asyncio.get_running_loop()
    begun = loop.time()
    units = (
        "\\",
        "\\u0070",
        "bearer ",
        "Bearer\t",
        "sk-",
        "sk-a",
        "xoxb-",
        "ghp_",
        "hf_",
        "AIza",
        "AKIA",
        "github_pat_",
        "-----BEGIN PRIVATE KEY-----",
        "private key-----",
        "another-",
    )
    for unit in units:
        redactor.text(unit * (200_000 // len(unit)))
    assert loop.time() - begun < 5


def test_log_lines_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ramify")
    observer = LoggingObserver()
    observer.emit(LogEvent("r-1", 1.0, "warning", "slow start", {"seconds": 3.5, "image": "a b"}))
    observer.emit(
        LogEvent("r-1", 1.0, "info", "x\nERROR forged", {"k": "v\nlevel=error", "a=b": "1"})
    )
    observer.emit(LogEvent("r-1", 1.0, "odd", "m"))
    observer.emit(status(1))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", 'slow start rollout=r-1 seconds=3.5 image="a b"'),
        ("INFO", '"x\\nERROR forged" rollout=r-1 k="v\\nlevel=error" "a=b"=1'),
        ("INFO", "m rollout=r-1"),
    ]
    assert {record.name for record in caplog.records} == {"ramify"}


def test_metrics_add_up() -> None:
    metrics = Metrics()
    for value in (1.0, 2.0, 6.0):
        metrics.emit(MetricEvent("r", 1.0, "model.latency", value, "seconds"))
    metrics.emit(MetricEvent("r", 1.0, "model.latency", 10.0, "count"))
    metrics.emit(PhaseEvent("r", 1.0, Phase.VERIFY))
    metrics.emit(PhaseEvent("r", 1.0, Phase.VERIFY, 0.5))
    for outcome in (Outcome.SCORED, Outcome.SCORED, Outcome.INVALID):
        metrics.emit(OutcomeEvent("r", 1.0, outcome, None, 1))
    report = metrics.report()
    latency = report["model.latency"]
    assert (latency.count, latency.total, latency.least, latency.most) == (3, 9.0, 1.0, 6.0)
    assert latency.mean == 3.0
    assert report["model.latency (count)"].total == 10.0
    assert (report["phase.verify"].count, report["phase.verify"].unit) == (1, "seconds")
    assert (report["outcome.scored"].count, report["outcome.invalid"].count) == (2, 1)


def test_callbacks_get_what_they_ask_for_in_order() -> None:
    got: dict[str, list[Any]] = {name: [] for name in ("all", "some", "two", "results", "every")}

    async def on_all(event: Event) -> None:
        await asyncio.sleep(1)
        got["all"].append(event)

    def on_status(event: StatusEvent) -> None:
        got["some"].append(event.node)

    def on_two(event: StatusEvent | LogEvent) -> None:
        got["two"].append(type(event))

    def on_result(done: RolloutResult) -> None:
        got["results"].append(done.reward)

    def on_everything(**values: Any) -> None:
        got["every"].append(sorted(values))

    async def main() -> None:
        report = Seen()
        callbacks = [on_all, on_status, on_two, on_result, on_everything]
        async with CallbackObserver(callbacks, report, SimClock(), drain_sec=100) as observer:
            for node in range(5):
                observer.emit(status(node))
            observer.emit(log())
            observer.emit(MetricEvent("r", 1.0, "m", 1.0, "count"))
            observer.finished(result())
        assert not report.events

    simulate(main)
    assert [getattr(event, "node", None) for event in got["all"]] == [0, 1, 2, 3, 4, None, None]
    assert got["some"] == [0, 1, 2, 3, 4]
    assert got["two"] == [StatusEvent] * 5 + [LogEvent]
    assert got["results"] == [1.0]
    assert got["every"] == [["event"]] * 7 + [["result"]]


def test_a_failing_callback_is_reported_once_and_disturbs_nothing() -> None:
    good: list[int] = []

    def bad(event: StatusEvent) -> None:
        raise ValueError("broken")

    async def hangs(event: StatusEvent) -> None:
        await asyncio.sleep(1000)

    async def cancels(event: StatusEvent) -> None:
        raise asyncio.CancelledError

    def fine(event: StatusEvent) -> None:
        good.append(event.node)

    async def main() -> None:
        report = Seen()
        callbacks = [bad, hangs, cancels, fine]
        async with CallbackObserver(callbacks, report, SimClock(), call_sec=5) as observer:
            for node in range(3):
                observer.emit(status(node))
        logs = [event for event in report.events if isinstance(event, LogEvent)]
        assert [(event.fields["callback"], event.level) for event in logs] == [
            ("bad", "warning"),
            ("hangs", "warning"),
            ("cancels", "warning"),
        ]
        assert logs[0].fields["error"] == "ValueError: broken"
        assert "within 5 s" in logs[1].fields["error"]

    simulate(main)
    assert good == [0, 1, 2]


async def test_a_callback_that_hangs_in_a_thread_takes_no_other_thread_with_it() -> None:
    """What the loop's own threads do (files, mostly) goes on, and so do the other callbacks."""
    hung: list[int] = []
    good: list[int] = []
    release = threading.Event()

    def hangs(event: StatusEvent) -> None:
        hung.append(event.node)
        release.wait()

    async def fine(event: StatusEvent) -> None:
        good.append(event.node)

    report = Seen()
    observer = CallbackObserver([hangs, fine], report, SystemClock(), call_sec=0.02)
    try:
        async with observer:
            for node in range(40):
                observer.emit(status(node))
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        release.set()
    assert good == list(range(40))
    assert 1 < len(hung) < 20, "it is called again, but not for ever"
    said = [event.message for event in report.events if isinstance(event, LogEvent)]
    assert len(said) == 2
    assert "not called any more" in said[1]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    got: list[int] = []

    async def slow(event: StatusEvent) -> None:
        await asyncio.sleep(1)
        got.append(event.node)

    async def main() -> None:
        report = Seen()
        async with CallbackObserver([slow], report, SimClock(), queue_size=10) as observer:
            for node in range(100):
                observer.emit(status(node))
            for _ in range(100):
                observer.emit(log())  # nobody asked for it, so it is not dropped either
        [event] = report.events
        assert isinstance(event, LogEvent)
        assert event.fields == {"dropped": 90}

    simulate(main)
    assert got == list(range(10))


def test_leaving_does_not_wait_for_ever() -> None:
    async def slow(event: StatusEvent) -> None:
        await asyncio.sleep(20)

    async def main() -> float:
        report = Seen()
        async with CallbackObserver([slow], report, SimClock(), drain_sec=50) as observer:
            for node in range(10):
                observer.emit(status(node))
        assert len(report.events) == 1
        return asyncio.get_running_loop().time()

    assert simulate(main) == 50


async def test_a_callback_that_cannot_be_served_is_refused_at_once() -> None:
    def unknown(what: int) -> None: ...
    def both(event: Event, result: RolloutResult) -> None: ...
    def nothing() -> None: ...

    for callback in (unknown, both, nothing):
        with pytest.raises(ConfigError):
            CallbackObserver([callback], Seen(), SimClock())
    with pytest.raises(UsageError, match="queue_size"):
        CallbackObserver([], Seen(), SimClock(), queue_size=0)
