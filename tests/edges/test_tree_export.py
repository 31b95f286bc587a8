"""Exports of rollouts that branched: nothing counted twice, every path byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.cli.export import command
from ramify.contracts.errors import StoreError, UnknownNameError
from ramify.contracts.events import LeaseEvent, NodeEvent, RewardGiven, StatusEvent
from ramify.contracts.messages import Message, TokenSpan, ToolCall
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import NodeStatus, Outcome, Step, StepKind
from ramify.edges.outbound import tree as trees
from ramify.edges.outbound.pairs import export_pairs
from ramify.edges.outbound.records import read_messages
from ramify.edges.outbound.tree import export_trees, read_path
from ramify.edges.outbound.verifiers import export_verifiers
from ramify.engine.reading import JobRecord, Plan, read_events
from ramify.engine.store import Store
from ramify.kernel.trajectory import trajectories
from ramify.kernel.tree import Tree, tree_from_events

JOB = JobRecord(
    "job", "hash", 1.0, Plan(("set:1",), 2, "nop", None, "local", 7), {}, {"ramify": "0"}
)
OPENING = (Message("user", "Do \u2028 it.\x00"),)


def said(text: str, first: int = 0) -> Step:
    """A step of ten tokens, with a call whose arguments are no JSON."""
    messages = (
        Message("assistant", text, (ToolCall("c", "bash", '{"x": 1,}'),)),
        Message("tool", f"{text}: ok\n", tool_call_id="c"),
    )
    ids = tuple(range(first, first + 10))
    return Step(messages, action=text, tokens=TokenSpan(ids, tuple(-0.5 for _ in ids)))


MARK = Step(role="branch", branch_reason="group@1")


def worked() -> tuple[list[tuple[int, Step]], dict[int, float]]:
    """The worked example: two branches, of three leaves and of two options (q = 3/4, 1/4)."""
    nodes: list[tuple[int, Step]] = [(0, said("a", 10)), (0, said("b", 20))]
    nodes += [(1, said(f"a{n}", 30 + 10 * n)) for n in range(3)]
    for n, q in enumerate((0.75, 0.25)):
        option = said(f"b{n}", 60 + 10 * n)
        nodes.append((2, msgspec.structs.replace(option, kind=StepKind.ENUMERATED, prior=q)))
    return nodes, {3: 1.0, 4: 1.0, 5: 0.0, 6: 0.0, 7: 1.0}


async def record(
    store: Store, rollout: str, nodes: Iterable[tuple[int, Step]], rewards: dict[int, float],
    failed: Iterable[int] = (), reward: float | None = 0.5,
) -> None:  # fmt: skip
    fence = store.next_fence()
    emit = store.observer.emit
    emit(LeaseEvent(rollout, 1.0, 1, fence, 0))
    emit(NodeEvent(rollout, 1.0, 0, -1, None, OPENING))
    for number, (parent, step) in enumerate(nodes, 1):
        emit(NodeEvent(rollout, 1.0, number, parent, step))
    for node, value in rewards.items():
        emit(StatusEvent(rollout, 1.0, node, NodeStatus.SCORED))
        emit(RewardGiven(rollout, 1.0, node, "reward", value, "output", "terminal"))
    for node in failed:
        emit(StatusEvent(rollout, 1.0, node, NodeStatus.INFRA_ERROR))
    result = RolloutResult(
        rollout, "job", "set:1", 0, 1, fence, Outcome.SCORED, "hash", 0, reward, finished_at=9.0
    )
    assert await store.record(result)


@pytest.fixture
async def job(tmp_path: Path) -> Path:
    """The worked example, a tree with a leaf that was never scored, and a chain."""
    store = await Store.create_or_open(tmp_path / "job", JOB)
    nodes, rewards = worked()
    await record(store, "r1", nodes, rewards)
    lame = [(0, said("x")), (1, MARK), (1, MARK), (2, said("y")), (3, said("z"))]
    await record(store, "r2", lame, {4: 0.25}, failed=[5], reward=0.25)
    await record(store, "r3", [(0, said("chain"))], {1: 0.75}, reward=0.75)
    await store.aclose()
    return tmp_path / "job"


def tree_of(job: Path, rollout: str) -> Tree:
    return tree_from_events(read_events(job, rollout))


def again(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(msgspec.json.encode(record)) for record in records]


async def test_each_leaf_has_its_own_reward_and_reads_back(job: Path) -> None:
    records = again(export_verifiers(job, check=True))
    assert [(r["tree_id"], r["leaf_id"], r["reward"]) for r in records] == [
        ("r1", 3, 1.0), ("r1", 4, 1.0), ("r1", 5, 0.0), ("r1", 6, 0.0), ("r1", 7, 1.0),
        ("r2", 4, 0.25), ("r2", 5, None), ("r3", 1, 0.75),
    ]  # fmt: skip
    assert [r["stop_condition"] for r in records[5:7]] == ["scored", "infra_error"]
    assert "spans" not in records[0]
    for found in records:
        [path] = [
            p for p in trajectories(tree_of(job, found["tree_id"])) if p.leaf == found["leaf_id"]
        ]
        assert read_messages(found["prompt"]) == path.prompt
        assert read_messages(found["completion"]) == path.completion
    assert len(list(export_verifiers(job, scored_only=True))) == 7


@pytest.mark.parametrize(("scheme", "total"), [("inv", 70), ("own", 70), ("suffix", 50)])
async def test_tokens_of_the_worked_example_count_once(job: Path, scheme: str, total: int) -> None:
    records = [r for r in again(export_verifiers(job, weights=scheme)) if r["tree_id"] == "r1"]
    assert sum(len(r["token_ids"]) for r in records) == 100
    assert sum(sum(r["token_weights"]) for r in records) == pytest.approx(total, abs=1e-12)
    [tree] = [r for r in again(export_trees(job, weights=scheme)) if r["tree_id"] == "r1"]
    assert sum(10 * node.get("weight", 0) for node in tree["nodes"]) == pytest.approx(total)
    assert len({i for node in tree["nodes"] for i in node.get("token_ids", [])}) == 70
    for found in records:
        assert {len(found[k]) for k in ("token_ids", "token_weights", "loss_mask", "logprobs")} == {
            20
        }
        masked = [w == 0 for w in found["token_weights"]]
        options = [s["kind"] == "enumerated" for s in found["spans"] for _ in range(10)]
        assert found["loss_mask"] == [
            int(not m and not o) for m, o in zip(masked, options, strict=True)
        ]


async def test_paths_weigh_what_they_count_for_in_the_value(job: Path) -> None:
    records = [r for r in again(export_verifiers(job, weights="path")) if r["tree_id"] == "r1"]
    last = [r["spans"][-1]["token_weight"] for r in records]
    assert last == pytest.approx([1 / 6, 1 / 6, 1 / 6, 3 / 8, 1 / 8])
    weighed = sum(w * r["reward"] for w, r in zip(last, records, strict=True))
    assert weighed == pytest.approx(11 / 24)


async def test_advantages_by_scheme(job: Path) -> None:
    found = again(export_verifiers(job, weights="inv", advantage="node"))
    first, lame, chain = found[0], found[6], found[7]
    assert [s["advantage"] for s in first["spans"]] == pytest.approx([5 / 12, 1 / 2])
    assert first["token_advantages"][:10] == [first["spans"][0]["advantage"]] * 10
    assert first["spans"][1]["messages"] == [2, 4]
    assert first["spans"][1]["tokens"] == [10, 20]
    assert [s["loss_mask"] for s in lame["spans"]] == [0, 0], "it was never scored"
    assert lame["spans"][-1]["advantage"] is None
    trunk = 0.75 - (11 / 24 + 0.25) / 2
    assert chain["spans"][0]["advantage"] == pytest.approx(trunk), "against the other trees"
    mean = (3 + 0.25 + 0.75) / 7
    flat = again(export_verifiers(job, advantage="prime-rl"))
    assert flat[0]["spans"][0]["advantage"] == pytest.approx(1 - mean)
    [tree] = [r for r in again(export_trees(job, advantage="prime-rl")) if r["tree_id"] == "r1"]
    assert tree["nodes"][1]["advantage"] == pytest.approx(2 / 3 - mean)


async def test_trees_hold_each_message_once_and_give_every_path(job: Path) -> None:
    records = again(export_trees(job, check=True))
    assert [r["tree_id"] for r in records] == ["r1", "r2", "r3"]
    first = records[0]
    assert (first["value"], first["se"]) == (pytest.approx(11 / 24), pytest.approx(5 / 24))
    assert [n["parent"] for n in first["nodes"]] == [-1, 0, 0, 1, 1, 1, 2, 2]
    assert records[1]["dropped"] == 1
    assert records[1]["nodes"][2]["branch_reason"] == "group@1"
    for found in records:
        for path in trajectories(tree_of(job, found["tree_id"])):
            assert read_path(found, path.leaf) == path.prompt + path.completion


async def test_a_tree_that_lost_something_is_noticed(job: Path) -> None:
    [record] = [r for r in export_trees(job) if r["tree_id"] == "r1"]
    record["nodes"][4]["messages"][0]["content"] += " "
    with pytest.raises(StoreError, match="leaf 4 of r1"):
        trees._compare(record, tree_of(job, "r1"))


async def test_pairs_hold_two_continuations_of_one_prompt(job: Path) -> None:
    records = again(export_pairs(job))
    assert [(r["node"], r["gap"]) for r in records] == [
        (0, pytest.approx(5 / 12)), (1, 1.0), (1, 1.0),
    ]  # fmt: skip
    top = records[1]
    assert [m["content"] for m in top["prompt"]] == [OPENING[0].content, "a", "a: ok\n"]
    assert (top["chosen"][0]["content"], top["rejected"][0]["content"]) == ("a0", "a2")


async def test_the_command(job: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    out = tmp_path / "out.jsonl"
    done = run(command, [str(job), "-f", "tree", "--check", "--advantage", "node", "-o", str(out)])
    assert (done.exit_code, done.output) == (0, f"3 records in {out}\n")
    wrong = run(command, [str(job), "-f", "pairs", "--weights", "inv"])
    assert "has no --weights" in str(wrong.exception)
    assert run(command, [str(job), "--weights", "twice"]).exit_code == 2
    with pytest.raises(UnknownNameError, match="did you mean 'inv'"):
        list(export_verifiers(job, weights="inw"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.text(max_size=5)), max_size=12))
def test_any_tree_reads_back(shape: list[tuple[int, str]]) -> None:
    tree = Tree(OPENING)
    for number, (pick, text) in enumerate(shape, 1):
        tree.add(pick % number, said(text) if text else MARK)
    nodes = []
    for node in range(len(tree)):
        step, parent = tree.step(node), tree.parent(node)
        nodes.append({
            "node": node,
            "parent": -1 if parent is None else parent,
            "messages": trees.write_messages(step.messages if step else ()),
        })  # fmt: skip
    record = {"tree_id": "t", "prompt": trees.write_messages(tree.opening), "nodes": nodes}
    trees._compare(record, tree)
