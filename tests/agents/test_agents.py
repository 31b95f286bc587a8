"""The nop, oracle, scripted and program agents, on the fake sandbox."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import (
    AgentError,
    ConfigError,
    SandboxLostError,
    UnsupportedError,
)
from ramify.contracts.sandbox import ExecResult, SandboxSpec
from ramify.contracts.task import SolutionSettings, Task, TaskPackage
from ramify.planes.agent.nop import NopAgent
from ramify.planes.agent.oracle import OracleAgent
from ramify.planes.agent.program import ProgramAgent
from ramify.planes.agent.scripted import ScriptedAgent
from ramify.testing.fakecontext import fake_context
from ramify.testing.fakes import FakeProvider

SOLVE = re.compile(r"/solution/solve\.sh")


class Stand:
    """A task directory with a solution, a fake sandbox and a context."""

    def __init__(self, tmp_path, solution=SolutionSettings(), **package):  # noqa: B008 (frozen)
        self.root = tmp_path / "task"
        (self.root / "solution").mkdir(parents=True)
        (self.root / "solution/solve.sh").write_text("echo 42 > answer.txt\n")
        spec = SandboxSpec(host_root=True, workdir="/work")
        self.task = Task(
            "set:one",
            input="Do it.",
            package=TaskPackage(str(self.root), "d", spec, solution=solution, **package),
        )
        self.artifacts = tmp_path / "artifacts"
        self.provider = FakeProvider()

    async def open(self, agent):
        self.sandbox = await self.provider.create(SandboxSpec(host_root=True))
        self.ctx = fake_context(self.task, artifacts=self.artifacts, sandbox=self.sandbox)
        return await agent.connect(self.sandbox, self.ctx)

    @property
    def recorded(self):
        return self.ctx.recorder.steps


def said(step):
    return step.messages[-1].content


async def test_nop_touches_nothing_and_ends_every_turn(tmp_path):
    stand = Stand(tmp_path)
    session = await stand.open(NopAgent())
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert await session.prompt("Really.") is StopReason.END_TURN
    await session.aclose()
    assert (stand.recorded, stand.sandbox.calls, list(session.steps)) == ([], [], [])


async def test_oracle_runs_the_solution_as_the_agent_in_the_work_directory(tmp_path):
    solution = SolutionSettings(env={"SEED": "1"})
    stand = Stand(tmp_path, solution, agent_user="dev")
    stand.provider.on(SOLVE, b"solved\n")
    session = await stand.open(OracleAgent())
    stand.sandbox.files.write("/solution/old.sh", "x")
    assert await session.prompt("Do it.") is StopReason.END_TURN
    [call] = stand.sandbox.calls
    assert (call.user, call.cwd, call.env) == ("dev", "/work", {"SEED": "1"})
    assert '"$RAMIFY_ROOT"/solution/solve.sh' in call.command
    entry = stand.sandbox.files.entries["/solution/solve.sh"]
    assert (entry.data, entry.owner) == (b"echo 42 > answer.txt\n", "dev")
    assert "/solution/old.sh" not in stand.sandbox.files.entries
    [step] = stand.recorded
    assert (step.action, said(step), step.info["exit_code"]) == (
        "bash /solution/solve.sh",
        "solved",
        0,
    )
    assert await session.prompt("Again.") is StopReason.END_TURN
    assert len(stand.sandbox.calls) == 1


async def test_oracle_without_a_solution_names_the_task(tmp_path):
    stand = Stand(tmp_path, solution=None)
    with pytest.raises(UnsupportedError, match="set:one has no reference solution"):
        await stand.open(OracleAgent())


async def test_a_solution_that_is_no_directory_is_a_configuration_error(tmp_path):
    stand = Stand(tmp_path, SolutionSettings(path="nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        await stand.open(OracleAgent())


async def test_a_failing_solution_is_recorded_and_raised_with_its_last_words(tmp_path):
    stand = Stand(tmp_path)
    stand.provider.on(SOLVE, ExecResult(3, stdout=b"step 1\n", stderr=b"no such file\n"))
    session = await stand.open(OracleAgent())
    with pytest.raises(AgentError, match="exited 3: no such file"):
        await session.prompt("Do it.")
    assert said(stand.recorded[0]) == "step 1\nno such file"


async def test_scripted_runs_each_line_as_a_step(tmp_path):
    script = tmp_path / "script"
    script.write_text("# set up\n\n  ls -l\nfalse  \nmissing\n")
    stand = Stand(tmp_path)
    stand.provider.on("ls -l", b"total 0\n")
    stand.provider.on("false", ExecResult(1))
    session = await stand.open(ScriptedAgent(script))
    assert await session.prompt("Do it.") is StopReason.END_TURN
    first, second, third = stand.recorded
    assistant, tool = first.messages
    [call] = assistant.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("bash", {"command": "ls -l"})
    assert (tool.role, tool.tool_call_id, tool.content) == ("tool", call.id, "total 0")
    assert first.started_at == stand.ctx.clock.now()
    assert (second.info["exit_code"], third.info["exit_code"]) == (1, 127)
    assert list(session.steps) == stand.recorded
    assert {call.cwd for call in stand.sandbox.calls} == {"/work"}


@pytest.mark.parametrize("form", ["json", "toml"])
async def test_scripted_commands_for_later_prompts(tmp_path, form):
    script = tmp_path / f"script.{form}"
    script.write_text(
        '[{"command": "one", "timeout_sec": 5}, {"command": "two", "prompt": 1}]'
        if form == "json"
        else '[[commands]]\ncommand = "one"\ntimeout_sec = 5\n'
        '[[commands]]\ncommand = "two"\nprompt = 1\n'
    )
    stand = Stand(tmp_path)
    stand.provider.on(re.compile("one|two"), b"")
    session = await stand.open(ScriptedAgent(script))
    await session.prompt("Do it.")
    assert [(c.command, c.timeout_sec) for c in stand.sandbox.calls] == [("one", 5)]
    await session.prompt("And the rest?")
    await session.prompt("More?")
    assert [call.command for call in stand.sandbox.calls] == ["one", "two"]
    follow_up = stand.recorded[1].messages[0]
    assert (follow_up.role, follow_up.content) == ("user", "And the rest?")
    assert stand.recorded[0].messages[0].role == "assistant"


async def test_scripted_expected_exit_code(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"command": "a", "expect_exit": 1}, {"command": "b", "expect_exit": 0}]')
    stand = Stand(tmp_path)
    stand.provider.on("a", ExecResult(1))
    stand.provider.on("b", ExecResult(2, stderr=b"why"))
    session = await stand.open(ScriptedAgent(script))
    with pytest.raises(AgentError, match="'b' exited 2, not 0: why"):
        await session.prompt("Do it.")
    assert len(stand.recorded) == 2


async def test_a_command_that_times_out_is_noted(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"command": "hang", "timeout_sec": 0.02}, {"command": "next"}]')
    stand = Stand(tmp_path)
    stand.provider.on("hang", lambda sandbox, call: asyncio.Event().wait())
    session = await stand.open(ScriptedAgent(script))
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert stand.recorded[0].info["note"] == "timed out"
    assert len(stand.recorded) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s", b"echo a\nbad\xff\n", "line 2: is not UTF-8"),
        ("s", b"echo a\n\necho \x00\n", "line 3: holds a control character"),
        ("s", b"echo a \\\n", "line 1: a command must stand on one line"),
        ("s.json", b'[\n{"command": "a"},\n]', "line 3"),
        ("s.json", b'[{"command": ""}]', r"\[0\].command"),
        ("s.json", b'[{"command": "a", "timeout_sec": 0}]', "timeout_sec"),
        ("s.json", b'[{"comand": "a"}]', "comand"),
        ("s.json", b'{"command": "a"}', "array"),
        ("s.toml", b"[[commands]\n", "line 1"),
        ("s.toml", b"[[command]]\ncommand = 1\n", "command: unknown key"),
    ],
)
def test_a_broken_script_is_refused_at_construction(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        ScriptedAgent(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_script_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ScriptedAgent(tmp_path / "none")


async def test_a_steps_output_is_bounded_and_counts_what_was_left_out(tmp_path):
    script = tmp_path / "script"
    script.write_text("flood\n")
    stand = Stand(tmp_path)
    stand.provider.on("flood", ExecResult(0, b"a" * 50_000 + b"z" * 50_000, stdout_dropped=7))
    session = await stand.open(ScriptedAgent(script))
    await session.prompt("Do it.")
    [step] = stand.recorded
    assert len(said(step)) < 34_000
    assert said(step).startswith("aaa")
    assert said(step).endswith("zzz")
    assert step.info["dropped"] == 100_000 - 32 * 1024 + 7


async def hanging(stand, agent):
    """A session whose turn hangs in a command, and the task of that turn."""
    begun = asyncio.Event()
    ended = asyncio.Event()

    async def hang(sandbox, call):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    stand.provider.on("hang", hang)
    session = await stand.open(agent)
    turn = asyncio.create_task(session.prompt("Do it."))
    await begun.wait()
    return session, turn, ended


@pytest.fixture
def hang_script(tmp_path):
    (tmp_path / "hang").write_text("hang\nnever\n")
    return tmp_path / "hang"


async def test_cancel_ends_the_command_and_the_session_goes_on(tmp_path, hang_script):
    stand = Stand(tmp_path)
    session, turn, ended = await hanging(stand, ScriptedAgent(hang_script))
    with pytest.raises(AgentError, match="busy"):
        await session.prompt("Me too.")
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    assert ended.is_set()
    assert [call.command for call in stand.sandbox.calls] == ["hang"]
    assert await session.prompt("Next.") is StopReason.END_TURN
    await session.cancel()


async def test_close_ends_the_turn_and_is_idempotent(tmp_path, hang_script):
    stand = Stand(tmp_path)
    session, turn, ended = await hanging(stand, ScriptedAgent(hang_script))
    await session.aclose()
    await session.aclose()
    assert await turn is StopReason.CANCELLED
    assert ended.is_set()
    with pytest.raises(AgentError, match="closed"):
        await session.prompt("Hello?")


async def test_cancelling_the_caller_ends_the_command_too(tmp_path, hang_script):
    stand = Stand(tmp_path)
    _session, turn, ended = await hanging(stand, ScriptedAgent(hang_script))
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert ended.is_set()


async def test_a_turn_that_is_cancelled_from_within_is_not_a_cancelled_session(tmp_path):
    async def cancelled(sandbox, call):
        raise asyncio.CancelledError

    (tmp_path / "script.json").write_text(
        '[{"command": "hang"}, {"command": "gives up", "prompt": 1}]'
    )
    stand = Stand(tmp_path)
    stand.provider.on("gives up", cancelled)
    session, turn, _ = await hanging(stand, ScriptedAgent(tmp_path / "script.json"))
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    with pytest.raises(asyncio.CancelledError):
        await session.prompt("Next.")


async def test_a_lost_sandbox_is_not_the_agents_error(tmp_path, hang_script):
    stand = Stand(tmp_path)
    session = await stand.open(ScriptedAgent(hang_script))
    stand.provider.fail("exec", SandboxLostError("gone"))
    with pytest.raises(SandboxLostError):
        await session.prompt("Do it.")


async def test_program_gets_the_instruction_as_an_argument(tmp_path):
    async def program(sandbox, call, process):
        process.say(call.command.encode())
        return 0

    stand = Stand(tmp_path, agent_user="dev")
    stand.provider.on_spawn(re.compile("^solver"), program)
    session = await stand.open(ProgramAgent("solver --task '{prompt}' -v", env={"A": "b"}))
    assert await session.prompt('say "hi"; it\'s $HOME') is StopReason.END_TURN
    [call] = stand.sandbox.calls
    assert call.command == """solver --task 'say "hi"; it'"'"'s $HOME' -v"""
    assert (call.user, call.cwd, call.env) == ("dev", "/work", {"A": "b"})
    [step] = stand.recorded
    assert step.action == "solver --task '{prompt}' -v"
    assert said(step) == call.command
    assert (stand.artifacts / "agent/program-1.log").read_text() == call.command


async def test_program_gets_the_instruction_on_standard_input_and_is_run_again(tmp_path):
    async def program(sandbox, call, process):
        data = await process.stdin.read()
        process.say(b"got " + data)
        process.say(b"warned", err=True)
        return 0

    stand = Stand(tmp_path)
    stand.provider.on_spawn("cat -", program)
    session = await stand.open(ProgramAgent(["cat", "-"]))
    await session.prompt("one")
    await session.prompt("two")
    assert [sorted(said(step).replace("warned", " warned").split()) for step in stand.recorded] == [
        ["got", "one", "warned"],
        ["got", "two", "warned"],
    ]
    assert stand.recorded[1].messages[0].content == "two"
    await session.aclose()


async def test_program_that_fails_is_an_agent_error_and_recorded(tmp_path):
    async def program(sandbox, call, process):
        process.say(b"x" * 200_000 + b"the end")
        return 3

    stand = Stand(tmp_path)
    stand.provider.on_spawn("solver", program)
    session = await stand.open(ProgramAgent("solver"))
    with pytest.raises(AgentError, match="solver exited 3: x+the end"):
        await session.prompt("unread")
    [step] = stand.recorded
    assert step.info["exit_code"] == 3
    assert step.info["dropped"] == 200_007 - 32 * 1024
    assert (stand.artifacts / "agent/program-1.log").stat().st_size == 200_007


async def test_cancel_kills_the_program(tmp_path):
    begun = asyncio.Event()

    async def program(sandbox, call, process):
        begun.set()
        await asyncio.Event().wait()
        return 0

    stand = Stand(tmp_path)
    stand.provider.on_spawn("solver", program)
    session = await stand.open(ProgramAgent("solver"))
    turn = asyncio.create_task(session.prompt("Do it."))
    await begun.wait()
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    assert stand.sandbox.processes[0].killed
    await session.aclose()


async def test_only_named_variables_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("GIVEN", "yes")
    monkeypatch.setenv("SECRET", "no")

    async def program(sandbox, call, process):
        return 0

    stand = Stand(tmp_path)
    stand.provider.on_spawn("solver", program)
    for names in (["GIVEN"], "GIVEN"):
        session = await stand.open(ProgramAgent("solver", pass_env=names))
        await session.prompt("Do it.")
        assert stand.sandbox.calls[0].env == {"GIVEN": "yes"}
    with pytest.raises(ConfigError, match="ABSENT is not set"):
        ProgramAgent("solver", pass_env=["ABSENT"])


@pytest.mark.parametrize("command", ["", "   ", "solver 'open", []])
def test_a_command_line_that_is_none_is_refused(command):
    with pytest.raises(ConfigError, match="command"):
        ProgramAgent(command)
