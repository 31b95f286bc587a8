"""Rubrics: arguments, weights, names, and what comes of functions that fail."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import pytest

from ramify import Rubric, RubricGroup, XMLParser
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InvalidRewardError, SandboxLostError, UsageError
from ramify.contracts.messages import Message
from ramify.contracts.reward import (
    Described,
    Granularity,
    GroupReward,
    RewardEvent,
    Space,
    VerifyResult,
)
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode, Step
from ramify.planes.reward.parsers.base import Parser
from ramify.testing.context import make_context, make_node

PROMPT = Message("user", "6*7?")


def leaf(*answers: str) -> RolloutNode:
    return make_node([PROMPT], [Step((Message("assistant", text),)) for text in answers])


@pytest.fixture
def ctx(tmp_path) -> Context:
    task = Task("set:one", "6*7?", target="42", metadata={"level": 3, "color": "red"})
    return make_context(task, artifacts=tmp_path)


class Table:
    """Something a user registers."""


class BigTable(Table):
    """A kind of it."""


class Named(Protocol):
    """Cannot be checked at runtime."""

    name: str


class TestArguments:
    async def test_by_name(self, ctx):
        got = {}

        def everything(
            prompt, completion, answer, info, state, task, node, path, parser, ctx, color, table
        ):
            got.update(locals())
            return 1

        parser, table, node = XMLParser(["answer"]), Table(), leaf("<answer>42</answer>")
        rubric = Rubric([everything], parser=parser, objects={"table": table}, columns=["color"])
        assert (await rubric.score(node, ctx)).reward == 1.0
        assert (got["prompt"], got["completion"]) == ([PROMPT], list(node.messages[1:]))
        assert (got["answer"], got["info"]) == ("42", {"level": 3, "color": "red"})
        assert (got["task"], got["node"], got["path"]) == (ctx.task, node, list(node.path))
        assert (got["parser"], got["table"], got["ctx"]) == (parser, table, ctx)
        assert (got["color"], got["state"]) == ("red", None)

    async def test_by_type(self, ctx):
        def fn(problem: Task, where: Context, at: RolloutNode, reader: Parser, rows: Table):
            return problem is ctx.task and where is ctx and at.id == 1 and type(reader) is XMLParser

        table, other = BigTable(), object()
        rubric = Rubric(parser=XMLParser(["answer"]), objects={"t": table, "other": other})
        rubric.add(fn)
        result = await rubric.score(leaf("x"), ctx)
        assert result.errors == {"fn": "NotANumberError: it returned True; it must return a finite "
                                 "number, a VerifyResult or RewardEvents"}  # fmt: skip
        (entry,) = rubric.describe().entries
        assert entry.arguments == ("ctx", "node", "parser", "t", "task")

    def test_a_type_that_two_objects_have_says_nothing(self):
        def fn(rows: Table):
            return 1

        with pytest.raises(ConfigError, match="'rows'"):
            Rubric([fn], objects={"a": Table(), "b": BigTable()})

    @pytest.mark.parametrize("hint", [str, int, object, dict, Named])
    def test_a_builtin_type_or_plain_protocol_says_nothing(self, hint):
        def fn(rows):
            return 1

        fn.__annotations__ = {"rows": hint}
        with pytest.raises(ConfigError, match="'rows'"):
            Rubric([fn], objects={"a": "text", "b": 1, "c": {}})

    async def test_kwargs_get_everything(self, ctx):
        got = {}

        def fn(answer, **rest):
            got.update(rest)
            return 1

        await Rubric([fn], columns=["color"], objects={"n": 5}).score(leaf("x"), ctx)
        assert sorted(got) == sorted(
            ["prompt", "completion", "info", "state", "task", "node", "path", "parser", "ctx",
             "color", "n"]
        )  # fmt: skip

    def test_unknown_is_refused_at_construction_with_the_remedy(self):
        with pytest.raises(ConfigError, match=r"'reference'.*columns=.*objects="):
            Rubric([lambda reference: 1])
        with pytest.raises(ConfigError, match="neither a function nor a Reward"):
            Rubric([42])  # type: ignore[list-item]
        with pytest.raises(ConfigError, match=r"Table is a class; give an object of it: Table\("):
            Rubric([Table])

    async def test_a_column_that_a_task_lacks(self, ctx):
        def needs(missing):
            return 1

        def can_do_without(missing=7):
            return missing

        result = await Rubric([needs, can_do_without], columns=["missing"]).score(leaf("x"), ctx)
        assert result.items == {"can_do_without": 7.0}
        assert result.errors == {"needs": "LookupError: the task set:one has no column 'missing'"}
        assert result.reward is None

    @pytest.mark.parametrize(
        ("columns", "objects"),
        [(["task"], {}), (["answers"], {}), ([], {"parser": 1}), (["a"], {"a": 1}), (["a b"], {}),
         (["a", "a"], {})],
    )  # fmt: skip
    def test_names_that_are_taken_or_none(self, columns, objects):
        with pytest.raises(ConfigError):
            Rubric(columns=columns, objects=objects)

    async def test_no_function_can_spoil_anothers_arguments(self, ctx):
        def first(prompt, completion, info, path):
            for each in (prompt, completion, info, path):
                each.clear()
            return 0

        def second(prompt, completion, info, path):
            return len(prompt) + len(completion) + len(info) + len(path)

        result = await Rubric([first, second], [0, 1], concurrency=1).score(leaf("x"), ctx)
        assert result.reward == 1 + 1 + 2 + 2

    async def test_context_variables_reach_threads(self, ctx):
        variable = contextvars.ContextVar("variable", default=0)
        variable.set(5)
        result = await Rubric([lambda: variable.get()]).score(leaf("x"), ctx)
        assert result.reward == 5.0


class TestSum:
    async def test_weights_and_metrics(self, ctx):
        def right(completion, answer):
            return float(completion[-1].content == answer)

        async def length(completion):
            return len(completion[-1].content)

        def metric():
            return 1000

        rubric = Rubric([right, length], [2.0, 0.25])
        rubric.add(metric, 0)
        result = await rubric.score(leaf("42"), ctx)
        assert result.reward == 2.5
        assert list(result.items.items()) == [("right", 1.0), ("length", 2.0), ("metric", 1000.0)]
        assert [event.name for event in result.events] == ["right", "length", "metric"]
        assert (result.errors, result.grader_isolation) == ({}, "host")
        assert isinstance(rubric, GroupReward)
        assert isinstance(rubric, Described)
        assert not rubric.compares

    async def test_order_is_that_of_the_functions_whichever_ends_first(self, ctx):
        ended = []

        def make(index):
            async def fn():
                await asyncio.sleep(0.002 * (5 - index))
                ended.append(index)
                return 0.1 * index

            return fn

        rubric = Rubric()
        for index in range(5):
            rubric.add(make(index), name=f"f{index}")
        results = [await rubric.score(leaf("x"), ctx) for _ in range(2)]
        assert ended[:5] == [4, 3, 2, 1, 0]
        assert list(results[0].items) == ["f0", "f1", "f2", "f3", "f4"]
        assert results[0] == results[1]

    async def test_a_sum_beyond_all_bounds_is_an_error(self, ctx):
        result = await Rubric([lambda: 1e308], [1e10]).score(leaf("x"), ctx)
        assert result.reward is None
        assert "reward" in result.errors

    async def test_no_function_at_all(self, ctx):
        assert (await Rubric().score(leaf("x"), ctx)).reward == 0.0

    @pytest.mark.parametrize("numbers", [{"weights": [1]}, {"concurrency": 0}, {"timeout_sec": 0}])
    def test_numbers_that_do_not_fit(self, numbers):
        with pytest.raises(ConfigError):
            Rubric([lambda: 1, lambda answer: 2], **numbers)
        with pytest.raises(ConfigError, match="finite"):
            Rubric([lambda: 1], [float("nan")])


class TestReturns:
    async def test_a_verify_result(self, ctx):
        def inner():
            return VerifyResult(
                0.5,
                {"recall": 0.25},
                (RewardEvent("hack", -1.0, Space.ACTION, Granularity.STEP, 1),),
                grader_isolation="workdir",
                details={"why": "so"},
                errors={"other": "failed"},
            )

        result = await Rubric([inner, lambda: 1], [2, 1], name="u").score(leaf("x"), ctx)
        assert result.reward == 2.0
        assert result.items == {"u.inner": 0.5, "u.inner.recall": 0.25, "u.<lambda>": 1.0}
        assert result.events[0] == RewardEvent("u.inner.hack", -1.0, Space.ACTION, "step", 1)
        assert result.details == {"u.inner": {"why": "so"}}
        assert result.errors == {"u.inner.other": "failed"}
        assert result.grader_isolation == "workdir"

    async def test_not_scored_is_not_zero(self, ctx):
        result = await Rubric([lambda: VerifyResult(None, errors={"vm": "lost"})]).score(
            leaf("x"), ctx
        )
        assert (result.reward, result.errors["<lambda>"]) == (None, "lost")

    async def test_events_count_by_their_mean(self, ctx):
        def steps(path):
            return [
                RewardEvent("useful", float(node.id), Space.ACTION, Granularity.STEP, node.id)
                for node in path[1:]
            ]

        result = await Rubric([steps]).score(leaf("a", "b", "c"), ctx)
        assert (result.reward, result.items) == (2.0, {"steps": 2.0})
        assert [(e.name, e.node, e.value) for e in result.events] == [
            ("steps.useful", 1, 1.0), ("steps.useful", 2, 2.0), ("steps.useful", 3, 3.0)
        ]  # fmt: skip

    async def test_space_and_granularity_of_a_number(self, ctx):
        rubric = Rubric()
        rubric.add(lambda: 1, name="a", space=Space.REASONING, granularity=Granularity.STEP)
        result = await rubric.score(leaf("x"), ctx)
        assert result.events == (
            RewardEvent("a", 1.0, Space.REASONING, Granularity.STEP, leaf("x").id),
        )

    async def test_a_reward_may_be_a_part(self, ctx):
        class Tests:
            name = "tests"

            async def score(self, node, ctx):
                return VerifyResult(1.0, {"passed": 3.0}, grader_isolation="outputs")

        result = await Rubric([Tests()], name="core").score(leaf("x"), ctx)
        assert result.items == {"core.tests": 1.0, "core.tests.passed": 3.0}
        assert result.grader_isolation == "outputs"

    async def test_a_function_that_makes_a_coroutine_is_awaited(self, ctx):
        async def later():
            return 0.5

        assert (await Rubric([lambda: later()]).score(leaf("x"), ctx)).reward == 0.5

    @pytest.mark.parametrize(
        "value",
        [None, True, "1", float("nan"), float("inf"), [], [1.0], object(), 10**400, -(10**400),
         [RewardEvent("e", float("nan"))], [RewardEvent("e", None)], ["x" * 100_000]],
    )  # fmt: skip
    async def test_what_is_no_score_is_an_error(self, ctx, value):
        def fn():
            return value

        result = await Rubric([fn, lambda: 1]).score(leaf("x"), ctx)
        assert result.reward is None
        assert result.items == {"<lambda>": 1.0}
        assert result.errors["fn"].startswith("NotANumberError: it returned")
        assert len(result.errors["fn"]) < 300


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [KeyError("x"), SandboxLostError("gone"), SystemExit(3), StopIteration(), TimeoutError(),
         asyncio.CancelledError(), RecursionError()],
        ids=lambda error: type(error).__name__,
    )  # fmt: skip
    @pytest.mark.parametrize("weight", [1, 0])
    async def test_what_is_raised_is_an_error_of_that_function_alone(self, ctx, error, weight):
        def sync():
            raise error

        async def coroutine():
            raise error

        def fine():
            return 2

        rubric = Rubric([sync, coroutine, fine], [weight, weight, 1])
        result = await rubric.score(leaf("x"), ctx)
        assert set(result.errors) == {"sync", "coroutine"}
        assert result.items == {"fine": 2.0}
        assert result.reward == (None if weight else 2.0)

    async def test_invalid_evidence_is_invalid_once_all_have_ended(self, ctx):
        ended = []

        def tampered():
            raise InvalidRewardError("tampered", "the log is forged")

        async def slow():
            await asyncio.sleep(0.01)
            ended.append("slow")
            return 1

        with pytest.raises(InvalidRewardError, match="forged"):
            await Rubric([tampered, slow]).score(leaf("x"), ctx)
        with pytest.raises(InvalidRewardError, match="forged"):
            await RubricGroup([Rubric([tampered]), Rubric([slow])]).score(leaf("x"), ctx)
        assert ended == ["slow", "slow"]
        assert (await Rubric([tampered, slow], [0, 1]).score(leaf("x"), ctx)).reward == 1.0

    async def test_an_error_that_cannot_be_told_or_written_is_one_all_the_same(self, ctx):
        class SilentError(Exception):
            def __str__(self):
                raise RuntimeError("no")

        def silent():
            raise SilentError

        def half():
            raise ValueError("\ud800")

        result = await Rubric([silent, half]).score(leaf("x"), ctx)
        assert result.errors == {
            "silent": "SilentError: (it cannot say what is wrong)",
            "half": "ValueError: ?",
        }


class TestNames:
    def test_duplicates_are_refused(self):
        def fn():
            return 1

        with pytest.raises(ConfigError, match=r"called 'fn'.*name="):
            Rubric([fn, fn])
        rubric = Rubric([fn], name="a")
        with pytest.raises(ConfigError, match=r"'a\.fn'"):
            rubric.add(fn)
        rubric.add(fn, name="again")
        with pytest.raises(ConfigError, match=r"'a\.fn'"):
            RubricGroup([rubric, Rubric([fn], name="a")])
        group = RubricGroup([rubric, Rubric([fn], name="b"), Rubric([fn])])
        assert [e.name for e in group.describe().entries] == ["a.fn", "a.again", "b.fn", "fn"]

    async def test_a_duplicate_that_comes_later_is_refused_too(self, ctx):
        def fn():
            return 1

        early, late = Rubric([fn]), Rubric()
        group = RubricGroup([early, late])
        late.add(fn)
        with pytest.raises(ConfigError, match="'fn'"):
            await group.score(leaf("x"), ctx)

    def test_manifest(self):
        def single(answer):
            return 1

        def compare(completions):
            return completions

        rubric = Rubric([single, compare], [1, 0.5], name="core")
        first, second = rubric.describe().entries
        assert (first.name, first.weight, first.kind) == ("core.single", 1.0, "function")
        assert (second.name, second.weight, second.kind) == ("core.compare", 0.5, "group")
        assert (first.space, first.granularity) == (Space.OUTPUT, Granularity.TERMINAL)
        assert (first.arguments, second.arguments) == (("answer",), ("completions",))
        assert first.source.endswith(":TestNames.test_manifest.<locals>.single")


def longest(completions: Sequence[list[Message]]) -> list[float]:
    lengths = [len(completion[-1].content) for completion in completions]
    return [float(length == max(lengths)) for length in lengths]


class TestGroups:
    async def test_score_leaves_group_functions_pending(self, ctx):
        rubric = Rubric([longest, lambda: 1])
        result = await rubric.score(leaf("x"), ctx)
        assert rubric.compares
        assert (result.reward, result.items) == (1.0, {"<lambda>": 1.0})
        assert result.details == {"pending": ["longest"]}

    async def test_siblings(self, ctx):
        rubric = Rubric([longest, lambda completion: len(completion)], [1, 0.5])
        nodes = [leaf("a"), leaf("abc"), leaf("ab", "b")]
        results = await rubric.score_group(nodes, [ctx] * 3)
        assert [result.items["longest"] for result in results] == [0.0, 1.0, 0.0]
        assert [result.reward for result in results] == [0.5, 1.5, 1.0]
        assert [result.details for result in results] == [{}, {}, {}]

    async def test_arguments_of_group_functions(self, ctx):
        got = {}

        def fn(
            nodes, prompts, completions, answers, tasks, infos, states, paths, task, answer, info,
            parser, color, missing=None,
        ):  # fmt: skip
            got.update(locals())
            return [1] * len(nodes)

        nodes = [leaf("a"), leaf("b")]
        await Rubric([fn], columns=["color", "missing"]).score_group(nodes, [ctx] * 2)
        assert got["nodes"] == nodes
        assert got["prompts"] == [[PROMPT], [PROMPT]]
        assert [c[0].content for c in got["completions"]] == ["a", "b"]
        assert (got["answers"], got["answer"]) == (["42", "42"], "42")
        assert got["tasks"] == [ctx.task, ctx.task]
        assert (got["color"], got["missing"], got["states"]) == (["red", "red"], None, [None, None])

    async def test_one_sibling_alone_is_wrong(self, ctx):
        def fn(completions):
            return [1.0, float("nan"), VerifyResult(0.5, {"part": 0.5})]

        results = await Rubric([fn]).score_group([leaf("x")] * 3, [ctx] * 3)
        assert [result.reward for result in results] == [1.0, None, 0.5]
        assert [set(result.errors) for result in results] == [set(), {"fn"}, set()]
        assert results[2].items == {"fn": 0.5, "fn.part": 0.5}

    @pytest.mark.parametrize("value", [[1.0], [1.0] * 3, 1.0, None, "ab", {0: 1, 1: 1}])
    async def test_the_wrong_number_of_scores_is_wrong_for_all(self, ctx, value):
        def fn(completions):
            return value

        results = await Rubric([fn, lambda: 1]).score_group([leaf("x")] * 2, [ctx] * 2)
        assert [result.reward for result in results] == [None, None]
        assert [set(result.errors) for result in results] == [{"fn"}, {"fn"}]
        assert [result.items for result in results] == [{"<lambda>": 1.0}] * 2

    async def test_a_function_may_say_that_it_is_one(self, ctx):
        def fn(task):
            return [1, 2]

        rubric = Rubric()
        rubric.add(fn, group=True)
        results = await rubric.score_group([leaf("x")] * 2, [ctx] * 2)
        assert [result.reward for result in results] == [1.0, 2.0]

    async def test_only_siblings(self, ctx):
        other = dataclasses.replace(ctx, task=Task("set:two"))
        rubric = Rubric([longest])
        with pytest.raises(UsageError, match="same task"):
            await rubric.score_group([leaf("x")] * 2, [ctx, other])
        with pytest.raises(UsageError, match="2 nodes, but 1"):
            await rubric.score_group([leaf("x")] * 2, [ctx])
        assert list(await rubric.score_group([], [])) == []

    async def test_invalid_evidence_of_one_is_an_error_of_that_one(self, ctx):
        def strict(completion):
            if completion[-1].content == "forged":
                raise InvalidRewardError("tampered", "no")
            return 1

        results = await Rubric([strict, longest]).score_group(
            [leaf("forged"), leaf("x")], [ctx] * 2
        )
        assert [result.reward for result in results] == [None, 1.0]
        assert results[0].errors == {"strict": "InvalidRewardError: tampered: no"}


class TestRubricGroup:
    async def test_sum_order_and_manifest(self, ctx):
        core, user = Rubric([lambda: 1], name="core"), Rubric([longest], [2], name="user")
        group = RubricGroup([core, user])
        group.add_rubric(Rubric([lambda answer: len(answer)], [0.25]))
        assert group.describe().name == "core+user"
        names = ["core.<lambda>", "user.longest", "<lambda>"]
        assert [entry.name for entry in group.describe().entries] == names
        result = await group.score(leaf("x"), ctx)
        assert (result.reward, result.details) == (1.5, {"pending": ["user.longest"]})
        first, second = await group.score_group([leaf("x"), leaf("xy")], [ctx] * 2)
        assert (first.reward, second.reward) == (1.5, 3.5)
        assert list(second.items) == names
        assert isinstance(group, GroupReward)

    async def test_one_that_is_not_scored(self, ctx):
        def broken():
            raise ValueError("no")

        group = RubricGroup([Rubric([broken], name="a"), RubricGroup([Rubric([lambda: 1])])])
        result = await group.score(leaf("x"), ctx)
        assert (result.reward, result.items) == (None, {"<lambda>": 1.0})
        assert result.errors == {"a.broken": "ValueError: no"}
        assert not group.compares


class Watching:
    """A reward whose signals bear its own name."""

    name = "no_hacks"

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        signals = ("no_hacks", "no_hacks.step", "hacks", "core.watch.odd")
        return VerifyResult(1.0, events=tuple(RewardEvent(name, 1.0) for name in signals))


@pytest.mark.parametrize(
    ("namespace", "called", "names"),
    [
        ("core", None, ["core.no_hacks", "core.no_hacks.step", "core.no_hacks.hacks",
                        "core.no_hacks.core.watch.odd"]),
        ("core", "watch", ["core.watch", "core.watch.step", "core.watch.hacks", "core.watch.odd"]),
        ("", None, ["no_hacks", "no_hacks.step", "no_hacks.hacks", "no_hacks.core.watch.odd"]),
    ],
)  # fmt: skip
async def test_a_signal_has_the_name_of_its_function_once(
    ctx: Context, namespace: str, called: str | None, names: list[str]
) -> None:
    rubric = Rubric(name=namespace)
    rubric.add(Watching(), name=called)
    found = await rubric.score(leaf("42"), ctx)
    assert [event.name for event in found.events] == names


def test_no_function_is_called_like_a_part_of_another() -> None:
    rubric = Rubric([Watching()])
    with pytest.raises(ConfigError, match="would be a part of the function 'no_hacks'"):
        rubric.add(longest, name="no_hacks.step")
    with pytest.raises(ConfigError, match="two functions of the rubric are called"):
        rubric.add(longest, name="no_hacks")
    with pytest.raises(ConfigError, match="would be a part of the function"):
        RubricGroup([Rubric([longest], name="core.x"), Rubric([longest], name="core")]).add_rubric(
            Rubric([Watching()], name="core.longest")
        )
