"""The agents in a real container: programs, leftovers, a real shell on a real terminal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import InfraError
from ramify.contracts.sandbox import Sandbox, SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.agent.program import ProgramAgent
from ramify.planes.agent.scripted import ScriptedAgent
from ramify.planes.agent.shell import ShellAgent
from ramify.planes.sandbox.docker import DockerProvider
from ramify.testing.fakecontext import fake_context

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(docker_problem: str | None, ramify_home: Path) -> AsyncIterator[Sandbox | None]:
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = DockerProvider(ramify_home)
    try:
        sandbox = await provider.create(SandboxSpec(image=IMAGE))
        assert (await sandbox.exec("mkdir -p /app")).ok
        yield sandbox
    finally:
        await provider.aclose()


async def connect(agent, box, tmp_path):
    ctx = fake_context(Task("set:one", input="Do it."), artifacts=tmp_path, sandbox=box)
    return await agent.connect(box, ctx), ctx.recorder.steps


async def alive(box, command):
    """Whether a process inside has that command line."""
    each = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null; echo; done"
    return f"{command} \n" in (await box.exec(each)).stdout.decode()


async def until(condition):
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 (it is a process that is waited for)
            await asyncio.sleep(0.05)


async def test_scripted_commands_and_cancellation(box, tmp_path):
    (tmp_path / "script").write_text("pwd\nsleep 54321\n")
    session, steps = await connect(ScriptedAgent(tmp_path / "script"), box, tmp_path)
    turn = asyncio.create_task(session.prompt("Do it."))
    await until(lambda: alive(box, "sleep 54321"))
    await session.cancel()
    assert await turn is StopReason.CANCELLED

    async def gone():
        return not await alive(box, "sleep 54321")

    await until(gone)
    assert [step.messages[-1].content for step in steps] == ["/app"]
    await session.aclose()


async def test_program_on_standard_input_with_more_than_a_pipe_holds(box, tmp_path):
    session, steps = await connect(ProgramAgent("wc -c"), box, tmp_path)
    await session.prompt("x" * 300_000)
    assert steps[0].messages[-1].content.strip() == "300000"
    await session.aclose()


async def test_a_program_that_does_not_read_still_ends(box, tmp_path):
    session, steps = await connect(ProgramAgent("echo done"), box, tmp_path)
    assert await session.prompt("x" * 300_000) is StopReason.END_TURN
    assert steps[0].messages[-1].content == "done\n"
    await session.aclose()


async def test_program_leftovers_live_until_the_session_is_closed(box, tmp_path):
    program = ProgramAgent(["sh", "-c", "setsid sleep 65432 & echo $1", "sh", "{prompt}"])
    session, steps = await connect(program, box, tmp_path)
    async with asyncio.timeout(20):
        assert await session.prompt("it's") is StopReason.END_TURN
        assert steps[0].messages[-1].content == "it's\n"
        assert await alive(box, "sleep 65432")
        await session.aclose()
        assert not await alive(box, "sleep 65432")


async def test_a_program_that_is_not_there_is_never_scored(box, tmp_path):
    session, _ = await connect(ProgramAgent("no-such-program"), box, tmp_path)
    with pytest.raises(InfraError, match="no-such-program: not found"):
        await session.prompt("Do it.")
    await session.aclose()


async def test_a_shell_on_a_terminal(box, tmp_path):
    (tmp_path / "dialogue").write_text(
        "send tty; stty size\nexpect 24 80\nsend x=5\nprompt\nsend echo v$((x+1))w\nexpect v6w\n"
    )
    session, steps = await connect(ShellAgent(tmp_path / "dialogue"), box, tmp_path)
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert await session.prompt("And now?") is StopReason.END_TURN
    assert [step.action for step in steps] == ["tty; stty size", "x=5", "echo v$((x+1))w"]
    assert "/dev/" in steps[0].messages[-1].content
    assert "v6w" in steps[2].messages[-1].content
    assert "\x1b" not in "".join(step.messages[-1].content for step in steps)
    await session.aclose()
