"""Sessions that are copied between two steps: each copy goes on exactly where it stood."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import re

import msgspec
import pytest

from ramify.contracts.agent import Checkpointable, StopReason
from ramify.contracts.config import RolloutConfig
from ramify.contracts.errors import AgentError, UnsupportedError, UsageError
from ramify.contracts.messages import Usage
from ramify.contracts.result import FINAL_STATE, FinalState, KeptPath
from ramify.contracts.sandbox import ExecResult, SandboxSpec
from ramify.contracts.task import SolutionSettings, Task, TaskPackage
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.chat import ChatAgent
from ramify.planes.agent.oracle import OracleAgent
from ramify.planes.agent.program import ProgramAgent
from ramify.planes.agent.recorded import RecordedAgent
from ramify.planes.agent.scripted import ScriptedAgent
from ramify.planes.agent.shell import ShellAgent
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.fakecontext import FakeRecorder, fake_context
from ramify.testing.fakes import FakeProcess, FakeProvider, FakeSandbox
from ramify.testing.scripted_model import Reply, ScriptedModel, call

SPEC = SandboxSpec(host_root=True)


class Parking(FakeRecorder):
    """Waits for ever in the step of a number."""

    def __init__(self, number):
        super().__init__()
        self.number, self.parked = number, asyncio.Event()

    async def step(self, step):
        made = await super().step(step)
        if made == self.number:
            self.parked.set()
            await asyncio.Event().wait()
        return made


class Stand:
    """An agent on a fake sandbox, to be run, parked and restored."""

    def __init__(self, tmp_path, agent, model=None, config=None, package=None):
        self.agent, self.model, self.provider = agent, model, FakeProvider()
        self.provider.on("work", b"worked\n")
        self.provider.on(re.compile("work"), b"worked\n")
        self.task = Task("set:one", "Do it.", package=package)
        self.tmp_path, self.config = tmp_path, config or RolloutConfig()

    async def context(self, recorder):
        sandbox = await self.provider.create(SPEC)
        ctx = fake_context(self.task, artifacts=self.tmp_path, sandbox=sandbox, config=self.config)
        ctx = dataclasses.replace(ctx, recorder=recorder, model=self.model)
        return sandbox, ctx

    async def whole(self, *prompts):
        """The steps and ends of an uninterrupted run."""
        sandbox, ctx = await self.context(FakeRecorder())
        session = await self.agent.connect(sandbox, ctx)
        ends = [await ended(session.prompt(text)) for text in prompts]
        await session.aclose()
        return ctx.recorder.steps, ends

    async def parked(self, number, *prompts):
        """A state taken while the step of that number is recorded, and the steps until then."""
        recorder = Parking(number)
        sandbox, ctx = await self.context(recorder)
        session = await self.agent.connect(sandbox, ctx)
        assert isinstance(session, Checkpointable)

        async def run():
            for text in prompts:
                await ended(session.prompt(text))

        turn = asyncio.create_task(run())
        await recorder.parked.wait()
        state = session.checkpoint()
        turn.cancel()
        await asyncio.wait({turn})
        await session.aclose()
        return state, recorder.steps

    async def restored(self, state):
        sandbox, ctx = await self.context(FakeRecorder())
        return await state.restore(sandbox, ctx), ctx


async def ended(turn):
    try:
        return await turn
    except AgentError as error:
        return str(error)


def plain(steps):
    return [msgspec.to_builtins(step) for step in steps]


async def goes_on_everywhere(stand, *prompts):
    """Park in each step: whatever copy goes on, the union is the uninterrupted run."""
    whole, ends = await stand.whole(*prompts)
    assert whole
    per_prompt = []  # at which step each prompt begins
    for number in range(1, len(whole) + 1):
        state, before = await stand.parked(number, *prompts)
        for _ in range(2):
            session, ctx = await stand.restored(state)
            assert plain(session.steps) == plain(whole[:number])
            found = [await ended(session.proceed())]
            while len(found) < len(ends) and len(session.steps) < len(whole):
                found.append(await ended(session.prompt(prompts[len(ends) - 1])))
            assert plain([*before, *ctx.recorder.steps]) == plain(whole)
            assert plain(session.steps) == plain(whole)
            assert found[-1] == ends[-1]
            await session.aclose()
        per_prompt.append(found)
    return per_prompt


CUT = Reply("I was going to", finish_reason="length", usage=Usage(7, 3, calls=1, cost_usd=0.5))
CHAT = {
    "tools, nudges and an answer": [
        call("bash", command="work 1"),
        CUT,
        call("nope"),
        Reply(""),
        [call("bash", command="work 2"), call("bash", command="work 3")],
        "Done.",
    ],
    "a refusal": [
        call("bash", command="work 1"),
        Reply("I can't.", finish_reason="content_filter"),
    ],
    "garbage until it has failed": [call("bash", command="work 1"), *[call("nope")] * 4],
}


@pytest.mark.parametrize("script", CHAT)
async def test_chat_goes_on_after_every_step(tmp_path, script):
    model = ScriptedModel(CHAT[script])
    stand = Stand(tmp_path, ChatAgent(max_bad_turns=4), model)
    await goes_on_everywhere(stand, "Do it.")
    count = len(CHAT[script])
    asked = model.calls[:count]
    rest = model.calls[count:]
    for number in range(1, count + 1):
        mine, rest = rest[: number + 2 * (count - number)], rest[number + 2 * (count - number) :]
        assert mine[:number] == asked[:number]
        for restored in (mine[number:count], mine[count:]):
            assert restored == asked[number:]
    assert not rest


async def test_limits_count_what_was_used_before_the_checkpoint(tmp_path):
    reply = Reply(tool_calls=(call("bash", command="work"),), usage=Usage(10, 5, calls=1))
    for config in (RolloutConfig(max_turns=3), RolloutConfig(max_tokens=45)):
        stand = Stand(tmp_path, ChatAgent(), ScriptedModel(lambda seen: reply), config)
        state, before = await stand.parked(2, "Do it.")
        for _ in range(2):
            session, ctx = await stand.restored(state)
            assert await session.proceed() is StopReason.LIMIT
            assert (len(before), len(ctx.recorder.steps)) == (2, 1)
            assert [step.usage for step in session.steps] == [reply.usage] * 3


async def test_working_time_goes_on_and_not_the_time_of_others(tmp_path):
    stand = Stand(
        tmp_path,
        ChatAgent(),
        ScriptedModel(lambda seen: call("bash", command="work")),
        RolloutConfig(timeout_sec=1.0),
    )
    sandbox, ctx = await stand.context(Parking(2))
    stand.provider.on(re.compile("work"), lambda sandbox, asked: ctx.clock.sleep(0.4))
    session = await stand.agent.connect(sandbox, ctx)
    turn = asyncio.create_task(session.prompt("Do it."))
    await ctx.recorder.parked.wait()
    state = session.checkpoint()
    await ctx.clock.sleep(1000)
    turn.cancel()
    await asyncio.wait({turn})
    other, mine = await stand.context(FakeRecorder())
    mine = dataclasses.replace(mine, clock=ctx.clock)
    restored = await state.restore(other, mine)
    assert await restored.proceed() is StopReason.LIMIT
    assert len(mine.recorder.steps) == 1


async def test_copies_of_a_conversation_are_independent(tmp_path):
    stand = Stand(tmp_path, ChatAgent(), ScriptedModel([call("bash", command="work"), "Done."]))
    state, _ = await stand.parked(1, "Do it.")
    first, second = (await stand.restored(state))[0], (await stand.restored(state))[0]
    assert await first.proceed() is StopReason.END_TURN
    stand.model = ScriptedModel([call("bash", command="work"), "Otherwise.", "More."])
    third, _ = await stand.restored(state)
    assert await third.proceed() is StopReason.END_TURN
    assert await third.prompt("Go on.") is StopReason.END_TURN
    assert await second.proceed() is StopReason.END_TURN
    said = [s.steps[-1].messages[-1].content for s in (first, second, third)]
    assert said == ["Done.", "Done.", "More."]
    assert [m.content for m in third.steps[-1].messages] == ["Go on.", "More."]


async def test_a_turn_that_is_stopped_in_a_tool_is_over_in_a_copy_too(tmp_path):
    stand = Stand(tmp_path, ChatAgent(), ScriptedModel([call("bash", command="hang"), "Done."]))
    stand.provider.on(re.compile("hang"), lambda sandbox, asked: asyncio.sleep(60))
    sandbox, ctx = await stand.context(Parking(1))
    session = await stand.agent.connect(sandbox, ctx)
    turn = asyncio.create_task(session.prompt("Do it."))
    await asyncio.sleep(0.05)
    cancel = asyncio.create_task(session.cancel())
    await ctx.recorder.parked.wait()
    state = session.checkpoint()
    turn.cancel()
    cancel.cancel()
    restored, _ = await stand.restored(state)
    assert await restored.proceed() is StopReason.CANCELLED
    assert await restored.prompt("Go on.") is StopReason.END_TURN


async def test_in_the_middle_of_an_action_there_is_no_checkpoint(tmp_path):
    stand = Stand(tmp_path, ChatAgent(), ScriptedModel([call("bash", command="hang")]))
    stand.provider.on(re.compile("hang"), lambda sandbox, asked: asyncio.sleep(60))
    sandbox, ctx = await stand.context(FakeRecorder())
    session = await stand.agent.connect(sandbox, ctx)
    turn = asyncio.create_task(session.prompt("Do it."))
    await asyncio.sleep(0.05)
    with pytest.raises(UsageError, match="in the middle of an action"):
        session.checkpoint()
    await session.aclose()
    with pytest.raises(UsageError, match="closed"):
        session.checkpoint()
    assert await turn is StopReason.CANCELLED


async def test_a_copy_in_the_middle_of_a_turn_takes_no_prompt(tmp_path):
    stand = Stand(tmp_path, ChatAgent(), ScriptedModel([call("bash", command="work"), "Done."]))
    state, _ = await stand.parked(1, "Do it.")
    session, _ = await stand.restored(state)
    with pytest.raises(AgentError, match="proceed"):
        await session.prompt("Now this.")
    assert await session.proceed() is StopReason.END_TURN
    assert await session.proceed() is StopReason.END_TURN


SCRIPT = """[
    {"command": "work"}, {"command": "fails"}, {"command": "work"},
    {"command": "work", "prompt": 1}, {"command": "fails", "expect_exit": 0, "prompt": 1}
]"""


async def test_scripted_goes_on_after_every_step_of_every_prompt(tmp_path):
    (tmp_path / "script.json").write_text(SCRIPT)
    stand = Stand(tmp_path, ScriptedAgent(tmp_path / "script.json"))
    stand.provider.on("fails", ExecResult(1, stderr=b"why"))
    ends = await goes_on_everywhere(stand, "Do it.", "And that.")
    failure = "'fails' exited 1, not 0: why"
    assert ends == [[StopReason.END_TURN, failure]] * 3 + [[failure]] * 2


async def test_oracle_and_recorded_have_one_step_and_end_after_it(tmp_path):
    root = tmp_path / "task"
    (root / "solution").mkdir(parents=True)
    (root / "solution" / "solve.sh").write_text("x")
    package = TaskPackage(str(root), "d", SPEC, solution=SolutionSettings())
    stand = Stand(tmp_path, OracleAgent(), package=package)
    stand.provider.on(re.compile("solve"), b"solved")
    await goes_on_everywhere(stand, "Do it.")
    stand.provider.on(re.compile("solve"), ExecResult(2, stderr=b"no"))
    assert "exited 2" in (await goes_on_everywhere(stand, "Do it."))[0][0]

    kept = tmp_path / "run" / "rollouts" / "fake-rollout" / "final"
    kept.mkdir(parents=True)
    (kept / "answer").write_text("42")
    state = FinalState("/app", (KeptPath("/app/answer", "answer"),))
    (kept.parent / FINAL_STATE).write_bytes(msgspec.json.encode(state))
    stand = Stand(tmp_path, RecordedAgent(tmp_path / "run"))
    await goes_on_everywhere(stand, "Do it.")


async def test_program_goes_on_after_its_run(tmp_path):
    async def program(sandbox, call, process):
        process.say(b"did it")
        return 0 if b"first" in await process.stdin.read() else 3

    stand = Stand(tmp_path, ProgramAgent("solver"))
    stand.provider.on_spawn("solver", program)
    ends = await goes_on_everywhere(stand, "the first", "the second")
    assert ends[1] == ["solver exited 3: did it"]


async def test_program_says_what_it_loses_with_processes(tmp_path, monkeypatch):
    async def program(sandbox, call, process):
        return 0

    stand = Stand(tmp_path, ProgramAgent("solver"))
    stand.provider.on_spawn("solver", program)
    sandbox, ctx = await stand.context(FakeRecorder())
    session = await stand.agent.connect(sandbox, ctx)
    assert session.checkpoint().fidelity(False) is Fidelity.LIVE

    def keeps_its_pipes(process, program):
        process._task = asyncio.ensure_future(program)

    monkeypatch.setattr(FakeProcess, "start", keeps_its_pipes)
    assert await session.prompt("Do it.") is StopReason.END_TURN
    monkeypatch.undo()
    state = session.checkpoint()
    assert (state.fidelity(True), state.fidelity(False)) == (Fidelity.LIVE, Fidelity.RESUMED)
    await session.aclose()
    restored, _ = await stand.restored(state)
    assert await restored.proceed() is StopReason.END_TURN
    assert await restored.prompt("Again.") is StopReason.END_TURN


class Shell:
    """A shell of a few words, whose memory can be copied."""

    def __init__(self, variables=None, typed=b""):
        self.variables, self.typed = dict(variables or {}), typed

    async def run(self, process):
        while byte := await process.stdin.read(1):
            if byte != b"\r":
                self.typed += byte
                continue
            line, self.typed = self.typed, b""
            process.say(line + b"\r\n")
            name, _, value = line.partition(b"=")
            if value:
                self.variables[name] = value
            elif line.startswith(b"echo "):
                process.say(b"is " + self.variables.get(line[5:], b"nothing") + b"\r\n")
            process.say(b"$ ")
        return 1


class LiveSandbox(FakeSandbox):
    """A fake whose one program, a Shell, comes along into copies. Keeps to `Snapshottable`."""

    def __init__(self, provider, number, captured=None):
        super().__init__(provider, number, SPEC, copy.deepcopy(provider.pristine))
        self.shells = {}
        self.attached = {}
        for pid, (shell, unread) in (captured or {}).items():
            process = FakeProcess(pid=pid, pty=True)
            process.stdout.feed_data(unread)
            self.shells[pid] = (shell, process)
            self.attached[pid] = process
            process.start(shell.run(process))

    async def spawn(self, command, *, user=None, cwd=None, env=None, pty=None):
        shell, process = Shell(), FakeProcess(pid=2 + len(self.shells), pty=True)
        process.say(b"$ ")
        self.shells[process.pid] = (shell, process)
        process.start(shell.run(process))
        return process

    async def checkpoint(self):
        """As much of an image as is needed: the memory and the unread output of each shell."""
        return {
            pid: (Shell(shell.variables, shell.typed), bytes(process.stdout._buffer))
            for pid, (shell, process) in self.shells.items()
        }

    def attach(self, pid):
        return self.attached[pid]


DIALOGUE = (
    "expect $ \nsend x=5\nexpect x=5\nsend y=7\nexpect y=7\nsend echo x\nexpect is 5\n"
    "send z=1\nprompt\nsend echo y\nexpect is 7\n"
)


async def test_shell_goes_on_with_its_variables_in_each_copy(tmp_path):
    (tmp_path / "dialogue").write_text(DIALOGUE)
    agent = ShellAgent(tmp_path / "dialogue")
    stand = Stand(tmp_path, agent)
    for number in (1, 2, 3, 4, 5):
        sandbox = LiveSandbox(stand.provider, 1)
        ctx = fake_context(stand.task, artifacts=tmp_path, sandbox=sandbox)
        recorder = Parking(number)
        session = await agent.connect(sandbox, dataclasses.replace(ctx, recorder=recorder))

        async def run(session=session):
            await session.prompt("Do it.")
            await session.prompt("And that.")

        turn = asyncio.create_task(run())
        await recorder.parked.wait()
        state, image = session.checkpoint(), await sandbox.checkpoint()
        turn.cancel()
        await asyncio.wait({turn})
        await session.aclose()
        assert (state.fidelity(True), state.fidelity(False)) == (Fidelity.LIVE, Fidelity.FRESH)
        for child in (2, 3):
            copied = LiveSandbox(stand.provider, child, copy.deepcopy(image))
            mine = dataclasses.replace(ctx, recorder=FakeRecorder())
            restored = await state.restore(copied, mine)
            assert await restored.proceed() is StopReason.END_TURN
            if number < 5:
                assert await restored.prompt("And that.") is StopReason.END_TURN
            union = [*recorder.steps, *mine.recorder.steps]
            assert [s.action for s in union] == ["x=5", "y=7", "echo x", "z=1", "echo y"]
            assert [step.messages[-1].content for step in union] == [
                *("$ ", "$ ", "is 5\n$ ", "$ ", "is 7\n$ ")
            ]
            assert union[4].messages[0].content == "And that."
            await restored.aclose()
            assert copied.attached[2].killed
        if number == 1:
            other = await stand.provider.create(SPEC)
            with pytest.raises(UnsupportedError, match="process 2"):
                await state.restore(other, ctx)


REAL = (
    "timeout 20\nsend PS1=; x=5; cd /tmp\nsend nonce=$(od -An -N8 -tx1 /dev/urandom); echo got\n"
    "expect got\r\nsend echo x${x}x$PWD; x=6\nexpect x5x/tmp\nsend echo n$nonce\n"
    "prompt\nsend echo $x$nonce\nexpect 6 \n"
)


@pytest.mark.live
@pytest.mark.namespaces
async def test_a_real_shell_goes_on_with_its_memory_in_each_copy(tmp_path):
    (tmp_path / "dialogue").write_text(REAL)
    agent, provider = ShellAgent(tmp_path / "dialogue"), LocalProvider()
    spec = SandboxSpec(host_root=True, workdir="/srv", live=True)
    try:
        sandbox = await provider.create(spec)
        assert (await sandbox.exec("mkdir /app")).ok
        recorder = Parking(3)
        ctx = fake_context(Task("set:one", "Do it."), artifacts=tmp_path, sandbox=sandbox)
        session = await agent.connect(sandbox, dataclasses.replace(ctx, recorder=recorder))
        turn = asyncio.create_task(session.prompt("Do it."))
        async with asyncio.timeout(60):
            await recorder.parked.wait()
        state, image = session.checkpoint(), await sandbox.checkpoint()
        turn.cancel()
        await asyncio.wait({turn})
        await session.aclose()
        nonces = set()
        for _ in range(3):
            copied = await provider.create(spec, image)
            mine = dataclasses.replace(ctx, recorder=FakeRecorder())
            restored = await state.restore(copied, mine)
            assert await restored.proceed() is StopReason.END_TURN
            assert await restored.prompt("And that.") is StopReason.END_TURN
            fourth, fifth = mine.recorder.steps
            assert (fourth.action, fifth.action) == ("echo n$nonce", "echo $x$nonce")
            nonces.add(re.findall(r"n((?: [0-9a-f]{2}){8})", fourth.messages[-1].content)[0])
            assert f"6{next(iter(nonces))}" in fifth.messages[-1].content
            await restored.aclose()
            await copied.teardown()
        assert len(nonces) == 1
    finally:
        await provider.aclose()
