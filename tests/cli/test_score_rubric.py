"""`ramify run --rubric`, `ramify score --rubric` and `--stream`, as a user meets them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, started

RUBRIC = """
import os
from ramify import Rubric, VerifyResult, RewardEvent

def steps(path):
    return float(len(path) - 1)

def most(nodes):
    depths = [node.depth for node in nodes]
    return [float(depth == max(depths)) for depth in depths]

def each_step(path):
    return [RewardEvent("seen", 0.5, "action", "step", node.id) for node in path[1:]]

def alive(ctx):
    return float(ctx.sandbox.id)

def on_alpha(task):
    if task.task_id.endswith("alpha"):
        raise RuntimeError("not on alpha")
    return 1.0

def worded(completion):
    text = completion[-1].content
    return VerifyResult(float(len(text)), details={"suspect": "shouting"} if text.isupper() else {})

def judged(judge_model):
    return Rubric([steps])

def kept(ctx):
    return float((ctx.artifacts / "final" / "manifest.json").is_file())

def deadly(nodes):
    if os.path.exists("armed"):
        os.kill(os.getpid(), 9)
    return [float(n) for n in range(len(nodes))]

plain = Rubric([steps], name="core")
compared = Rubric([steps, most, kept], [0.0, 1.0, 0.0], name="core")
stepwise = Rubric([each_step], name="core")
needy = Rubric([steps, alive], [1.0, 0.0], name="core")
partly = Rubric([steps, on_alpha], name="core")
words = Rubric([worded], name="core")
killing = Rubric([steps, deadly], name="core")
"""
WALK = ("--agent", "scripted", "-A", "path=walk.txt")
TALK = '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "%s"}]}\n'


@pytest.fixture
def rubric(ramify: CommandLine) -> str:
    Path("rubric.py").write_text(RUBRIC)
    Path("walk.txt").write_text("echo one > one\necho 42 > answer.txt\n")
    return "rubric.py"


def job_of(path: str) -> dict[str, Any]:
    return json.loads(Path(path, "job.json").read_text())


def by_task(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {record["task_id"].rpartition(":")[2]: record for record in records}


@pytest.mark.namespaces
def test_a_run_is_scored_by_a_rubric_that_stands_in_its_record(
    ramify: CommandLine, tasks: Path, rubric: str
) -> None:
    said = ramify("run", tasks, *WALK, "--rubric", f"{rubric}:plain", "-o", "job", "--json")
    assert said.code == 0, said.err
    *results, _ = said.records
    assert [result["reward"] for result in results] == [2.0, 2.0]
    written = job_of("job")["config"]["reward"]
    assert [entry["name"] for entry in written["entries"]] == ["core.steps"]
    Path(rubric).write_text(RUBRIC.replace("len(path) - 1", "len(path)"))
    again = ramify("run", tasks, *WALK, "--rubric", f"{rubric}:plain", "-o", "job")
    assert again.code == 2
    assert "reward.digest was" in again.complaint


@pytest.mark.namespaces
def test_parts_that_fail_are_counted_and_told(
    ramify: CommandLine, tasks: Path, rubric: str
) -> None:
    said = ramify("run", tasks, *WALK, "--rubric", f"{rubric}:partly", "-o", "job")
    assert said.code == 3
    assert "errors    parts of the reward could not be computed: core.on_alpha on 1" in said.out
    assert "not on alpha" in said.out
    found = by_task(
        [json.loads(line) for line in Path("job/results.jsonl").read_text().splitlines()]
    )
    assert found["alpha"]["error"]["code"] == "reward_failed"
    assert found["alpha"]["items"] == {"core.steps": 2.0}
    assert found["beta"]["reward"] == 3.0


@pytest.mark.namespaces
def test_a_finished_job_is_scored_anew_without_agents(
    ramify: CommandLine, tasks: Path, rubric: str
) -> None:
    options = ("--branch", "group:2@step:1", "-n", "2")
    assert ramify("run", tasks, *WALK, *options, "-o", "job").code == 0
    held = {path: path.read_bytes() for path in Path("job").glob("*.jsonl")}
    said = ramify("score", "job", "--rubric", f"{rubric}:compared", "--json")
    assert said.code == 0, said.err
    *rollouts, totals = said.records
    assert len(rollouts) == 4
    for one in rollouts:
        assert one["before"]["reward"] == 1.0
        assert (one["after"]["leaves"], one["after"]["items"]["core.most"]) == (2, 1.0)
        assert one["after"]["items"]["core.kept"] == 1.0, "each leaf finds its own artifacts"
    assert all(path.read_bytes() == content for path, content in held.items()), "nothing changed"
    scores = totals["path"]
    assert [e["name"] for e in job_of(scores)["config"]["reward"]["entries"]] == [
        "core.steps",
        "core.most",
        "core.kept",
    ]
    exported = ramify("export", scores, "--check").records
    assert len(exported) == 8, "all leaves, each with its reward"
    assert {record["reward"] for record in exported} == {1.0}
    assert exported[0]["completion"] == ramify("export", "job").records[0]["completion"]
    table = ramify("score", "job", "--rubric", f"{rubric}:plain")
    assert "core.steps" in table.out
    assert "95 % interval" in table.out


@pytest.mark.namespaces
def test_signals_on_steps_are_kept(ramify: CommandLine, tasks: Path, rubric: str) -> None:
    assert ramify("run", tasks / "alpha", *WALK, "-o", "job").code == 0
    said = ramify("score", "job", "--rubric", f"{rubric}:stepwise", "--json")
    one, totals = said.records
    nodes = ramify("tree", totals["path"], one["after"]["rollout_id"], "--json").records
    assert [
        [(event["name"], event["space"]) for event in node["rewards"] if event["name"] != "reward"]
        for node in nodes[1:]
    ] == [[("core.each_step.seen", "action")]] * 2


@pytest.mark.namespaces
def test_what_a_rubric_lacks_is_an_error_where_it_lacks(
    ramify: CommandLine, tasks: Path, rubric: str
) -> None:
    assert ramify("run", tasks, *WALK, "-o", "job").code == 0
    needy = ramify("score", "job", "--rubric", f"{rubric}:needy")
    assert needy.code == 0, "the part that fails weighs nothing"
    assert "there is no sandbox any more" in needy.out
    partly = ramify("score", "job", "--rubric", f"{rubric}:partly", "--json")
    assert partly.code == 3
    *rollouts, totals = partly.records
    after = by_task([one["after"] for one in rollouts])
    assert (after["alpha"]["outcome"], after["beta"]["reward"]) == ("infra_error", 3.0)
    assert totals["after"]["reward_errors"] == {"core.on_alpha": 1}
    # With the tasks gone, what was recorded of them is enough for a rubric that asks no more.
    shutil.rmtree(tasks)
    gone = ramify("score", "job", "--rubric", f"{rubric}:plain", "--json")
    assert gone.code == 0
    assert {one["after"]["reward"] for one in gone.records[:-1]} == {2.0}
    assert gone.records[-1]["unknown_tasks"] == ["tasks:alpha", "tasks:beta"]
    told = ramify("score", "job", "--rubric", f"{rubric}:plain")
    assert "2 tasks were not found (tasks:alpha, tasks:beta)" in told.out
    assert partly.records[-1]["unknown_tasks"] == []


@pytest.mark.namespaces
def test_killed_while_siblings_are_compared(
    ramify: CommandLine, tasks: Path, rubric: str, tmp_path: Path
) -> None:
    command = ("run", tasks, *WALK, "--rubric", f"{rubric}:killing", "-n", "2", "-o", "job")
    Path("armed").touch()
    with started(*command, cwd=tmp_path) as doomed:
        doomed.communicate(timeout=60)
    assert doomed.returncode == -signal.SIGKILL
    left = ramify("tree", "job")
    assert left.out.count("provisional") >= 2, "what was scored is there, and says what it is"
    Path("armed").unlink()
    done = ramify(*command, "--json")
    assert done.code == 0, done.err
    *results, totals = done.records
    assert sorted(result["reward"] for result in results) == [2.0, 2.0, 3.0, 3.0]
    assert totals["summary"]["outcomes"] == {"scored": 4}
    again = ramify("export", "job").records
    assert sorted(record["reward"] for record in again) == [2.0, 2.0, 3.0, 3.0]


def test_lines_are_scored_as_they_come(ramify: CommandLine, rubric: str) -> None:
    Path("in.jsonl").write_text(TALK % "yes" + TALK % "NO")
    said = ramify("score", "--stream", "in.jsonl", "--rubric", f"{rubric}:words")
    assert said.code == 0, said.err
    assert [(one["line"], one["reward"]) for one in said.records] == [(1, 3.0), (2, 2.0)]
    assert said.records[1]["suspect"] == ["shouting"]
    assert "alerts    1 suspect" in said.err
    assert "core.worded      2  2.500" in said.err
    Path("in.jsonl").write_text(TALK % "yes" + '{"messages": [{"role": "user", "con')
    torn = ramify(
        "score", "--stream", "in.jsonl", "--rubric", f"{rubric}:words", "--json", "-o", "out.jsonl"
    )
    assert torn.code == 1
    assert torn.out == ""
    assert "in.jsonl: line 2 holds no trajectory" in torn.err
    assert "cut off" in torn.err
    totals = json.loads(torn.err.splitlines()[-1])
    assert (totals["lines"], totals["scored"], totals["bad"]) == (2, 1, 1)
    first, second = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert (first["reward"], second["reward"]) == (3.0, None)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "name the RUN to score, or a FILE"),
        (("--stream", "in.jsonl"), "--stream needs the rubric"),
        (("--stream", "missing", "--rubric", "rubric.py:words"), "missing: cannot be read"),
        (("--stream", "in.jsonl", "--rubric", "rubric.py:nobody"), "there is no 'nobody' in it"),
        (("--stream", "in.jsonl", "--rubric", "no.py:words"), "there is no such file"),
        (("--stream", "in.jsonl", "--rubric", "rubric.py:words", "-o", "/no/out"), "/no/out"),
        (("--stream", "in.jsonl", "--rubric", "rubric.py:words", "-s", "local"), "no sandbox"),
        (("--stream", "in.jsonl", "--rubric", "rubric.py:judged"), "give its model with --judge"),
        (("--follow",), "name the RUN"),
        ((".",), "is not a run directory"),
    ],
)
def test_what_makes_no_sense_is_refused(
    ramify: CommandLine, rubric: str, arguments: tuple[str, ...], why: str
) -> None:
    Path("in.jsonl").write_text(TALK % "yes")
    said = ramify("score", *arguments)
    assert said.code == 2
    assert why in said.complaint


def test_a_growing_file_is_followed_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / "rubric.py").write_text(RUBRIC)
    file = tmp_path / "in.jsonl"
    file.write_text(TALK % "one")
    running = started(
        "score", "--stream", "in.jsonl", "--follow", "--rubric", "rubric.py:words", cwd=tmp_path
    )
    try:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["reward"] == 3.0
        with file.open("a") as more:
            more.write(TALK % "three")
        assert json.loads(running.stdout.readline())["reward"] == 5.0
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert out == ""
    assert "paths     2 scored" in err
    assert "Traceback" not in err


def test_standard_input_that_says_nothing_can_be_interrupted(tmp_path: Path) -> None:
    (tmp_path / "rubric.py").write_text(RUBRIC)
    running = started(
        "score", "--stream", "-", "--rubric", "rubric.py:words", cwd=tmp_path, stdin=-1
    )
    with running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(TALK % "one")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["reward"] == 3.0
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(timeout=60)  # though its input goes on
        finally:
            running.kill()
    assert running.returncode == 130
