"""`ramify run --agent chat` against the scripted server: whole tasks, and every way it can fail."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from chat_scripts import SCRIPTS, SOLVED

from ramify.contracts.config import RolloutConfig
from ramify.contracts.events import LogEvent
from ramify.edges.outbound.records import read_messages
from ramify.engine.reading import read_events, read_results
from ramify.envs.options import RunOptions
from ramify.envs.run import run
from ramify.kernel.trajectory import trajectories
from ramify.kernel.tree import tree_from_events
from ramify.testing.openai_server import Fault, OpenAIServer
from ramify.testing.scripted_model import ScriptedModel, call

pytestmark = pytest.mark.namespaces

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
KEY = "sk-test-0123456789abcdef"


@dataclass
class Done:
    code: int
    out: str
    err: str


async def ramify(*arguments: str, cwd: Path) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ramify.cli.main", *arguments,
        cwd=cwd,
        env={**os.environ, "OPENAI_API_KEY": KEY, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return Done(process.returncode or 0, out.decode(), err.decode())


async def chat(server: OpenAIServer, cwd: Path, *more: str) -> Done:
    arguments = ["--agent", "chat", "--model", "openai/x", "--base-url", server.base_url]
    return await ramify("run", str(EXAMPLES), *arguments, "-o", "job", *more, cwd=cwd)


def ids(*names: str) -> list[str]:
    return [word for name in names for word in ("--task-id", name)]


def everything(folder: Path) -> str:
    """All that a job wrote, as one text."""
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_tasks_are_solved_by_reading_and_quoting(stream: str, tmp_path: Path) -> None:
    async with OpenAIServer(SCRIPTS, api_key=KEY) as server:
        done = await chat(server, tmp_path, *ids(*SOLVED), "-M", f"stream={stream}")
    assert done.code == 0, done.out + done.err
    results = read_results(tmp_path / "job")
    assert {r.task_id.partition(":")[2]: r.reward for r in results.values()} == dict.fromkeys(
        SOLVED, 1.0
    )
    calls = 0
    for rollout, result in results.items():
        tree = tree_from_events(read_events(tmp_path / "job", rollout))
        [path] = trajectories(tree)
        assert [m.role for m in path.prompt] == ["system", "user"]
        assert all(step.usage and step.usage.input_tokens > 0 for step in path.steps)
        assert (result.usage.calls, result.steps) == (len(path.steps), len(path.steps))
        assert result.model == "openai/x"
        calls += result.usage.calls
    assert calls == len(server.requests)
    assert json.loads((tmp_path / "job/job.json").read_text())["plan"]["model"] == "openai/x"
    assert KEY not in everything(tmp_path)


async def test_the_export_reads_back_as_the_same_messages(tmp_path: Path) -> None:
    async with OpenAIServer(SCRIPTS) as server:
        await chat(server, tmp_path, *ids("split-chapters"))
    done = await ramify("export", "job", "-o", "out.jsonl", "--check", cwd=tmp_path)
    assert done.code == 0, done.err
    [record] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    [rollout] = read_results(tmp_path / "job")
    [path] = trajectories(tree_from_events(read_events(tmp_path / "job", rollout)))
    assert read_messages(record["prompt"]) == path.prompt
    assert read_messages(record["completion"]) == path.completion
    roles = [message["role"] for message in record["completion"]]
    assert roles[:2] == ["assistant", "tool"]
    calls = record["completion"][2]["tool_calls"]
    assert {c["function"]["name"] for c in calls} == {"write"}
    answered = [m["tool_call_id"] for m in record["completion"][3 : 3 + len(calls)]]
    assert answered == [c["id"] for c in calls]
    assert [tool["name"] for tool in record["info"]["tools"]] == ["bash", "read", "write", "edit"]


FAULTS = {
    "rate limit, then fine": (
        {"faults": [Fault("status", 429, {"Retry-After": "0.1"})]}, 0, "", 1.0,
    ),
    "cut once, then fine": ({"faults": [Fault("cut")]}, 0, "", 1.0),
    "malformed once, then fine": ({"faults": [Fault("malformed")]}, 0, "", 1.0),
    "wrong key": ({"api_key": "another"}, 3, "HTTP 401: Incorrect API key", None),
    "always 429": (
        {"always": Fault("status", 429, {"Retry-After": "0"})}, 3, "HTTP 429: scripted", None,
    ),
    "always 500": ({"always": Fault("status", 500)}, 3, "HTTP 500: scripted failure", None),
    "always cut": ({"always": Fault("cut")}, 3, "ended in the middle of the answer (tried 2", None),
    "always malformed": ({"always": Fault("malformed")}, 3, "malformed JSON", None),
    "always stalled": ({"always": Fault("stall", seconds=9)}, 3, "no answer within 0.3 s", None),
    "context": ({"context": 50}, 0, "limit     context ended 1 of the agents", 0.0),
}  # fmt: skip


STREAMED = ("cut once, then fine", "always cut", "always malformed", "context")


@pytest.mark.parametrize(
    ("case", "stream"), [*((case, "false") for case in FAULTS), *((c, "true") for c in STREAMED)]
)
async def test_each_failure_ends_with_one_clear_line(
    case: str, stream: str, tmp_path: Path
) -> None:
    how, code, says, reward = FAULTS[case]
    async with OpenAIServer(SCRIPTS, **how) as server:
        done = await chat(
            server, tmp_path, *ids("top-clients"), "--max-retries", "0", "-M", "max_retries=1",
            "-M", f"stream={stream}", "-M", "first_byte_sec=0.3",
        )  # fmt: skip
    assert done.code == code, done.out + done.err
    said = [line for line in (done.out + done.err).splitlines() if says and says in line]
    assert len(said) == (1 if says else 0), done.out + done.err
    assert "Traceback" not in done.out + done.err
    [result] = read_results(tmp_path / "job").values()
    assert result.reward == reward
    assert result.steps == (3 if reward == 1.0 else 0)
    assert result.usage.calls == result.steps
    assert KEY not in everything(tmp_path) + done.out + done.err


async def test_an_unreachable_endpoint_is_ours_and_not_the_agents(tmp_path: Path) -> None:
    done = await ramify(
        "run", str(EXAMPLES), "-a", "chat", "-m", "openai/x", "--base-url", "http://127.0.0.1:1/v1",
        *ids("top-clients"), "-o", "job", "--max-retries", "0", "-M", "max_retries=0",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 3
    [result] = read_results(tmp_path / "job").values()
    assert (result.outcome, result.reward, result.steps) == ("infra_error", None, 0)
    assert result.error is not None
    assert result.error.retryable
    lines = [x for x in done.out.splitlines() if "openai/x at http://127.0.0.1:1/v1: cannot" in x]
    assert len(lines) == 1


async def test_a_hanging_tool_is_killed_and_the_model_told(tmp_path: Path) -> None:
    def after(seen):
        assert "timed out after 0.3 s" in seen.answers[0]
        return "It hangs."

    script = [call("bash", command="echo begun; sleep 60", timeout_sec=0.3), after]
    async with OpenAIServer(script) as server:
        done = await chat(server, tmp_path, *ids("top-clients"))
    assert done.code == 0, done.out + done.err
    [result] = read_results(tmp_path / "job").values()
    assert (result.outcome, result.reward, result.steps) == ("scored", 0.0, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-a", "chat"], "needs a model; give one with --model"),
        (["-a", "chat", "-m", "x"], "'x' is no model; write provider/name"),
        (["-a", "chat", "-m", "opnai/x"], "did you mean 'openai'"),
        (["-a", "chat", "-m", "openai/x", "-M", "api-key=k"], "never an option"),
        (["-a", "chat", "-m", "openai/x", "-M", "speed=9"], "option of openai 'speed'"),
        (["-a", "chat", "-m", "openai/x", "--base-url", "ftp://x"], "no address of an endpoint"),
        (["-a", "chat", "-m", "openai/x", "--base-url", "http://k@x/v1"], "no user, password"),
        (["-a", "chat", "-m", "openai/x", "-M", "api_key_env=UNSET_KEY"], "set UNSET_KEY"),
        (["-a", "nop", "--base-url", "http://x/v1"], "without a model"),
    ],
)
async def test_what_cannot_run_is_refused_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    done = await ramify("run", str(EXAMPLES), *arguments, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    [line] = done.err.splitlines()
    assert says in line
    assert everything(tmp_path) == ""


async def test_a_model_of_the_callers_own_is_used_and_left_open(tmp_path: Path) -> None:
    model = ScriptedModel(SCRIPTS, name="mine/x")
    options = RunOptions(
        task_ids=("top-clients",),
        model=model,
        out=tmp_path / "job",
        rollout=RolloutConfig(max_turns=2),
    )
    report = await run(EXAMPLES, agent="chat", options=options)
    [result] = report.results
    assert (result.reward, result.model, result.steps) == (1.0, "mine/x", 2)
    assert not model.closed
    events = read_events(tmp_path / "job", result.rollout_id)
    [limit] = [event for event in events if isinstance(event, LogEvent)]
    assert limit.fields["limit"] == "turns"


async def test_the_agents_time_is_up_in_the_middle_of_a_tool(tmp_path: Path) -> None:
    model = ScriptedModel([call("bash", command="echo begun > top.txt; sleep 60")])
    options = RunOptions(
        task_ids=("top-clients",),
        model=model,
        out=tmp_path / "job",
        rollout=RolloutConfig(timeout_sec=0.8),
    )
    report = await run(EXAMPLES, agent="chat", options=options)
    [result] = report.results
    assert (result.outcome, result.reward, result.steps) == ("agent_timeout", 0.0, 1)
    assert result.usage.calls == 1
    [path] = trajectories(tree_from_events(read_events(tmp_path / "job", result.rollout_id)))
    assert path.completion[-1].content == "Error: stopped before it finished"
