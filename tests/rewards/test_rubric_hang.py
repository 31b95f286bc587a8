"""Rubrics whose functions hang, block, or will not be stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import pytest

from ramify import Rubric
from ramify.contracts.context import Context
from ramify.contracts.messages import Message
from ramify.contracts.task import Task
from ramify.contracts.tree import Step
from ramify.planes.reward import calling
from ramify.testing.context import make_context, make_node
from ramify.testing.sim import simulate


@pytest.fixture
def ctx(tmp_path) -> Context:
    return make_context(Task("set:one", "6*7?", target="42"), artifacts=tmp_path)


@pytest.fixture
def gate():
    """Functions that wait for it hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def leaf(text: str):
    return make_node([Message("user", "6*7?")], [Step((Message("assistant", text),))])


def functions(gate: threading.Event) -> list[Callable]:
    """One of each kind; what the agent said decides which of them goes wrong."""

    def right(completion, answer):
        return float(completion[-1].content == answer)

    def raising(completion):
        if completion[-1].content == "raise":
            raise ValueError("cannot read it")
        return 1.0

    def hanging(completion):
        if completion[-1].content == "hang":
            gate.wait()
        return 1.0

    async def waiting(completion):
        if completion[-1].content == "wait":
            await asyncio.Event().wait()
        return 1.0

    def nan(completion):
        return float("nan") if completion[-1].content == "nan" else 1.0

    def blocking():
        time.sleep(0.1)
        return 1.0

    def shortest(completions):
        lengths = [len(completion[-1].content) for completion in completions]
        return [float(length == min(lengths)) for length in lengths]

    return [right, raising, hanging, waiting, nan, blocking, shortest]


async def watch(lags: list[float]) -> None:
    """Note by how much the loop is late, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        lags.append(loop.time() - due)


async def test_each_rollout_gets_what_it_should(ctx, gate):
    """The acceptance line: raising, hanging, NaN, blocking and group functions in one rubric."""
    funcs = functions(gate)
    names = {function.__name__ for function in funcs}
    rubric = Rubric(funcs, [1, 1, 1, 1, 1, 1, 0.5], timeout_sec=1.0)
    answers = ["42", "raise", "hang", "wait", "nan", *["41"] * 7]
    broken = {"raise": "raising", "hang": "hanging", "wait": "waiting", "nan": "nan"}
    nodes = [leaf(text) for text in answers]

    lags: list[float] = []
    watcher = asyncio.create_task(watch(lags))
    singles = [asyncio.create_task(rubric.score(node, ctx)) for node in nodes]
    await asyncio.wait(singles)
    grouped = await rubric.score_group(nodes, [ctx] * len(nodes))
    watcher.cancel()

    for text, task, whole in zip(answers, singles, grouped, strict=True):
        single = task.result()
        assert single.details == {"pending": ["shortest"]}
        failed = {broken[text]} if text in broken else set()
        assert set(single.errors) == set(whole.errors) == failed
        assert set(single.items) == names - failed - {"shortest"}
        assert set(whole.items) == names - failed
        total = None if failed else 5.0 + (text == "42")
        assert single.reward == total
        assert whole.reward == (None if total is None else total + 0.5)
    # Two seconds of hanging and blocking: had anything held the loop, it could not have ticked.
    assert len(lags) > 20
    print(f"loop lag p99 {sorted(lags)[int(len(lags) * 0.99)] * 1000:.1f} ms of {len(lags)}")


async def test_a_hanging_function_is_written_off_and_reported(ctx, gate):
    rubric = Rubric([lambda: gate.wait()], timeout_sec=0.05)
    first = await rubric.score(leaf("x"), ctx)
    second = await rubric.score(leaf("x"), ctx)
    assert first.reward is None
    assert "no result within 0.05 s" in first.errors["<lambda>"]
    assert "written off (1 so far)" in first.errors["<lambda>"]
    assert "written off (2 so far)" in second.errors["<lambda>"]


async def test_threads_that_are_written_off_are_bounded_and_given_back(ctx, gate, monkeypatch):
    monkeypatch.setattr(calling, "_MAX_WRITTEN_OFF", 2)

    def fn(completion):
        if completion[-1].content == "hang":
            gate.wait()
        return 1

    rubric = Rubric([fn], timeout_sec=0.05)
    for _ in range(2):
        await rubric.score(leaf("hang"), ctx)
    refused = await rubric.score(leaf("x"), ctx)
    assert refused.errors == {"fn": "TooManyHangError: not called: 2 earlier calls still hang"}
    gate.set()
    async with asyncio.timeout(60):
        # No event tells that a thread has ended.
        while (result := await rubric.score(leaf("x"), ctx)).reward is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert result.reward == 1.0


async def test_time_counts_from_the_start_of_a_function_not_of_its_wait(ctx):
    def slow():
        time.sleep(0.6)
        return 1

    rubric = Rubric([slow], concurrency=1)
    rubric.add(lambda: 1, name="quick", timeout_sec=0.5)
    assert (await rubric.score(leaf("x"), ctx)).reward == 2.0


async def test_at_most_so_many_at_once(ctx):
    running, most = 0, 0

    async def fn():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 1

    rubric = Rubric(concurrency=3)
    for index in range(5):
        rubric.add(fn, name=f"fn{index}")
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(rubric.score(leaf("x"), ctx))
    assert most == 3


async def test_a_coroutine_that_ignores_being_cancelled_is_left_behind(ctx, monkeypatch):
    monkeypatch.setattr(calling, "_GRACE_SEC", 0.01)
    over = asyncio.Event()

    async def stubborn():
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return 1

    result = await Rubric([stubborn], timeout_sec=0.02).score(leaf("x"), ctx)
    assert result.errors["stubborn"].endswith("it ignores being cancelled")
    over.set()
    await asyncio.sleep(0)


async def test_cancelling_cleans_up(ctx, gate):
    ended, started = [], asyncio.Event()

    async def waiting():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    def hanging():
        gate.wait()

    rubric = Rubric([waiting, hanging])
    task = asyncio.create_task(rubric.score(leaf("x"), ctx))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["waiting"]
    # The slots are free again: as many functions run as ever.
    assert (await Rubric([lambda: 1], concurrency=1).score(leaf("x"), ctx)).reward == 1.0


async def test_a_timeout_covers_the_coroutine_that_a_function_makes(ctx):
    result = await Rubric([lambda: asyncio.sleep(60)], timeout_sec=0.05).score(leaf("x"), ctx)
    assert result.errors["<lambda>"].endswith("it was cancelled")


def test_works_in_one_loop_after_another(ctx):
    rubric = Rubric([lambda: 1], concurrency=1)

    async def several():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rubric.score(leaf("x"), ctx)) for _ in range(3)]
        return [task.result().reward for task in tasks]

    assert asyncio.run(several()) == asyncio.run(several()) == [1.0] * 3


def test_works_in_a_simulation(ctx):
    async def main():
        async def slow():
            await asyncio.sleep(3600)

        return await Rubric([lambda: 1, slow], [1, 0], timeout_sec=60).score(
            leaf("x"), dataclasses.replace(ctx)
        )

    result = simulate(main, seed=1)
    assert (result.reward, list(result.errors)) == (1.0, ["slow"])


def test_a_hanging_thread_does_not_keep_the_process_from_ending(tmp_path):
    program = textwrap.dedent("""
        import asyncio, pathlib, threading
        from ramify import Rubric, Task
        from ramify.testing.context import make_context, make_node

        def hang():
            threading.Event().wait()

        async def main():
            ctx = make_context(Task("set:one"), artifacts=pathlib.Path("."))
            result = await Rubric([hang, lambda: 1], timeout_sec=0.1).score(make_node(), ctx)
            print(result.reward, sorted(result.errors))

        asyncio.run(main())
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None ['hang']\n", "")
