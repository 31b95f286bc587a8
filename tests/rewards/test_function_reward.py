"""Plain functions as rewards."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from ramify.contracts.errors import ConfigError, InfraError, InvalidRewardError
from ramify.contracts.messages import Message
from ramify.contracts.reward import VerifyResult
from ramify.contracts.task import Task
from ramify.planes.reward.function import FunctionReward
from ramify.testing.fakecontext import fake_context

USER, ANSWER = Message("user", "6*7?"), Message("assistant", "42")


@dataclass
class Node:
    """A node as a reward sees it."""

    messages: list
    path: list = field(default_factory=list)
    state: str | None = "snapshot-1"


@pytest.fixture
def node():
    root = Node([USER])
    leaf = Node([USER, ANSWER])
    root.path, leaf.path = [root], [root, leaf]
    return leaf


@pytest.fixture
def ctx(tmp_path):
    return fake_context(Task("set:one", target="42", metadata={"n": 3}), artifacts=tmp_path)


async def test_a_function_gets_what_it_names(node, ctx):
    got = {}

    def exact(prompt, completion, answer, task, info, node, path, state, ctx):
        got.update(locals())
        return completion[-1].content == answer and 1 or 0

    result = await FunctionReward(exact).score(node, ctx)
    assert (result.reward, result.items) == (1.0, {"exact": 1.0})
    assert [(event.name, event.value) for event in result.events] == [("exact", 1.0)]
    assert (got["prompt"], got["completion"]) == ([USER], [ANSWER])
    assert (got["task"], got["info"], got["state"]) == (ctx.task, {"n": 3}, "snapshot-1")
    assert (got["node"], got["path"], got["ctx"]) == (node, node.path, ctx)


async def test_by_type_async_and_renamed(node, ctx):
    async def fn(problem: Task, strict=True):
        return Fraction(1, 4) if problem.target and strict else 0

    result = await FunctionReward(fn, name="quarter").score(node, ctx)
    assert (result.reward, result.items) == (0.25, {"quarter": 0.25})


async def test_a_synchronous_function_does_not_block_the_loop(node, ctx):
    threads = []

    def fn():
        threads.append(threading.current_thread())
        return 0

    assert (await FunctionReward(fn).score(node, ctx)).reward == 0.0
    assert threads != [threading.main_thread()]


async def test_a_whole_result_is_kept(node, ctx):
    whole = VerifyResult(0.5, {"a": 1.0})
    assert await FunctionReward(lambda: whole).score(node, ctx) is whole


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), [1], object()])
async def test_what_is_no_finite_number_is_our_error_and_never_zero(node, ctx, value):
    def fn():
        return value

    with pytest.raises(InfraError, match="fn returned"):
        await FunctionReward(fn).score(node, ctx)


async def test_what_a_function_raises_is_our_error(node, ctx):
    def fn():
        raise KeyError("answer")

    with pytest.raises(InfraError, match="fn failed on set:one: KeyError: 'answer'") as caught:
        await FunctionReward(fn).score(node, ctx)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_function_can_call_the_evidence_invalid(node, ctx):
    def fn():
        raise InvalidRewardError("no_evidence", "nothing was said")

    with pytest.raises(InvalidRewardError):
        await FunctionReward(fn).score(node, ctx)


def test_an_argument_that_nobody_supplies_is_refused_at_once():
    with pytest.raises(ConfigError, match="'reference'"):
        FunctionReward(lambda reference: 1)
