"""Rewards that compare siblings: final once all of these have ended, whatever happens between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded_parts import TASKS, Saying, play, said, sandboxes

import ramify
from ramify.contracts.errors import InvalidRewardError, UnsupportedError
from ramify.contracts.messages import Message
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import Granularity, RewardEvent, Space
from ramify.contracts.task import Task, TaskPackage, TaskStep
from ramify.contracts.tree import Outcome
from ramify.edges.outbound.tree import export_trees
from ramify.edges.outbound.verifiers import export_verifiers
from ramify.engine.cancel import Cancellation
from ramify.engine.reading import read_events, read_results, recorded_results
from ramify.engine.revisions import REVISIONS_FILE
from ramify.envs.run import open_job
from ramify.kernel.outline import leaf_returns
from ramify.kernel.tree import tree_from_events


def number(completion: Sequence[Message]) -> float:
    return float(said(completion))


def rank(completions: Sequence[Sequence[Message]]) -> list[float]:
    """How many siblings say less."""
    numbers = [said(one) for one in completions]
    return [float(sum(other < mine for other in numbers)) for mine in numbers]


def ranked() -> ramify.Rubric:
    return ramify.Rubric([number, rank], [0.5, 1.0], name="core")


def rewards(results: Any) -> dict[str, float | None]:
    return {f"{one.task_id}-{one.repeat}": one.reward for one in results}


FINAL = {f"set:{task}-{n}": n * 1.5 for task in "ab" for n in range(3)}


def shown(job: Path) -> None:
    """Everything that reads a job says the same."""
    assert rewards(read_results(job).values()) == FINAL
    assert {f"{r['task_id']}-{r['info']['repeat']}": r["reward"]
            for r in export_verifiers(job)} == FINAL  # fmt: skip
    for record in export_trees(job):
        assert record["reward"] == record["value"] == record["nodes"][-1]["reward"]
        assert record["reward"] == FINAL[f"{record['task_id']}-{record['info']['repeat']}"]
    for key, result in read_results(job).items():
        tree = tree_from_events(read_events(job, key))
        assert list(leaf_returns(tree).values()) == [result.reward]
        names = [event.name for event in tree.rewards(len(tree) - 1)]
        assert sorted(names) == ["core.number", "core.rank", "reward"], "each signal once"
    whole = {event.rollout_id for event in read_events(job)}
    assert whole == set(read_results(job))


async def test_siblings_are_compared_when_all_have_ended(tmp_path: Path) -> None:
    report = await play(tmp_path / "job", ranked())
    assert rewards(report.results) == FINAL
    assert (report.summary.mean, report.summary.pending) == (1.5, 0)
    assert all(one.items.keys() == {"core.number", "core.rank"} for one in report.results)
    shown(tmp_path / "job")
    first = recorded_results(tmp_path / "job")
    assert all(one.pending == ("core.rank",) for one in first.values()), "what was is kept"


async def test_a_stream_gives_final_results_only(tmp_path: Path) -> None:
    found = [
        result
        async for result in ramify.stream(
            ramify.MemoryTaskset("set", TASKS),
            agent=Saying(),
            sandbox=sandboxes(),
            reward=ranked(),
            options=ramify.RunOptions(out=tmp_path / "job", repeats=3),
        )
    ]
    assert rewards(found) == FINAL
    assert len(found) == 6


@pytest.mark.parametrize("cut", [0, 1, 200])
async def test_what_a_crash_left_provisional_is_completed_without_agents(
    tmp_path: Path, cut: int
) -> None:
    job = tmp_path / "job"
    await play(job, ranked())
    file = job / REVISIONS_FILE
    file.write_bytes(file.read_bytes()[:cut] if cut else b"")
    provisional = read_results(job)
    assert all(one.pending for one in provisional.values())
    agent = Saying()
    report = await play(job, ranked(), agent)
    assert not agent.asked
    assert rewards(report.results) == FINAL
    shown(job)
    size = file.stat().st_size
    await play(job, ranked(), agent)
    assert file.stat().st_size == size, "and nothing is done twice"


async def test_a_sibling_that_comes_later_is_compared_too(tmp_path: Path) -> None:
    job = tmp_path / "job"
    await play(job, ranked())
    lines = (job / "results.jsonl").read_bytes().splitlines(keepends=True)
    late = msgspec.json.decode(lines[-1])["rollout_id"]
    (job / "results.jsonl").write_bytes(b"".join(lines[:-1]))  # as if it had never ended
    before = read_results(job)
    task = late[0]
    assert all(bool(one.pending) == (one.task_id == f"set:{task}") for one in before.values()), (
        "scores that were made with another sibling do not count"
    )
    agent = Saying()
    report = await play(job, ranked(), agent)
    assert agent.asked == [late]
    assert rewards(report.results) == FINAL
    shown(job)


async def test_a_group_function_that_fails_loses_nothing(tmp_path: Path) -> None:
    broken = True

    def rank_or_fail(completions: Sequence[Sequence[Message]]) -> list[float]:
        if broken:
            raise RuntimeError("no ranks today")
        return rank(completions)

    def rubric() -> ramify.Rubric:
        found = ramify.Rubric([number], [0.5], name="core")
        found.add(rank_or_fail, 1.0, name="rank", group=True)
        return found

    job, agent = tmp_path / "job", Saying()
    report = await play(job, rubric(), agent)
    for one in report.results:
        assert (one.outcome, one.reward) == (Outcome.INFRA_ERROR, None)
        assert one.error is not None
        assert one.error.code == "reward_failed"
        assert one.items == {"core.number": float(one.repeat)}
        assert "no ranks today" in one.reward_errors["core.rank"]
    assert report.summary.reward_errors == {"core.rank": 6}
    broken = False
    report = await play(job, rubric(), agent)
    assert len(agent.asked) == 6, "no agent ran again"
    assert rewards(report.results) == FINAL
    shown(job)


async def test_what_was_scored_with_the_sandbox_at_hand_stands(tmp_path: Path) -> None:
    async def files(ctx: ramify.Context) -> float:
        done = await ctx.sandbox.exec("count files")  # type: ignore[union-attr]  (it is alive)
        return float(done.exit_code)

    rubric = ramify.Rubric([files, rank], [1.0, 1.0], name="core")
    report = await play(tmp_path / "job", rubric)
    assert rewards(report.results) == {
        f"set:{task}-{n}": 127.0 + n for task in "ab" for n in range(3)
    }
    assert all(not one.reward_errors for one in report.results)


async def test_one_that_lacks_a_part_is_scored_again_by_the_next_run(tmp_path: Path) -> None:
    broken = True

    def flaky(completion: Sequence[Message]) -> float:
        if broken:
            raise ConnectionError("the judge is down")
        return number(completion)

    def rubric() -> ramify.Rubric:
        return ramify.Rubric([flaky], name="core")

    job, agent = tmp_path / "job", Saying(fails=True)
    report = await play(job, rubric(), agent, repeats=1)
    assert [one.outcome for one in report.results] == [Outcome.INFRA_ERROR] * 2
    assert len(agent.asked) == 2, "an agent is not run again for a reward's failure"
    broken = False
    report = await play(job, rubric(), agent, repeats=1)
    assert len(agent.asked) == 2
    assert [one.outcome for one in report.results] == [Outcome.AGENT_ERROR] * 2
    assert rewards(report.results) == {"set:a-0": 0.0, "set:b-0": 0.0}
    again = read_results(job)
    assert {one.outcome for one in again.values()} == {Outcome.AGENT_ERROR}


async def test_an_interrupted_job_leaves_provisional_rewards(tmp_path: Path) -> None:
    scope = Cancellation()

    class Stopping(Saying):
        async def connect(self, sandbox: Any, ctx: Any, role: str = "agent") -> Any:
            if ctx.rollout_id.endswith("-1"):
                scope.cancel("enough")
            return await Saying.connect(self, sandbox, ctx, role)

    job = tmp_path / "job"
    found: list[RolloutResult] = []
    async with open_job(
        ramify.MemoryTaskset("set", TASKS[:1]),
        agent=Stopping(),
        sandbox=sandboxes(),
        reward=ranked(),
        options=ramify.RunOptions(out=job, repeats=3, concurrency=1),
        cancel=scope,
    ) as (running, _):
        found = [result async for result in running.stream()]
    assert {one.repeat: one.outcome for one in found}[0] is Outcome.SCORED
    assert all(one.pending for one in found if one.outcome is Outcome.SCORED)


async def test_events_on_steps_are_seen_in_the_tree(tmp_path: Path) -> None:
    def process(path: Sequence[Any]) -> list[RewardEvent]:
        return [RewardEvent("right", 1.0, Space.ACTION, Granularity.STEP, n.id) for n in path[1:]]

    rubric = ramify.Rubric([process, rank], [1.0, 0.0], name="core")
    await play(tmp_path / "job", rubric, repeats=2)
    for key in read_results(tmp_path / "job"):
        tree = tree_from_events(read_events(tmp_path / "job", key))
        for node in (1, 2):
            found = [e for e in tree.rewards(node) if e.name == "core.process.right"]
            assert [(e.value, e.space) for e in found] == [(1.0, Space.ACTION)]


async def test_steps_that_are_scored_one_by_one_are_not_compared(tmp_path: Path) -> None:
    package = TaskPackage(
        path=str(tmp_path),
        digest="d" * 32,
        sandbox=ramify.SandboxSpec(host_root=True),
        steps=(TaskStep("one", "Do."),),
    )
    task = Task("set:a", input="Do.", package=package)
    with pytest.raises(UnsupportedError, match="steps that are scored one by one"):
        await ramify.run(
            ramify.MemoryTaskset("set", [task]),
            agent=Saying(),
            sandbox=sandboxes(),
            reward=ranked(),
            options=ramify.RunOptions(out=tmp_path / "job"),
        )
    assert not (tmp_path / "job").exists()


async def test_the_loop_runs_on_while_siblings_are_compared(tmp_path: Path) -> None:
    held = asyncio.Event()

    async def slow(completions: Sequence[Any]) -> list[float]:
        if "a" not in done:
            done.append("a")
            await held.wait()  # until the other task's group has been compared
        else:
            held.set()
        return [0.0 for _ in completions]

    done: list[str] = []
    report = await play(tmp_path / "job", ramify.Rubric([slow]), repeats=2)
    assert len(report.results) == 4


async def test_whatever_functions_do_no_score_is_lost(tmp_path: Path) -> None:
    loop, turns = asyncio.get_running_loop(), []

    def raises(completion: Any) -> float:
        raise LookupError("no such word")

    async def hangs(completion: Any) -> float:
        await asyncio.Event().wait()
        return 1.0

    def nan(completion: Any) -> float:
        return float("nan")

    def blocks(completion: Any) -> float:
        """Returns once the loop has turned, which it cannot if this holds it up."""
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        assert turned.wait(30)
        turns.append(1)
        return 1.0

    rubric = ranked()
    for function in (raises, hangs, nan, blocks):
        rubric.add(function, 0.0, timeout_sec=0.1 if function is hangs else 60)
    report = await play(tmp_path / "job", rubric)
    assert rewards(report.results) == FINAL
    for one in report.results:
        assert one.outcome is Outcome.SCORED
        assert one.items == {
            "core.number": one.repeat, "core.rank": one.repeat, "core.blocks": 1.0,
        }  # fmt: skip
        assert {name: text.split(":")[0] for name, text in one.reward_errors.items()} == {
            "core.raises": "LookupError",
            "core.hangs": "CallTimeoutError",
            "core.nan": "NotANumberError",
        }
    assert report.summary.reward_errors == {"core.hangs": 6, "core.nan": 6, "core.raises": 6}
    assert len(turns) >= 6
    again = await play(tmp_path / "job", rubric)
    assert rewards(again.results) == FINAL


async def test_a_failed_function_is_made_good_by_scoring_the_record(tmp_path: Path) -> None:
    def broken(completion: Any) -> float:
        raise ZeroDivisionError("oh")

    agent = Saying()
    report = await play(tmp_path / "job", broken, agent)
    assert {one.outcome for one in report.results} == {Outcome.INFRA_ERROR}
    assert len(agent.asked) == 6, "the agent is not run again for it"
    tasks = ramify.MemoryTaskset("set", TASKS)
    mended = await ramify.score_records(tmp_path / "job", number, tasks=tasks)
    assert rewards(mended.report.results) == {
        f"set:{t}-{n}": float(n) for t in "ab" for n in range(3)
    }
    assert (mended.before.mean, mended.report.summary.mean) == (None, 1.0)
    compared = await ramify.score_records(tmp_path / "job", ranked(), tasks=tasks)
    assert rewards(compared.report.results) == FINAL
    shown(compared.report.path)
    assert not compared.unknown_tasks


async def test_one_that_is_invalid_stays_so(tmp_path: Path) -> None:
    def tampered(completion: Sequence[Message]) -> float:
        if said(completion) == 1:
            raise InvalidRewardError("tampered", "it wrote to the tests")
        return number(completion)

    rubric = ramify.Rubric([tampered, rank], [0.5, 1.0], name="core")
    report = await play(tmp_path / "job", rubric)
    invalid = [one for one in report.results if one.outcome is Outcome.INVALID]
    assert [(one.repeat, one.reward) for one in invalid] == [(1, 0.0)] * 2
    # Its siblings are ranked among those whose evidence can be trusted.
    assert {one.reward for one in report.results if one.repeat == 2} == {2.0}
    again = await ramify.score_records(tmp_path / "job", ranked())
    kept = {one.repeat: (one.outcome, one.reward) for one in again.report.results}
    assert kept[1] == (Outcome.INVALID, 0.0)
    assert kept[2] == (Outcome.SCORED, 2.0)
