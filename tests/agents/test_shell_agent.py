"""The shell agent: driven by a script, and by a person at a (pseudo-)terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import termios
import tty

import pytest

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import AgentError, ConfigError, UsageError
from ramify.contracts.process import PtySize
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import Task
from ramify.planes.agent.shell import ShellAgent
from ramify.planes.agent.terminal import Terminal
from ramify.testing.fakecontext import fake_context
from ramify.testing.fakes import FakeProvider


async def shell(sandbox, call, process):
    """A shell of three commands that echoes what is typed, as a terminal does."""
    process.say(b"\x1b[1m$ \x1b[0m")
    typed = b""
    while byte := await process.stdin.read(1):
        if byte != b"\r":
            typed += byte
            continue
        process.say(typed + b"\r\n")
        if typed == b"exit":
            return 0
        if typed.startswith(b"echo "):
            process.say(typed[5:] + b"\r\n")
        process.say(b"$ ")
        typed = b""
    return 1


async def open_session(agent, tmp_path):
    provider = FakeProvider()
    provider.on_spawn(re.compile("bash"), shell)
    sandbox = await provider.create(SandboxSpec(host_root=True))
    ctx = fake_context(Task("set:one", input="Do it."), artifacts=tmp_path, sandbox=sandbox)
    return await agent.connect(sandbox, ctx), sandbox, ctx.recorder


def write(tmp_path, text):
    (tmp_path / "dialogue").write_text(text)
    return tmp_path / "dialogue"


async def test_a_script_types_waits_and_is_recorded(tmp_path):
    script = write(
        tmp_path,
        "# greet\nexpect $ \nsend echo hello\nexpect hello\nsend echo last\n"
        "prompt\nsend echo more\n",
    )
    session, sandbox, recorder = await open_session(ShellAgent(script), tmp_path)
    assert sandbox.calls[0].pty == PtySize(24, 80)
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert [step.action for step in recorder.steps] == ["echo hello", "echo last"]
    assert [step.messages[-1].content for step in recorder.steps] == ["hello\n$ ", "last\n$ "]
    assert await session.prompt("More.") is StopReason.END_TURN
    assert recorder.steps[2].messages[0].content == "More."
    assert recorder.steps[2].messages[-1].content == "more\n$ "
    await session.aclose()
    assert sandbox.processes[0].killed


async def test_what_does_not_come_in_time_is_an_agent_error(tmp_path):
    script = write(tmp_path, "timeout 0.05\nsend echo a\nexpect b\n")
    session, _, _ = await open_session(ShellAgent(script), tmp_path)
    with pytest.raises(AgentError, match=r"'b' did not come within 0\.05 s"):
        await session.prompt("Do it.")
    await session.aclose()


async def test_a_shell_that_ends_early_is_an_agent_error(tmp_path):
    script = write(tmp_path, "send exit\nexpect never\n")
    session, _, _ = await open_session(ShellAgent(script), tmp_path)
    with pytest.raises(AgentError, match="ended before"):
        await session.prompt("Do it.")
    await session.aclose()


async def test_cancel_ends_a_script(tmp_path):
    script = write(tmp_path, "send echo a\nexpect never\n")
    session, _, _ = await open_session(ShellAgent(script), tmp_path)
    turn = asyncio.create_task(session.prompt("Do it."))
    await asyncio.sleep(0.02)
    await session.cancel()
    assert await turn is StopReason.CANCELLED
    await session.aclose()


@pytest.mark.parametrize(
    "text",
    ["type x\n", "expect\n", "timeout soon\n", "timeout -1\n", "timeout inf\n", "prompt 2\n"],
)
def test_a_broken_script_is_refused_at_construction(tmp_path, text):
    with pytest.raises(ConfigError, match="line 2"):
        ShellAgent(write(tmp_path, "send ok\n" + text))


def test_without_a_terminal_a_script_is_needed():
    read, wrote = os.pipe()
    try:
        with pytest.raises(UsageError, match="give it a script"):
            Terminal(read, wrote)
    finally:
        os.close(read)
        os.close(wrote)


class Person:
    """Somebody at the other end of a pseudo-terminal."""

    def __init__(self):
        self.keyboard, self.fd = pty.openpty()
        tty.setraw(self.keyboard)
        self.seen = b""
        os.set_blocking(self.keyboard, False)

    async def sees(self, text):
        async with asyncio.timeout(5):
            while text not in self.seen:
                try:
                    self.seen += os.read(self.keyboard, 4096)
                except BlockingIOError:
                    await asyncio.sleep(0.005)

    def types(self, text):
        os.write(self.keyboard, text)

    def close(self):
        for fd in (self.keyboard, self.fd):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def person():
    somebody = Person()
    yield somebody
    somebody.close()


async def test_a_person_works_and_leaves_the_terminal_as_it_was(tmp_path, person):
    termios.tcsetwinsize(person.fd, (30, 100))
    before = termios.tcgetattr(person.fd)
    agent = ShellAgent(terminal=Terminal(person.fd, person.fd))
    session, sandbox, recorder = await open_session(agent, tmp_path)
    assert sandbox.calls[0].pty == PtySize(30, 100)
    turn = asyncio.create_task(session.prompt("Do it."))
    await person.sees(b"$ ")
    person.types(b"echo hx\x7fi\r")
    await person.sees(b"$ ")
    termios.tcsetwinsize(person.fd, (50, 120))
    os.kill(os.getpid(), signal.SIGWINCH)
    await asyncio.sleep(0.05)
    person.types(b"exit\r")
    async with asyncio.timeout(5):
        assert await turn is StopReason.END_TURN
    assert [step.action for step in recorder.steps] == ["echo hi", "exit"]
    assert PtySize(50, 120) in sandbox.processes[0].sizes
    assert termios.tcgetattr(person.fd) == before
    await session.aclose()


async def test_hanging_up_detaches(tmp_path, person):
    session, sandbox, _ = await open_session(
        ShellAgent(terminal=Terminal(person.fd, person.fd)), tmp_path
    )
    turn = asyncio.create_task(session.prompt("Do it."))
    await person.sees(b"$ ")
    os.close(person.keyboard)
    person.keyboard = -1
    async with asyncio.timeout(5):
        assert await turn is StopReason.END_TURN
    assert not sandbox.processes[0].killed
    await session.aclose()
    assert sandbox.processes[0].killed
