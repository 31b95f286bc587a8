"""`ramify run --branch` and `ramify tree`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import CommandLine

pytestmark = pytest.mark.namespaces

LOCAL = ("--agent", "scripted", "-A", "path=walk.txt", "--task-id", "alpha")


@pytest.fixture
def walk(ramify: CommandLine) -> None:
    Path("walk.txt").write_text(
        'echo $(basename "$(mktemp -u)") > drawn\necho two > two\necho 42 > answer.txt\n'
    )


def test_a_tree_is_shown_with_its_values(ramify: CommandLine, tasks: Path, walk: None) -> None:
    said = ramify("run", tasks, *LOCAL, "-n", "1", "--branch", "group:3@step:1", "--out", "job")
    assert said.code == 0, said.err
    assert "leaves" in said.out
    (rollout,) = [path.name for path in Path("job/rollouts").iterdir()]
    shown = ramify("tree", "job", rollout)
    assert shown.code == 0
    assert "V 1.000 ± 0.000 (3 leaves)" in shown.out
    assert shown.out.count("[group@1]") == 3
    nodes = [json.loads(line) for line in ramify("tree", "job", rollout, "--json").out.splitlines()]
    assert nodes[1]["value"] == {
        "value": 1.0, "se": 0.0, "n": 3, "leaves": 3, "dropped": 0, "forced": 0,
        "biased": False, "assumed_priors": False, "partial": False,
    }  # fmt: skip
    assert nodes[1]["state"], "the checkpoint is named at its node"


def test_what_two_nodes_differ_in(ramify: CommandLine, tasks: Path, walk: None) -> None:
    ramify("run", tasks, *LOCAL, "-n", "1", "--branch", "group:2@step:0", "--out", "job")
    (rollout,) = [path.name for path in Path("job/rollouts").iterdir()]
    nodes = [json.loads(line) for line in ramify("tree", "job", rollout, "--json").out.splitlines()]
    leaves = sorted({n["node"] for n in nodes} - {n["parent"] for n in nodes})
    one, two = map(str, leaves)
    table = ramify("tree", "job", rollout, "--diff", one, two)
    assert table.code == 0
    assert "drawn" in table.out
    assert "answer.txt" not in table.out, "both wrote the same"
    grown = [
        json.loads(line)
        for line in ramify("tree", "job", rollout, "--diff", "0", one, "--json").out.splitlines()
    ]
    assert {c["key"]: c["kind"] for c in grown} == {
        "answer.txt": "added", "drawn": "added", "two": "added",
    }  # fmt: skip
    assert "the same world" in ramify("tree", "job", rollout, "--diff", one, one).out
    for bad, why in (("99", "there is no node 99"), ("3", "was not written down")):
        refused = ramify("tree", "job", rollout, "--diff", "0", bad)
        assert refused.code == 2
        assert why in refused.err


def test_four_roots_by_default(ramify: CommandLine, tasks: Path, walk: None) -> None:
    said = ramify("run", tasks, *LOCAL, "--branch", "depth:1x2", "--out", "job")
    assert "rollouts  4/4 (4 scored)" in said.out


@pytest.mark.parametrize("branch", ["group:1@step:2", "values:8", "leaves"])
def test_a_bad_branch_is_refused_before_anything_starts(
    ramify: CommandLine, tasks: Path, walk: None, branch: str
) -> None:
    said = ramify("run", tasks, *LOCAL, "--branch", branch, "--out", "job")
    assert said.code == 2
    assert "--branch" in said.err
    assert not Path("job").exists()


def test_a_planner_may_answer_chains(ramify: CommandLine, tasks: Path, walk: None) -> None:
    said = ramify("run", tasks, *LOCAL, "--branch", "plan", "-n", "5", "-c", "1", "--out", "job")
    assert said.code == 0, said.err
    assert "plan: tasks:alpha: 4 independent chains" in said.out
    assert "no branching is clearly better" in said.out


def test_no_more_pilots_run_than_a_plan_needs(ramify: CommandLine, tasks: Path, walk: None) -> None:
    command = ("run", tasks, *LOCAL, "--branch", "plan", "-n", "7", "-c", "7", "--out", "job")
    said = ramify(*command)
    assert said.code == 0, said.err
    assert said.out.count("plan: tasks:alpha: ") == 1
    grown = [
        any(e["step"] and e["step"].get("branch_reason") == "pilot" for e in nodes)
        for nodes in (ramify("tree", "job", r["rollout_id"], "--json").records
                      for r in ramify("tree", "job", "--json").records)
    ]  # fmt: skip
    assert grown.count(True) == 4, "the others waited for the plan"
    assert len(grown) == 7
