"""The monitor: whatever stands in a line, it is scored or reported, in order, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_parts import play

import ramify
from ramify.contracts.errors import ConfigError, InvalidRewardError
from ramify.contracts.messages import Message
from ramify.contracts.reward import Granularity, RewardEvent, Space, VerifyResult
from ramify.edges.inbound.trajectories import TrajectoryReader
from ramify.edges.outbound.tree import export_trees
from ramify.edges.outbound.verifiers import export_verifiers
from ramify.engine.cancel import Cancellation
from ramify.engine.clock import SystemClock
from ramify.engine.observe import FanOut
from ramify.envs.monitor import Monitor, Watched, WatchSummary
from ramify.envs.recorded import Surroundings
from ramify.envs.tail import Line, tail
from ramify.envs.tallies import Tallies


def words(completion: Sequence[Message]) -> float:
    return float(sum(len(m.content.split()) for m in completion if m.role == "assistant"))


def exact(completion: Sequence[Message], answer: Any) -> float:
    return float(completion[-1].content == answer)


def monitor(reward: Any, folder: Path, **options: Any) -> Monitor:
    around = Surroundings(SystemClock(), Cancellation(), FanOut([]))
    return Monitor(TrajectoryReader().read, reward, around, folder, **options)


async def lines_of(*contents: bytes) -> AsyncGenerator[Line]:
    for number, content in enumerate(contents, 1):
        yield Line(number, content)


async def watch(reward: Any, folder: Path, *records: Any) -> list[Watched]:
    contents = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    found: list[Watched] = []
    async for some in monitor(reward, folder).watch(lines_of(*contents)):
        found += some
    return found


def talk(says: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": says}]
    return {"messages": messages, **more}


async def test_a_plain_trajectory_is_scored_with_what_is_known(tmp_path: Path) -> None:
    rubric = ramify.Rubric([exact, words], [1.0, 0.0], columns=("level",))
    rubric.add(lambda level: float(level), 0.0, name="level")
    (one,) = await watch(rubric, tmp_path, talk("yes", answer="yes", info={"level": 3}))
    assert one == Watched(
        line=1, reward=1.0, task_id="stream:line-1", leaf=1, rewards={"output": 5 / 3},
        items={"exact": 1.0, "words": 1.0, "level": 3.0},
    )  # fmt: skip


async def test_our_own_exports_score_as_they_did(tmp_path: Path) -> None:
    def depth(node: Any) -> float:
        return float(node.depth)

    rubric = ramify.Rubric([words, depth], name="core")
    report = await play(tmp_path / "job", rubric)
    before = {one.rollout_id: one.reward for one in report.results}
    for export in (export_verifiers, export_trees):
        found = await watch(rubric, tmp_path, *export(tmp_path / "job"))
        assert {one.tree_id: one.reward for one in found} == before
        assert all(one.recorded == one.reward == 4.0 for one in found)
        assert {one.task_id for one in found} == {"set:a", "set:b"}


async def test_a_tree_gives_a_line_for_each_leaf(tmp_path: Path) -> None:
    def node(number: int, parent: int, text: str, **more: Any) -> dict[str, Any]:
        said = [{"role": "assistant", "content": text}] if text else []
        return {"node": number, "parent": parent, "messages": said, **more}

    record = {
        "task_id": "set:a",
        "tree_id": "t",
        "prompt": [{"role": "user", "content": "?"}],
        "nodes": [
            node(0, -1, ""),
            node(1, 0, "so"),
            node(2, 1, "yes it is", status="scored", reward=0.5),
            node(3, 1, "no", status="agent_error"),
            node(4, 1, "lost", status="infra_error"),
        ],
    }

    def best(completions: Sequence[Sequence[Message]]) -> list[float]:
        counts = [words(one) for one in completions]
        return [float(count == max(counts)) for count in counts]

    found = await watch(ramify.Rubric([best]), tmp_path, record)
    assert [(one.leaf, one.reward, one.skipped) for one in found] == [
        (2, 1.0, ""),
        (3, 0.0, ""),
        (4, None, "infra_error"),
    ]
    assert found[0].recorded == 0.5
    summary = WatchSummary()
    summary.add(found)
    assert (summary.scored, summary.skipped, summary.whole) == (2, 1, True)


async def test_liberties_of_other_recorders(tmp_path: Path) -> None:
    call = {"id": 1, "function": {"name": "look", "arguments": {"at": "x"}}}
    record = {
        "prompt": "What is it?",
        "completion": [
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
            {"role": "tool", "content": [{"type": "text", "text": "a "}, "cat"]},
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        ],
        "reward": 0.25,
        "task": "animals",
    }
    seen: list[Any] = []

    def look(prompt: Any, completion: Any, path: Any, task: Any) -> float:
        seen.append((prompt, completion, path, task))
        return 1.0

    (one,) = await watch(ramify.Rubric([look]), tmp_path, record)
    assert (one.reward, one.recorded) == (1.0, 0.25)
    prompt, completion, path, task = seen[0]
    assert prompt == [Message("user", "What is it?")]
    assert completion[0].tool_calls[0].arguments == '{"at":"x"}'
    assert (completion[0].reasoning, completion[1].content) == ("hm", "a cat")
    assert [node.step.action for node in path[1:]] == ["look", ""]
    assert task.task_id == "stream:animals"


BAD = [
    b'{"messages": [',
    b"[1, 2]",
    b"\xff\xfe",
    b"{}",
    b'{"messages": []}',
    b'{"messages": 5}',
    b'{"messages": [5]}',
    b'{"messages": [{"role": "king", "content": "x"}]}',
    b'{"messages": [{"role": "assistant", "tool_calls": [{}]}]}',
    b'{"messages": [{"role": "assistant", "tool_calls": 5}]}',
    b'{"nodes": []}',
    b'{"nodes": [{"node": 0}, {"node": 1, "parent": 7}]}',
    b'{"nodes": [{"node": 3}]}',
    b"[" * 100_000,
]
STRANGE = [
    b'{"messages": "a text", "reward": 1%s}' % (b"0" * 400),
    b'{"messages": [{"role": "user", "content": "only asked"}], "leaf_id": true}',
    b'{"prompt": null, "completion": null, "info": 5, "task": {"a": 1}}',
]


async def test_a_line_that_holds_nothing_is_reported_and_counted(tmp_path: Path) -> None:
    good = json.dumps(talk("yes")).encode()
    contents = [line for bad in BAD for line in (bad, good)]
    found = await watch(ramify.Rubric([words]), tmp_path, *contents)
    assert [one.line for one in found] == list(range(1, 2 * len(BAD) + 1))
    assert all(bool(one.problem) == (one.line % 2 == 1) for one in found)
    assert all((one.reward is None) == bool(one.problem) for one in found)
    summary = WatchSummary()
    for one in found:
        summary.add([one])
    assert (summary.bad, summary.scored, summary.whole) == (len(BAD), len(BAD), False)


@given(st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "nodes", "completion", "prompt", "role", "content", "info",
                         "tool_calls", "function", "name", "task_id", "parent", "node", "reward",
                         "answer", "kind", "prior", "status", "leaf_id", "stop_condition"]),
        inner, max_size=4,
    ),
    max_leaves=25,
))  # fmt: skip
def test_no_line_ends_the_stream(record: Any) -> None:
    line = Line(1, json.dumps(record).encode())
    try:
        found = TrajectoryReader().read(line)
    except (ramify.UsageError, ValueError, TypeError, KeyError):
        return
    assert all(0 <= leaf < len(found.tree) for leaf in found.leaves)


async def test_rewards_by_space_steps_and_suspicion(tmp_path: Path) -> None:
    def spaces(node: Any) -> VerifyResult:
        events = (
            RewardEvent("done", 1.0, Space.OUTPUT),
            RewardEvent("honest", 0.0, Space.ACTION),
            RewardEvent("right", 0.5, Space.ACTION, Granularity.STEP, 1),
        )
        return VerifyResult(1.0, events=events, details={"suspect": ["output 1, action 0"]})

    def tampered(completion: Any) -> float:
        raise InvalidRewardError("tampered", "the log was rewritten")

    (one,) = await watch(ramify.Rubric([spaces]), tmp_path, talk("x"))
    assert one.rewards == {"output": 1.0, "action": 0.0}
    assert [(step.node, step.value) for step in one.steps] == [(1, 0.5)]
    assert one.suspect == ("output 1, action 0", "action")
    (two,) = await watch(ramify.Rubric([tampered]), tmp_path, talk("x"))
    assert two.reward is None
    assert "the log was rewritten" in two.suspect[0]
    summary = WatchSummary()
    summary.add([one])
    summary.add([two])
    assert (summary.suspect, summary.unscored) == (2, 1)


async def test_spaces_that_disagree_are_an_alert(tmp_path: Path) -> None:
    def honest(completion: Sequence[Message]) -> float:
        return float("rm -rf tests" not in completion[-1].content)

    rubric = ramify.Rubric([lambda completion: 1.0], name="core")
    rubric.add(honest, 0.0, space=Space.ACTION)
    found = await watch(rubric, tmp_path, talk("make test"), talk("rm -rf tests; make test"))
    assert [one.suspect for one in found] == [(), ("action",)]
    assert [one.items["suspect"] for one in found] == [0.0, 1.0]


async def test_a_failing_function_is_an_error_of_its_line(tmp_path: Path) -> None:
    def picky(completion: Sequence[Message]) -> float:
        if completion[-1].content == "boom":
            raise RuntimeError("no")
        return 1.0

    def live(ctx: ramify.Context) -> float:
        return float(ctx.sandbox.id)  # type: ignore[union-attr, arg-type]  (there is none)

    found = await watch(ramify.Rubric([picky]), tmp_path, talk("a"), talk("boom"), talk("b"))
    assert [one.reward for one in found] == [1.0, None, 1.0]
    assert "RuntimeError: no" in found[1].errors["picky"]
    (one,) = await watch(ramify.Rubric([live]), tmp_path, talk("a"))
    assert "there is no sandbox" in one.errors["live"]


async def test_order_and_memory_are_kept_whatever_takes_long(tmp_path: Path) -> None:
    begun: list[int] = []
    go_on, all_begun = asyncio.Event(), asyncio.Event()

    async def first_is_slow(completion: Sequence[Message]) -> float:
        number = int(completion[-1].content)
        begun.append(number)
        if len(begun) == 4:
            all_begun.set()
        if number == 0:
            await go_on.wait()
        return float(number)

    read = 0

    async def endless() -> AsyncGenerator[Line]:
        nonlocal read
        while True:
            yield Line(read + 1, json.dumps(talk(str(read))).encode())
            read += 1
            await asyncio.sleep(0)

    watching = monitor(ramify.Rubric([first_is_slow]), tmp_path, concurrency=4)
    found: list[float | None] = []
    async with aclosing(watching.watch(endless())) as stream:
        first = asyncio.ensure_future(anext(stream))
        await all_begun.wait()
        await asyncio.sleep(0.05)
        assert read <= 9, "no more is read than can be scored"
        go_on.set()
        found += [one.reward for one in await first]
        async for some in stream:
            found += [one.reward for one in some]
            if len(found) == 20:
                break
    assert found == [float(n) for n in range(20)]


# Where lines come from


async def read_all(place: Path | str, **options: Any) -> list[Line]:
    return [line async for line in tail(str(place), Cancellation(), **options)]


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=8),
       st.booleans())  # fmt: skip
def test_every_line_comes_once_with_its_number(tmp_path_factory: Any, pieces: list[bytes],
                                               ended: bool) -> None:  # fmt: skip
    file = tmp_path_factory.getbasetemp() / "lines"
    file.write_bytes(b"\n".join(pieces) + (b"\n" if ended and pieces else b""))
    found = asyncio.run(read_all(file))
    assert [(line.number, line.content) for line in found] == [
        (n, piece) for n, piece in enumerate(pieces, 1) if piece.strip()
    ]
    if found and not ended and pieces[-1].strip():
        assert found[-1].torn


async def test_a_line_too_long_is_a_problem_and_not_held(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"short\n" + b"x" * 5_000_000 + b"\nshort\n" + b"y" * 2_000)
    found = await read_all(file, max_line=1_000)
    assert [(line.number, line.content, bool(line.problem)) for line in found] == [
        (1, b"short", False),
        (2, b"", True),
        (3, b"short", False),
        (4, b"", True),
    ]


async def test_a_growing_file_is_followed_through_its_replacement(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"one\nhal")
    scope = Cancellation()
    async with aclosing(tail(str(file), scope, follow=True)) as lines:
        assert (await anext(lines)).content == b"one"
        with file.open("ab") as more:
            more.write(b"f\n")
        assert await anext(lines) == Line(2, b"half")
        new = tmp_path / "new"
        new.write_bytes(b"three\n")
        os.replace(new, file)
        assert await anext(lines) == Line(3, b"three")
        file.write_bytes(b"4\n")
        assert await anext(lines) == Line(4, b"4")
        waiting = asyncio.ensure_future(anext(lines, None))
        await asyncio.sleep(0.01)
        scope.cancel("enough")
        assert await waiting is None


async def test_a_pipe_is_read_without_holding_up_anything(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    scope = Cancellation()
    async with aclosing(tail(str(pipe), scope)) as lines:
        coming = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0.02)
        assert not coming.done(), "nobody writes yet, and the loop runs on"
        with await asyncio.to_thread(pipe.open, "wb", 0) as end:
            end.write(b"one\ntw")
            assert (await coming).content == b"one"
            end.write(b"o")
        assert await anext(lines) == Line(2, b"two", torn=True)


@pytest.mark.parametrize("what", ["missing", "."])
async def test_what_cannot_be_read_is_said(what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        await read_all(tmp_path / what)


def test_means_and_intervals_without_keeping_values() -> None:
    tallies = Tallies()
    for value in (1.0, 2.0, 3.0, 4.0):
        tallies.add({"a": value, "b": None}, {"c": "no"})
    a, b, c = tallies
    assert (a.count, a.mean, a.errors) == (4, 2.5, 0)
    # t(0.975, 3) = 3.18245, s = 1.29099, so half the interval is 2.05426
    assert a.low == pytest.approx(2.5 - 2.05426, abs=1e-4)
    assert a.high == pytest.approx(2.5 + 2.05426, abs=1e-4)
    assert (b.count, b.mean) == (0, None)
    assert (c.count, c.errors) == (0, 4)


async def test_strange_lines_are_trajectories_all_the_same(tmp_path: Path) -> None:
    def speechless(completion: Any) -> float:
        raise OSError("no such file: \udcff")

    found = await watch(ramify.Rubric([speechless], [0.0]), tmp_path, *STRANGE)
    assert [one.reward for one in found] == [0.0, 0.0, 0.0]
    assert all(msgspec.json.encode(one) for one in found)
