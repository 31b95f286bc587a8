r"""Mathematical answers: a table of pairs, and expressions that hang, burst or are none."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import pytest_asyncio
from math_pairs import DIFFERENT, EQUAL

from ramify import MathReward, MaybeThinkParser, Rubric, XMLParser
from ramify.contracts.errors import ConfigError, InfraError, RewardFailedError, UnsupportedError
from ramify.contracts.messages import Message
from ramify.contracts.reward import RewardEvent
from ramify.contracts.task import Task
from ramify.contracts.tree import Step
from ramify.planes.reward.math_pool import MathPool
from ramify.testing.context import make_context, make_node

if os.environ.get("CI") != "true":
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")

LOOP = pytest.mark.asyncio(loop_scope="module")
CASES = [
    pytest.param(pairs, equal, id=f"{'equal' if equal else 'different'}-{group}")
    for table, equal in ((EQUAL, True), (DIFFERENT, False))
    for group, pairs in table.items()
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reward():
    reward = MathReward()
    yield reward
    reward.close()


@pytest.fixture(scope="module")
def quick():
    reward = MathReward(cpu_sec=0.5, memory_mb=512, workers=1)
    yield reward
    reward.close()


def scene(folder: Path, said: str, target: object = "42"):
    task = Task("sums:one", "What is six times seven?", target=target)
    node = make_node([Message("user", "?")], [Step((Message("assistant", said),))])
    return node, make_context(task, artifacts=folder)


def test_the_table_is_large_enough():
    pairs = [pair for table in (EQUAL, DIFFERENT) for rows in table.values() for pair in rows]
    assert len(set(pairs)) == len(pairs) >= 200


@LOOP
@pytest.mark.parametrize(("pairs", "equal"), CASES)
async def test_table(reward, pairs, equal):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reward.compare(*pair)) for pair in pairs]
    wrong = [pair for pair, task in zip(pairs, tasks, strict=True) if task.result()[0] is not equal]
    assert wrong == []


@LOOP
class TestAnswers:
    @pytest.mark.parametrize(
        ("said", "value", "why"),
        [
            (r"So it is \boxed{42}.", 1.0, ""),
            (r"\boxed{41}, no, \boxed{6 \cdot 7}", 1.0, ""),
            (r"\boxed{41}", 0.0, ""),
            ("It is 42.", 0.0, "the agent gave no answer"),
            (r"\boxed{42", 0.0, "the agent gave no answer"),
            (r"\boxed{}", 0.0, "the answer is no expression"),
            (rf"\boxed{{{'1+' * 2000}1}}", 0.0, "the answer has more than 2000 characters"),
        ],
    )
    async def test_boxed(self, reward, tmp_path, said, value, why):
        result = await reward.score(*scene(tmp_path, said))
        assert (result.reward, result.details.get("why", "")) == (value, why)
        assert result.events == (RewardEvent("math", value),)
        assert result.grader_isolation == "host"

    async def test_a_parser_of_ones_own(self, tmp_path):
        reward = MathReward(XMLParser(["answer"]))
        assert (await reward.score(*scene(tmp_path, "<answer>84/2</answer>"))).reward == 1.0
        reward.close()

    async def test_as_part_of_a_rubric(self, tmp_path):
        rubric = Rubric([MathReward(MaybeThinkParser()), lambda: 1], [1, 0.5], name="core")
        result = await rubric.score(*scene(tmp_path, "<think>hm</think>42", 42))
        assert result.reward == 1.5
        assert result.items == {"core.math": 1.0, "core.<lambda>": 1.0}
        assert [event.name for event in result.events] == ["core.math", "core.<lambda>"]
        unusable = await rubric.score(*scene(tmp_path, "42", "}{"))
        assert unusable.reward is None
        assert unusable.errors["core.math"].startswith("RewardFailedError: the target '}{'")

    @pytest.mark.parametrize("target", [None, True, ["42"], {"a": 1}])
    async def test_a_target_that_is_none(self, reward, tmp_path, target):
        with pytest.raises(RewardFailedError, match="sums:one has no target"):
            await reward.score(*scene(tmp_path, r"\boxed{42}", target))

    @pytest.mark.parametrize("target", ["}{", "", "9" * 2001])
    async def test_a_target_that_cannot_be_read_is_an_error(self, reward, target):
        with pytest.raises(RewardFailedError, match="target"):
            await reward.compare(target, "42")


@LOOP
class TestRunaways:
    @pytest.mark.parametrize(
        "answer",
        ["9^{9^{9^9}}", r"10^{10^{10}}!", r"(9^{9^9})^{\frac{1}{3}}", r"7^{7^{7^{7}}} + x"],
    )
    async def test_an_answer_that_takes_too_much_is_worth_nothing(self, quick, answer):
        # Some of them the library tells apart without evaluating them.
        assert (await quick.compare("42", answer))[0] is False
        assert await quick.compare("42", "84/2") == (True, "")  # the next one is not affected

    async def test_a_hanging_answer_says_why(self, quick, tmp_path):
        result = await quick.score(*scene(tmp_path, r"\boxed{9^{9^{9^9}}}"))
        assert result.reward == 0.0
        assert result.details["why"] == "the answer takes too much to evaluate"

    async def test_a_target_that_takes_too_much_is_an_error_and_never_zero(self, quick):
        with pytest.raises(RewardFailedError, match="it takes too much to evaluate"):
            await quick.compare("9^{9^{9^9}}", "42")


class TestWorkers:
    def test_a_worker_that_dies_is_replaced(self):
        pool = MathPool(5.0, 1024)
        try:
            assert pool.compare("1", "1").equal
            (worker,) = pool._idle
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.wait()
            with pytest.raises(InfraError, match="math worker"):
                pool.compare("1", "1")
            assert pool._idle == []
            assert pool.compare("1", "1").equal
        finally:
            pool.close()

    def test_workers_end_with_the_reward_and_know_no_secrets(self, monkeypatch):
        monkeypatch.setenv("RAMIFY_TEST_SECRET", "hush")
        pool = MathPool(5.0, 1024)
        pool.compare("1", "1")
        process = pool._idle[0]._process
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"PYTHONHASHSEED=0" in environment
        assert b"hush" not in environment
        pool.close()
        assert process.returncode == -signal.SIGKILL

    def test_workers_end_with_their_pool(self):
        pool = MathPool(5.0, 1024)
        pool.compare("1", "1")
        process = pool._idle[0]._process
        del pool
        gc.collect()
        assert process.returncode == -signal.SIGKILL


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr("ramify.planes.reward.math.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'ramify\[math\]'"):
        MathReward()


@pytest.mark.parametrize("numbers", [{"cpu_sec": 0}, {"memory_mb": 1}, {"workers": 0}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ConfigError):
        MathReward(**numbers)
