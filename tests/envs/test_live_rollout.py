"""A rollout driven by hand, and jobs whose rollouts branch, in real sandboxes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import ramify
from ramify.contracts.errors import UnsupportedError, UsageError
from ramify.contracts.tree import NodeStatus, Outcome
from ramify.engine.reading import read_events, read_results
from ramify.kernel.tree import tree_from_events

TASK = Path(__file__).parents[1] / "crash" / "tasks" / "alpha"
SANDBOXES = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


async def say(rollout: ramify.LiveRollout, line: str) -> str:
    done = await (await rollout.sandbox()).exec(line)
    assert done.ok, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.parametrize("sandbox", SANDBOXES)
async def test_siblings_never_see_each_other(sandbox: str, tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", sandbox=sandbox, options=options) as root:
        await root.prompt()
        await say(root, "echo root > shared; echo old > answer.txt")
        children = await root.branch(3)

        async def live(number: int, child: ramify.LiveRollout) -> float | None:
            assert await say(child, "cat shared") == "root"
            await say(child, f"echo {number} > shared; echo {number} > own-{number}")
            if number == 1:
                await say(child, "echo alpha > answer.txt")
            grandchildren = await child.branch(2)
            for grandchild in grandchildren:
                assert await say(grandchild, "cat shared") == str(number)
                await say(grandchild, "echo grandchild > shared")
            assert await say(child, "cat shared") == str(number), "the child goes on as it was"
            assert await say(child, "ls own-*") == f"own-{number}"
            found = await child.score()
            for grandchild in grandchildren:
                await grandchild.score()
            return found.reward

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(live(n, child)) for n, child in enumerate(children)]
        assert [task.result() for task in tasks] == [0.0, 1.0, 0.0]
        assert await say(root, "cat shared") == "root", "and so does the root"
    (result,) = read_results(tmp_path / "job").values()
    assert (result.outcome, result.leaves) == (Outcome.SCORED, 9)
    assert result.reward == pytest.approx(1 / 3)
    tree = tree_from_events(read_events(tmp_path / "job", result.rollout_id))
    assert sum(tree.status(leaf) is NodeStatus.SCORED for leaf in tree.leaves()) == 9


@pytest.mark.namespaces
async def test_a_path_that_nobody_scored_was_cancelled(tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", options=options) as root:
        one, _two = await root.branch(2)
        await one.score()
    (result,) = read_results(tmp_path / "job").values()
    assert result.outcome is Outcome.CANCELLED, "not final: the rollout can be run again"
    assert (result.leaves, result.dropped) == (2, 1)


@pytest.mark.namespaces
async def test_a_checkpoint_of_an_unchanged_place_is_the_same(tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", options=options) as root:
        first = await root.checkpoint()
        assert await root.checkpoint() is first
        await say(root, "echo by hand > shared")
        (child,) = await root.branch(1)
        assert await say(child, "cat shared") == "by hand"


async def test_one_task_with_one_step_is_driven_by_hand(tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    with pytest.raises(UsageError, match="one task is driven by hand, not 3"):
        async with ramify.open_rollout(TASK.parent, agent="nop", sandbox="bare", options=options):
            raise AssertionError("it began")


async def test_bare_cannot_branch_and_says_so(tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", sandbox="bare", options=options) as root:
        with pytest.raises(UnsupportedError, match="cannot be branched"):
            await root.branch(2)
        assert await say(root, "echo it goes on") == "it goes on"
        await root.score()


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize(
    ("branch", "leaves"), [("group:3@step:0", 3), ("depth:0x2,2x2", 4), ("values:2x2", 5)]
)
async def test_jobs_branch(sandbox: str, branch: str, leaves: int, tmp_path: Path) -> None:
    script = tmp_path / "walk.txt"
    script.write_text("echo one > one\necho two > two\ncat one two\necho alpha > answer.txt\n")
    report = await ramify.run(
        TASK,
        agent="scripted",
        sandbox=sandbox,
        options=ramify.RunOptions(
            branch=branch, repeats=1, agent_options={"path": str(script)}, out=tmp_path / "job"
        ),
    )
    (result,) = report.results
    assert (result.outcome, result.error, result.leaves) == (Outcome.SCORED, None, leaves)
    assert (result.reward, result.reward_se) == (1.0, 0.0)
    tree = tree_from_events(read_events(tmp_path / "job", result.rollout_id))
    for leaf in tree.leaves():
        said = [m.content for m in tree.node(leaf).messages if m.role == "tool"]
        assert said == ["", "", "one\ntwo", ""]


@pytest.mark.docker
async def test_what_runs_in_the_background_is_not_lost_without_a_word(tmp_path: Path) -> None:
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", sandbox="docker", options=options) as root:
        await say(root, "(setsid sleep 1234 >/dev/null 2>&1 &)")
        with pytest.raises(UnsupportedError, match="sleep 1234"):
            await root.branch(2)
        assert "sleep" in await say(root, "cat /proc/[0-9]*/comm"), "it goes on"


@pytest.mark.live
async def test_what_runs_goes_on_in_every_child(tmp_path: Path) -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i > new; mv new ticks; sleep 0.02; done"
    options = ramify.RunOptions(out=tmp_path / "job")
    async with ramify.open_rollout(TASK, agent="nop", options=options) as root:
        await say(root, f"(setsid sh -c '{count}' >/dev/null 2>&1 &); sleep 0.3")
        cut = await root.checkpoint()
        assert cut.image.live
        seen = int(await say(root, "cat ticks"))
        for child in await root.branch(3):
            now = int(await say(child, "cat ticks"))
            await say(child, "sleep 0.2")
            assert seen - 20 < now < int(await say(child, "cat ticks")), "it goes on from there"
