"""The spaces: right actions, offered tools, questions, reasoning, memory, and disagreement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify import (
    ActionPattern,
    AskedWhenDue,
    JudgeReward,
    MemoryExpectation,
    MemoryUpdated,
    OfferedTools,
    ProcessReward,
    RightActions,
    Rubric,
    SoundReasoning,
    Suspicion,
    disagreement,
    reasoning_judge,
)
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, RewardFailedError, UnsupportedError
from ramify.contracts.messages import Message, ToolCall, ToolSpec
from ramify.contracts.reward import (
    Granularity,
    GroupReward,
    RewardEvent,
    Space,
    VerifyResult,
)
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode, Step
from ramify.planes.reward.spaces.disagreement import with_suspicion
from ramify.planes.reward.spaces.memory import memory_diff, memory_result, read_store
from ramify.planes.reward.spaces.toolschema import mismatch
from ramify.planes.reward.spaces.walking import Action, open_space
from ramify.testing.context import make_context, make_node
from ramify.testing.fakes import FakeProvider
from ramify.testing.scripted_model import ScriptedModel, Seen

OPENING = Message("user", "Book a table.")


def did(
    *calls: tuple[str, dict[str, Any] | str], thought: str | None = None, say: str = ""
) -> Step:
    """A step of tool calls, each answered with `ok`."""
    made = tuple(
        ToolCall(f"c{n}", name, args if isinstance(args, str) else json.dumps(args))
        for n, (name, args) in enumerate(calls)
    )
    answers = tuple(Message("tool", "ok", (), call.id, call.name) for call in made)
    return Step((Message("assistant", say, made, reasoning=thought), *answers))


def leaf(*steps: Step) -> RolloutNode:
    return make_node([OPENING], steps)


def context(tmp_path: Path, **metadata: Any) -> Context:
    return make_context(Task("set:one", "Book a table.", metadata=metadata), artifacts=tmp_path)


def at_steps(result: VerifyResult) -> dict[int | None, float]:
    return {e.node: e.value for e in result.events if e.granularity is Granularity.STEP}


SEARCH, BOOK, PAY = (ActionPattern(name) for name in ("search", "book", "pay"))


class TestRightActions:
    @pytest.mark.parametrize(
        ("done", "ordered", "reward"),
        [
            (["search", "book", "pay"], False, 1.0),
            (["pay", "book", "search"], False, 1.0),
            (["search", "book", "pay"], True, 1.0),
            (["x", "search", "x", "book", "pay", "x"], True, 1.0),
            (["pay", "search", "book"], True, 2 / 3),
            (["pay", "book", "search"], True, 1 / 3),
            (["book"], False, 1 / 3),
            ([], False, 0.0),
            (["search", "book", "pay", "delete"], False, 0.0),
        ],
    )
    async def test_required_and_forbidden(
        self, done: list[str], ordered: bool, reward: float, tmp_path: Path
    ):
        right = RightActions([SEARCH, BOOK, PAY], [ActionPattern("delete*")], ordered=ordered)
        node = leaf(*(did((name, {})) for name in done))
        result = await right.score(node, context(tmp_path))
        assert result.reward == pytest.approx(reward)
        assert result.space is Space.ACTION
        for number, name in enumerate(done, 1):
            if name == "delete":
                assert at_steps(result)[number] == 0.0
                assert result.details["forbidden"] == [[number, "delete"]]

    async def test_an_action_stands_for_one_requirement(self, tmp_path: Path):
        twice = RightActions([ActionPattern("pay"), ActionPattern("*", "euro")], [])
        pay = ("pay", {"amount": "9 euro"})
        assert (await twice.score(leaf(did(pay)), context(tmp_path))).reward == 0.5
        other = did(pay, ("tip", {"note": ["1 euro"]}))
        assert (await twice.score(leaf(other), context(tmp_path))).reward == 1.0

    async def test_the_task_may_say_it(self, tmp_path: Path):
        wanted = {"required_actions": [{"tool": "book", "matches": "8 pm"}]}
        node = leaf(did(("book", {"at": "8 pm"})))
        result = await RightActions().score(node, context(tmp_path, **wanted))
        assert result.reward == 1.0
        assert at_steps(result) == {1: 1.0}
        missing = await RightActions().score(leaf(), context(tmp_path, **wanted))
        assert missing.details["missing"] == [{"tool": "book", "matches": "8 pm"}]
        with pytest.raises(ConfigError, match=r"metadata.required_actions"):
            await RightActions().score(node, context(tmp_path, required_actions=[{"tol": 1}]))

    def test_what_is_no_pattern(self):
        with pytest.raises(ConfigError, match="no regular expression"):
            ActionPattern("x", "(")


class TestAsking:
    @pytest.mark.parametrize(
        ("should", "asks", "reward"),
        [(True, True, 1.0), (True, False, 0.0), (False, True, 0.0), (False, False, 1.0)],
    )
    async def test_when_due_and_only_then(
        self, should: bool, asks: bool, reward: float, tmp_path: Path
    ):
        node = leaf(did(("search", {})), did(("ask_user" if asks else "book", {})))
        result = await AskedWhenDue().score(node, context(tmp_path, should_ask=should))
        assert result.reward == reward
        assert result.details["asked_at"] == ([2] if asks else [])

    async def test_a_question_in_the_steps_own_record(self, tmp_path: Path):
        node = leaf(Step((Message("assistant", "?"),), info={"ask_user": {"question": "?"}}))
        result = await AskedWhenDue().score(node, context(tmp_path, should_ask=True))
        assert result.reward == 1.0

    async def test_a_task_that_does_not_say_is_not_scored(self, tmp_path: Path):
        result = await AskedWhenDue().score(leaf(), context(tmp_path))
        assert result.reward is None
        rubric = await Rubric([AskedWhenDue()], name="a").score(leaf(), context(tmp_path))
        assert rubric.reward is None
        assert "should_ask" in rubric.errors["a.asked_when_due"]


SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 1},
        "count": {"type": "integer", "minimum": 1},
        "mode": {"enum": ["r", "w"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "limit": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
    },
    "required": ["path"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
}


class TestOfferedTools:
    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            ({"path": "x"}, None),
            ({"path": "x", "count": 2, "mode": "r", "tags": ["a"], "limit": None}, None),
            ({"path": "x", "limit": 0.5, "count": 2.0}, None),
            ({}, "path is missing"),
            ({"path": 3}, "path is no string"),
            ({"path": ""}, "path is too short or too long"),
            ({"path": "x", "count": 0}, "count is out of range"),
            ({"path": "x", "count": True}, "count is no integer"),
            ({"path": "x", "count": 1.5}, "count is no integer"),
            ({"path": "x", "mode": "a"}, "mode is none of the values allowed"),
            ({"path": "x", "tags": ["A"]}, "tags[0] does not match the pattern"),
            ({"path": "x", "tags": ["a", "b", "c"]}, "tags has too few or too many entries"),
            ({"path": "x", "limit": 0}, "limit fits none of the alternatives"),
            ({"path": "x", "colour": 1}, "there is no argument colour"),
        ],
    )
    def test_schemas(self, arguments: dict[str, Any], why: str | None):
        assert mismatch(arguments, SCHEMA) == why

    def test_a_schema_that_contains_itself(self):
        schema = {"$ref": "#"}
        assert mismatch({}, schema) == "it is nested too deep"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.text() | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_value_against_it(self, value: Any):
        found = mismatch(value, SCHEMA)
        assert found is None or isinstance(found, str)

    async def test_calls_of_what_was_offered(self, tmp_path: Path):
        tools = [ToolSpec("read", "", SCHEMA)]
        node = leaf(
            did(("read", {"path": "x"})),
            did(("read", {"paths": "x"}), ("read", {"path": "y"})),
            did(("submit_reward", {"value": 1})),
            did(("read", "not json")),
            Step((Message("assistant", "Done."),)),
        )
        result = await OfferedTools(tools).score(node, context(tmp_path))
        assert result.reward == pytest.approx(2 / 5)
        assert at_steps(result) == {1: 1.0, 2: 0.5, 3: 0.0, 4: 0.0}
        assert result.details["out_of_distribution"] == [
            [2, "read", "path is missing"],
            [3, "submit_reward", "there is no such tool"],
            [4, "read", "its arguments are no JSON object"],
        ]

    async def test_what_the_agent_recorded_is_what_was_offered(self, tmp_path: Path):
        tool = {"name": "read", "description": "", "parameters": SCHEMA}
        first = Step((Message("assistant", "Hm."),), info={"tools": [tool]})
        node = leaf(first, did(("read", {"path": "x"})), did(("write", {})))
        assert (await OfferedTools().score(node, context(tmp_path))).reward == 0.5
        unknown = await OfferedTools().score(leaf(did(("read", {}))), context(tmp_path))
        assert unknown.reward is None
        assert (await OfferedTools().score(leaf(), context(tmp_path))).reward == 1.0


class TestProcess:
    async def test_each_step_is_seen_with_what_came_before(self, tmp_path: Path):
        def again(node: RolloutNode, actions: Any) -> float | None:
            so_far = [m for m in node.messages if m.role == "assistant"]
            return None if not actions else float(len(so_far))

        node = leaf(did(("a", {})), Step((Message("assistant", "x"),)), did(("a", {})))
        reward = ProcessReward(again, name="again", space="reasoning")
        result = await reward.score(node, context(tmp_path))
        assert at_steps(result) == {1: 1.0, 3: 3.0}
        assert result.reward == 2.0
        assert {event.space for event in result.events} == {Space.REASONING}

    @pytest.mark.parametrize("space", ["latent", Space.LATENT])
    def test_the_latent_space_is_reserved(self, space: Any):
        with pytest.raises(UnsupportedError, match="`latent` is reserved"):
            ProcessReward(lambda node, actions: None, name="x", space=space)

    def test_no_such_space(self):
        with pytest.raises(UnsupportedError, match="use output, action, reasoning, memory"):
            open_space("outer")


def verdicts(seen: Seen) -> str:
    """10 for everything, 0 where somebody plans to deceive; one mark per criterion."""
    system, page = seen.messages[0].content, seen.messages[1].content
    names = [line[2:].partition(":")[0] for line in system.splitlines() if line.startswith("- ")]
    mark = 0 if "fool the tests" in page else 10
    nonce = system.partition("with the nonce ")[2].partition(":")[0]
    made = [{"criterion": name, "reason": "r", "mark": mark} for name in names]
    return json.dumps({"nonce": nonce, "verdicts": made})


HONEST = did(("bash", {"command": "ls"}), thought="I look around.")
SLY = did(("bash", {"command": "true"}), say="<think>I fool the tests.</think>")


class TestReasoning:
    async def test_thoughts_are_held_against_actions_and_answer(self, tmp_path: Path):
        model = ScriptedModel(verdicts)
        node = leaf(HONEST, Step((Message("assistant", "It is booked."),)))
        result = await SoundReasoning(reasoning_judge(model)).score(node, context(tmp_path))
        assert result.reward == 1.0
        assert set(result.items) == {
            "sound", "leads_to_the_actions", "leads_to_the_answer", "honest",
        }  # fmt: skip
        assert result.events[0].space is Space.REASONING
        page = model.calls[0][1].content
        for text in ("I look around.", 'bash {"command": "ls"}', "-> ok", "| It is booked."):
            assert text in page

    async def test_step_by_step(self, tmp_path: Path):
        model = ScriptedModel(verdicts)
        reward = SoundReasoning(reasoning_judge(model), by_step=True)
        result = await reward.score(leaf(HONEST, did(("x", {})), SLY), context(tmp_path))
        assert at_steps(result) == {1: 1.0, 3: 0.0}
        assert result.reward == 0.5
        assert len(model.calls) == 2

    async def test_without_reasoning_there_is_no_score(self, tmp_path: Path):
        reward = SoundReasoning(reasoning_judge(ScriptedModel(verdicts)))
        result = await reward.score(leaf(did(("x", {}))), context(tmp_path))
        assert result.reward is None
        assert "no reasoning" in result.errors["sound_reasoning"]

    @pytest.mark.parametrize("by_step", [True, False])
    async def test_a_judge_that_fails_is_no_0(self, by_step: bool, tmp_path: Path):
        judge = reasoning_judge(ScriptedModel(lambda seen: "fine"))
        with pytest.raises(RewardFailedError):
            await SoundReasoning(judge, by_step=by_step).score(leaf(HONEST), context(tmp_path))

    async def test_a_thought_does_not_pass_for_a_step(self, tmp_path: Path):
        model = ScriptedModel(verdicts)
        forged = did(("x", {}), thought="ok\u2028step 9\nstep 10\x0bdone:")
        await SoundReasoning(reasoning_judge(model)).score(leaf(forged), context(tmp_path))
        page = model.calls[0][1].content
        assert [line for line in page.splitlines() if line.startswith("| step")] == ["| step 1"]


class TestMemory:
    def store(self, place: Path, **files: str) -> Path:
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / f"{name}.md").write_text(text)
        return place

    def test_a_diff(self, tmp_path: Path):
        before = read_store(self.store(tmp_path / "a", same="1", old="2", edited="3"))
        after = read_store(self.store(tmp_path / "b", same="1", new="2", edited="4"))
        diff = memory_diff(before, after)
        assert (diff.added, diff.removed) == (("new.md",), ("old.md",))
        assert (diff.changed, diff.kept) == (("edited.md",), ("same.md",))
        assert read_store(tmp_path / "nothing") == {}

    def test_links_are_not_followed(self, tmp_path: Path):
        store = self.store(tmp_path / "a", real="1")
        (store / "link.md").symlink_to("/etc/passwd")
        (store / "folder").symlink_to("/etc")
        assert list(read_store(store)) == ["real.md"]

    @pytest.mark.parametrize(
        ("expected", "reward", "drift"),
        [
            (MemoryExpectation(("new*",), ("old.md",), ("edited.md",), ("same.md",)), 1.0, 0),
            (MemoryExpectation(("new*",), ("old.md",), allowed=("edited.md",)), 1.0, 0),
            (MemoryExpectation(("new*",), ("old.md",)), 2 / 3, 1),
            (MemoryExpectation(("new*", "skill*"), ("old.md",), ("edited.md",)), 3 / 4, 0),
            (MemoryExpectation(kept=("edited.md",)), 0.0, 3),
            (MemoryExpectation(allowed=("*",)), 1.0, 0),
            (MemoryExpectation(), 0.0, 3),
        ],
    )
    def test_expectations(self, expected: MemoryExpectation, reward: float, drift: int):
        before = {"same.md": "1", "old.md": "2", "edited.md": "3"}
        after = {"same.md": "1", "new.md": "2", "edited.md": "4"}
        result = memory_result(memory_diff(before, after), expected)
        assert result.reward == pytest.approx(reward)
        assert result.items["drift"] == drift
        assert result.events[0].space is Space.MEMORY

    async def test_of_a_sandbox(self, tmp_path: Path):
        before = self.store(tmp_path / "before", plan="old", rule="keep")
        provider = FakeProvider()
        spec = SandboxSpec(image="fake", workdir="/app")
        sandbox = await provider.create(spec, await provider.prepare(spec))
        ctx = make_context(
            Task("set:one", metadata={"memory": {"changed": ["plan.md"], "kept": ["rule.md"]}}),
            sandbox,
            artifacts=tmp_path / "artifacts",
            provider=provider,
        )
        after = self.store(tmp_path / "after", plan="new", rule="keep")
        await sandbox.upload(after, "/memory")
        memory = MemoryUpdated("/memory", before)
        assert (await memory.score(leaf(), ctx)).reward == 1.0
        await sandbox.upload(self.store(tmp_path / "worse", plan="new"), "/memory", clear=True)
        worse = await memory.score(leaf(), ctx)
        assert worse.details["missed"] == ["kept rule.md"]
        assert worse.reward == pytest.approx(1 / 3)
        gone = await MemoryUpdated("/nowhere", before).score(leaf(), ctx)
        assert gone.items["removed"] == 2.0
        await sandbox.teardown()
        with pytest.raises(ConfigError, match=r"metadata.memory"):
            await memory.score(leaf(), context(tmp_path))


def event(
    space: Space, value: float, granularity: Granularity = Granularity.TERMINAL
) -> RewardEvent:
    return RewardEvent("x", value, space, granularity)


class TestDisagreement:
    @pytest.mark.parametrize(
        ("events", "against"),
        [
            ([event(Space.OUTPUT, 1.0), event(Space.ACTION, 0.0)], ("action",)),
            ([event(Space.OUTPUT, 1.0), event(Space.REASONING, 0.5)], ("reasoning",)),
            ([event(Space.OUTPUT, 1.0), event(Space.ACTION, 0.9)], ()),
            ([event(Space.OUTPUT, 0.2), event(Space.ACTION, 0.0)], ()),
            ([event(Space.OUTPUT, 1.0)], ()),
            ([event(Space.ACTION, 0.0)], ()),
            ([event(Space.OUTPUT, 1.0), event(Space.ACTION, 0.0, Granularity.STEP)], ("action",)),
            ([event(Space.OUTPUT, 1.0), event(Space.ACTION, 50.0)], ()),
            ([], ()),
        ],
    )
    def test_a_good_output_that_another_space_speaks_against(
        self, events: list[RewardEvent], against: tuple[str, ...]
    ):
        found = disagreement(events)
        assert found.against == against
        assert found.suspect is bool(against)

    def test_steps_count_where_nothing_speaks_for_the_whole(self):
        steps = [event(Space.ACTION, value, Granularity.STEP) for value in (0.0, 1.0)]
        found = disagreement([event(Space.ACTION, 1.0), *steps, event(Space.OUTPUT, 1.0)])
        assert found.spaces == {"output": 1.0, "action": 1.0}
        assert disagreement(steps).spaces == {"action": 0.5}

    def test_bounds(self):
        with pytest.raises(ConfigError, match="must be below"):
            Suspicion(Rubric([lambda: 1.0]), high=0.5, low=0.5)

    async def test_with_a_rubric_and_in_groups(self, tmp_path: Path):
        def solved() -> float:
            return 1.0

        def best(completions: list[Any]) -> list[float]:
            return [0.0 for _ in completions]

        right = RightActions([SEARCH], [])
        plain = Suspicion(Rubric([solved, right], weights=[1.0, 0.0]))
        assert isinstance(plain, GroupReward)
        assert not plain.compares
        assert [entry.name for entry in plain.describe().entries] == ["solved", "right_actions"]
        result = await plain.score(leaf(), context(tmp_path))
        assert result.reward == 1.0
        assert (result.items["suspect"], result.items["space_gap"]) == (1.0, 1.0)
        assert result.details["suspect"] == ["action"]
        fine = await plain.score(leaf(did(("search", {}))), context(tmp_path))
        assert fine.items["suspect"] == 0.0
        assert "suspect" not in fine.details
        grouped = Suspicion(Rubric([solved, right, best], weights=[1.0, 0.0, 1.0]))
        assert grouped.compares
        nodes = [leaf(), leaf(did(("search", {})))]
        results = await grouped.score_group(nodes, [context(tmp_path)] * 2)
        assert [r.items["space_gap"] for r in results] == [0.5, 0.5]


async def test_a_judge_in_a_space(tmp_path: Path) -> None:
    model = ScriptedModel(verdicts)
    reward = JudgeReward(reasoning_judge(model), space=Space.REASONING, show="conversation")
    result = await reward.score(leaf(HONEST), context(tmp_path))
    assert result.events == (RewardEvent("reasoning", 1.0, Space.REASONING),)


def test_arguments_of_an_action() -> None:
    action = Action(1, ToolCall("1", "x", '{"a": ["b", {"c": 3}], "d": null}'), None, "agent")
    assert action.text == "b\n3"
    assert Action(1, ToolCall("1", "x", "[1]"), None, "agent").arguments is None
    assert Action(1, ToolCall("1", "x", "[" * 100_000), None, "agent").arguments is None


def test_what_a_part_calls_spaces_or_suspect_is_kept() -> None:
    events = (RewardEvent("a", 1.0, Space.OUTPUT), RewardEvent("b", 0.0, Space.ACTION))
    details = {"spaces": {"rooms": 3}, "suspect": ["shouting"], "mine": 1}
    marked = with_suspicion(VerifyResult(1.0, events=events, details=details))
    assert marked.details == {
        "spaces": {"rooms": 3, "output": 1.0, "action": 0.0},
        "suspect": ["shouting", "action"],
        "mine": 1,
    }
    again = with_suspicion(marked)
    assert again.details == marked.details
    bare = with_suspicion(VerifyResult(1.0, events=events, details={"spaces": 2, "suspect": "x"}))
    assert bare.details["spaces"] == {"given": 2, "output": 1.0, "action": 0.0}
    assert bare.details["suspect"] == ["x", "action"]
