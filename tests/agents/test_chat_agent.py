"""The chat agent's loop, on the fake sandbox with a scripted model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import msgspec
import pytest

from ramify.contracts.agent import StopReason
from ramify.contracts.config import RolloutConfig, Sampling
from ramify.contracts.errors import (
    AgentError,
    LimitExceededError,
    ModelError,
    SandboxLostError,
    UsageError,
)
from ramify.contracts.messages import Message, TokenSpan, ToolCall, Usage
from ramify.contracts.sandbox import ExecResult, SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.agent.chat import ChatAgent
from ramify.planes.agent.tools import clipped
from ramify.testing.fakecontext import fake_context
from ramify.testing.fakes import FakeProvider
from ramify.testing.scripted_model import Reply, ScriptedModel, call

WORK = re.compile("work")
RUN = call("bash", command="work")


class Stand:
    """The agent on a fake sandbox, with everything that it leaves to be looked at."""

    def __init__(self, tmp_path, script, config=None, failures=(), **options):
        self.provider = FakeProvider()
        self.provider.on(WORK, b"worked\n")
        self.model = ScriptedModel(script, failures=failures)
        self.agent = ChatAgent(**options)
        self.tmp_path, self.config = tmp_path, config

    async def open(self):
        self.sandbox = await self.provider.create(SandboxSpec(host_root=True))
        ctx = fake_context(Task("set:one", "Do it."), artifacts=self.tmp_path, config=self.config)
        self.ctx = dataclasses.replace(ctx, model=self.model)
        self.session = await self.agent.connect(self.sandbox, self.ctx)
        return self.session

    async def run(self, *prompts):
        await self.open()
        return [await self.session.prompt(text) for text in prompts or ("Do it.",)]

    @property
    def steps(self):
        return self.ctx.recorder.steps

    @property
    def said(self):
        """Everything that was recorded, in order."""
        steps = [message for step in self.steps for message in step.messages]
        return [*self.ctx.recorder.opening, *steps]

    def answers(self, step):
        return [m.content for m in self.steps[step].messages if m.role == "tool"]

    @property
    def limits(self):
        return [e.fields["limit"] for e in self.ctx.observer.events]


async def test_calls_are_answered_and_the_turn_ends_with_an_answer(tmp_path):
    stand = Stand(tmp_path, [RUN, lambda seen: f"It said {seen.quote('w.*')}."])
    assert await stand.run() == [StopReason.END_TURN]
    first, last = stand.steps
    assert [m.role for m in first.messages] == ["assistant", "tool"]
    assert first.messages[1] == Message("tool", "worked\n", (), "call_0_0", "bash")
    assert last.messages == (Message("assistant", "It said worked."),)
    assert (first.action, last.action) == ('bash {"command":"work"}', "answer")
    assert all(step.usage.calls == 1 and step.usage.input_tokens > 0 for step in stand.steps)
    assert [tool["name"] for tool in first.info["tools"]] == ["bash", "read", "write", "edit"]
    assert stand.ctx.recorder.opening[1] == Message("user", "Do it.")
    assert "/app" in stand.ctx.recorder.opening[0].content
    [command] = stand.sandbox.calls
    assert (command.cwd, command.timeout_sec) == ("/app", 120.0)


async def test_what_is_sent_is_what_is_recorded(tmp_path):
    script = [[RUN, RUN], call("nope"), "", "First.", RUN, "Second."]
    stand = Stand(tmp_path, script)
    assert await stand.run("Do it.", "More.") == [StopReason.END_TURN] * 2
    assert stand.model.calls[-1] == tuple(stand.said[:-1])
    users = [message.content for message in stand.said if message.role == "user"]
    assert users == ["Do it.", "Your answer was empty. Call a tool, or say what you did if the "
                     "task is done.", "More."]  # fmt: skip


async def test_unknown_tools_and_wrong_arguments_are_told_and_counted(tmp_path):
    bad = [call("grep", x=1), call("bash", cmd="ls"), ToolCall("j", "bash", "{"), RUN]
    stand = Stand(tmp_path, [bad, "Done."])
    await stand.run()
    assert stand.answers(0) == [
        "Error: no tool 'grep'; there are: bash, read, write, edit",
        "Error: invalid arguments for bash: Object contains unknown field `cmd`",
        "Error: invalid arguments for bash: Input data was truncated",
        "worked\n",
    ]
    assert stand.steps[0].info["tool_errors"] == ["call_0_0", "call_0_1", "j"]


@pytest.mark.parametrize("turn", ["", call("nope"), ToolCall("", "bash", "no JSON")])
async def test_garbage_without_end_is_the_agents_failure(turn, tmp_path):
    stand = Stand(tmp_path, lambda seen: turn, max_bad_turns=3)
    with pytest.raises(AgentError, match="3 answers of scripted/model in a row"):
        await stand.run()
    assert len(stand.steps) == 3


async def test_a_working_call_forgives_earlier_garbage(tmp_path):
    stand = Stand(tmp_path, [call("no"), RUN, call("no"), RUN, "Done."], max_bad_turns=2)
    assert await stand.run() == [StopReason.END_TURN]


async def test_an_answer_that_is_cut_off_is_not_the_end(tmp_path):
    cut = Reply("I was going to", finish_reason="length")
    stand = Stand(tmp_path, [cut, "Done."])
    assert await stand.run() == [StopReason.END_TURN]
    assert "cut off" in stand.steps[1].messages[0].content


async def test_a_refusal_ends_the_turn(tmp_path):
    stand = Stand(tmp_path, [Reply("I can't.", finish_reason="content_filter")])
    assert await stand.run() == [StopReason.REFUSED]
    assert len(stand.steps) == 1


@pytest.mark.parametrize(
    ("config", "limit", "steps"),
    [
        (RolloutConfig(max_turns=2), "turns", 2),
        (RolloutConfig(max_tokens=25), "tokens", 2),
        (RolloutConfig(max_cost_usd=0.25), "cost", 3),
        (RolloutConfig(timeout_sec=0.5), "time", 3),
        (RolloutConfig(max_cost_usd=0.25, max_tokens=1, max_turns=1), "tokens", 1),
        (RolloutConfig(max_cost_usd=0.01, max_tokens=1, max_turns=1), "cost", 1),
        (RolloutConfig(max_turns=1, timeout_sec=0.1), "turns", 1),
        (RolloutConfig(max_context=1, timeout_sec=1e-9), "context", 0),
    ],
)
async def test_a_limit_ends_the_turn_and_is_named(config, limit, steps, tmp_path):
    reply = Reply(tool_calls=(RUN,), usage=Usage(10, 5, calls=1, cost_usd=0.1))
    stand = Stand(tmp_path, lambda seen: reply, config)
    stand.provider.on(WORK, lambda sandbox, asked: stand.ctx.clock.sleep(0.2))
    assert await stand.run() == [StopReason.LIMIT]
    assert (stand.limits, len(stand.steps)) == ([limit], steps)


async def test_limits_hold_over_all_prompts(tmp_path):
    stand = Stand(tmp_path, lambda seen: "ok", RolloutConfig(max_turns=2))
    reasons = await stand.run("a", "b", "c")
    assert reasons == [StopReason.END_TURN, StopReason.END_TURN, StopReason.LIMIT]


async def test_a_cost_limit_without_prices_is_refused(tmp_path):
    stand = Stand(tmp_path, lambda seen: RUN, RolloutConfig(max_cost_usd=1.0))
    with pytest.raises(UsageError, match="input_price"):
        await stand.run()


async def test_a_token_limit_without_usage_is_refused(tmp_path):
    reply = Reply(tool_calls=(RUN,), usage=Usage(calls=1))
    stand = Stand(tmp_path, lambda seen: reply, RolloutConfig(max_tokens=10))
    with pytest.raises(UsageError, match="set max_turns"):
        await stand.run()


async def test_no_model_is_refused_at_connect(tmp_path):
    stand = Stand(tmp_path, [])
    stand.model = None
    with pytest.raises(UsageError, match="--model"):
        await stand.open()


def paired(messages):
    """Every call is followed by its answer, and nothing else is answered."""
    wanted: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == wanted.pop(0)
        else:
            assert not wanted
            wanted = [made.id for made in message.tool_calls]
    return not wanted


async def test_old_outputs_are_shortened_first_to_stay_within_the_context(tmp_path):
    script = [*(call("bash", command=f"work {n}") for n in range(12)), "Done."]
    config = RolloutConfig(max_context=5000, sampling=Sampling(max_tokens=500))
    stand = Stand(tmp_path, script, config)
    stand.provider.on(WORK, lambda sandbox, asked: (asked.command[-2:] * 2000).encode())
    assert await stand.run() == [StopReason.END_TURN]
    for sent in stand.model.calls:
        assert paired(sent)
        assert sum(len(m.content) for m in sent) < 5000 * 4
    assert all(len(stand.answers(n)[0]) == 4000 for n in range(12))
    # The prompts can be made again from the record.
    known = stand.said
    for step, sent in zip(stand.steps, stand.model.calls, strict=True):
        for index, limit in step.info.get("shortened", ()):
            short = clipped(known[index].content, limit)
            known[index] = msgspec.structs.replace(known[index], content=short)
        assert tuple(known[: len(sent)]) == sent
    last = stand.model.calls[-1]
    lengths = [len(m.content) for m in last if m.role == "tool"]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 4000


async def test_an_endpoint_that_says_too_long_gets_less(tmp_path):
    too_long = LimitExceededError("context", "too long")
    script = [call("bash", command="work"), RUN, "Done."]
    stand = Stand(tmp_path, script, failures=[None, None, too_long])
    stand.provider.on(WORK, b"x" * 9000)
    assert await stand.run() == [StopReason.END_TURN]
    assert len(stand.steps) == 3
    assert stand.steps[2].info["shortened"]
    assert sum(len(m.content) for m in stand.model.calls[3]) < 0.8 * sum(
        len(m.content) for m in stand.model.calls[2]
    )


async def test_a_context_that_nothing_can_shorten_is_a_limit(tmp_path):
    too_long = LimitExceededError("context", "too long")
    stand = Stand(tmp_path, [RUN, "Done."], failures=[None, too_long])
    assert await stand.run() == [StopReason.LIMIT]
    assert (stand.limits, len(stand.steps)) == (["context"], 1)


async def test_an_endpoints_failure_is_not_the_agents(tmp_path):
    stand = Stand(tmp_path, [RUN, "Done."], failures=[None, ModelError("gone")])
    with pytest.raises(ModelError, match="gone"):
        await stand.run()
    assert len(stand.steps) == 1


async def test_safe_calls_run_side_by_side_and_others_in_order(tmp_path):
    running, most, order = 0, 0, []

    async def note(sandbox, asked):
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(asked.command.split()[-1])
        await asyncio.sleep(0.01)
        running -= 1
        return b"1\nx\n"

    reads = [call("read", path=f"f{n}") for n in range(3)]
    writes = [call("write", path="w1", content=""), call("write", path="w2", content="")]
    stand = Stand(tmp_path, [[*reads, *writes, *reads], "Done."])
    stand.provider.on(re.compile("^/bin/sh -c"), note)
    await stand.run()
    assert most == 3
    assert order[3:5] == ["w1", "w2"]
    assert len(stand.answers(0)) == 8


async def test_cancelling_in_a_tool_keeps_the_call_and_its_answer(tmp_path):
    stand = Stand(tmp_path, [[RUN, call("bash", command="hang"), RUN], "Done."])
    stand.provider.on(re.compile("hang"), lambda sandbox, asked: asyncio.sleep(60))
    session = await stand.open()
    turn = asyncio.create_task(session.prompt("Do it."))
    await asyncio.sleep(0.05)
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    [step] = stand.steps
    stopped = "Error: stopped before it finished"
    assert stand.answers(0) == ["worked\n", stopped, stopped]
    assert step.usage.calls == 1
    assert await session.prompt("Go on.") is StopReason.END_TURN
    assert paired(stand.model.calls[-1])


async def test_cancelling_in_a_model_call_records_nothing(tmp_path):
    async def never(seen):
        await asyncio.sleep(60)

    stand = Stand(tmp_path, [never])
    session = await stand.open()
    turn = asyncio.create_task(session.prompt("Do it."))
    await asyncio.sleep(0.05)
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    assert stand.steps == []


async def test_a_cancelled_scope_ends_before_the_next_call(tmp_path):
    stand = Stand(tmp_path, lambda seen: RUN)
    stand.provider.on(WORK, lambda sandbox, asked: stand.ctx.cancel.cancel("enough"))
    assert await stand.run() == [StopReason.CANCELLED]
    assert len(stand.steps) == 1


async def test_a_lost_sandbox_comes_through_and_the_call_stays_recorded(tmp_path):
    stand = Stand(tmp_path, [[RUN, RUN]])
    stand.provider.on(WORK, lambda sandbox, asked: sandbox.teardown())
    with pytest.raises(SandboxLostError):
        await stand.run()
    assert len(stand.steps) == 1


async def test_token_ids_and_logprobs_are_kept_and_prompts_only_once(tmp_path):
    script = [
        Reply(tool_calls=(RUN,), prompt_ids=(1, 2), tokens=TokenSpan((3, 4), (-1.0, -0.5))),
        Reply("Done.", prompt_ids=(1, 2, 3, 4, 5, 6), tokens=TokenSpan((), (-0.25,))),
    ]
    stand = Stand(tmp_path, script)
    await stand.run()
    first, last = stand.steps
    assert (first.tokens, first.logprob) == (TokenSpan((3, 4), (-1.0, -0.5)), -1.5)
    assert (last.tokens, last.logprob, last.info["logprobs"]) == (None, -0.25, [-0.25])
    assert first.info["prompt_ids"] == {"from": 0, "ids": [1, 2]}
    assert last.info["prompt_ids"] == {"from": 4, "ids": [5, 6]}
    again = msgspec.json.decode(msgspec.json.encode(first), type=type(first))
    assert again == first


async def test_sampling_and_options_reach_their_places(tmp_path):
    config = RolloutConfig(sampling=Sampling(temperature=0.3))
    stand = Stand(tmp_path, [RUN, "Done."], config, system="", bash_timeout_sec=7, output_limit=100)
    stand.provider.on(WORK, ExecResult(1, b"y" * 5000, b"z"))
    await stand.run()
    assert stand.model.params == [config.sampling] * 2
    assert stand.model.calls[0] == (Message("user", "Do it."),)
    assert stand.sandbox.calls[0].timeout_sec == 7
    assert len(stand.answers(0)[0]) < 200
    assert stand.answers(0)[0].endswith("z\n[exit code 1]")


def test_options_out_of_range_are_refused():
    for options in ({"bash_timeout_sec": 0}, {"output_limit": 5}, {"max_bad_turns": 0}):
        with pytest.raises(UsageError):
            ChatAgent(**options)


async def test_steps_are_plain_data(tmp_path):
    stand = Stand(tmp_path, [[RUN, call("no")], "Done."], RolloutConfig(max_context=100_000))
    await stand.run()
    for step in stand.steps:
        json.dumps(step.info)
