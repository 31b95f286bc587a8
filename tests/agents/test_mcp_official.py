"""MCP servers made with the official package, in our own sandbox, used by the chat agent."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from packaging.requirements import Requirement

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.sandbox import SandboxImage, SandboxSpec
from ramify.contracts.task import McpServer, Task, TaskPackage
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.chat import ChatAgent
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.context import make_context, recorded
from ramify.testing.fakecontext import FakeRecorder
from ramify.testing.scripted_model import ScriptedModel, call

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(host_root=True, workdir="/srv")
SERVER = Path(__file__).with_name("mcp_official.py")
TRANSPORTS = ("stdio", "streamable-http", "sse")
PORT = 8765
PYTHON = ("env", "PYTHONPATH=/srv/packages", os.path.realpath(sys.executable))
START = f"{' '.join(PYTHON)} /srv/server.py"


def closure(name: str, found: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """A distribution and all that it needs here."""
    found = {} if found is None else found
    if name not in found:
        found[name] = distribution(name)
        for line in found[name].requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                closure(needed.name, found)
    return found


def copied(folder: Path) -> Path:
    """The official package and what it needs, in a directory: a sandbox sees no venv of ours."""
    for found in closure("mcp").values():
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        await provider.prepare(SPEC)
        yield provider
    finally:
        await provider.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image(
    provider: LocalProvider | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxImage | str]:
    """An image with the server's program and the package in it, or why there is none."""
    if provider is None:
        yield "there are no namespaces"  # as of the provider
        return
    try:
        folder = copied(tmp_path_factory.mktemp("official"))
    except PackageNotFoundError as missing:
        yield f"the official package `mcp` is not installed here ({missing})"
        return
    sandbox = await provider.create(SPEC)
    try:
        await sandbox.upload(folder, "/srv/packages")
        await sandbox.upload(SERVER, "/srv/server.py", mode=0o644)
        tried = await sandbox.exec([*PYTHON, "-c", "import mcp.server, sys; print(sys.version)"])
        if not tried.ok:
            why = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            yield f"the official package cannot be used inside: {why}"
            return
        image = await sandbox.freeze()
        yield image
        await provider.discard(image)
    finally:
        await sandbox.teardown()


def usable(image: SandboxImage | str) -> SandboxImage:
    """The image; skips the test where there is none."""
    if isinstance(image, str):
        assert os.environ.get("CI") != "true", image
        pytest.skip(image)
    return image


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(provider: LocalProvider, image: SandboxImage | str):
    sandbox = await provider.create(SPEC, usable(image))
    try:
        yield sandbox
    finally:
        await sandbox.teardown()


@asynccontextmanager
async def opened(sandbox, tmp_path, transport, script, **options):
    """A session of the chat agent with the server, which is started where it has to be."""
    if transport == "stdio":
        server = McpServer("notes", "stdio", None, "env", (*PYTHON[1:], "/srv/server.py", "stdio"))
    else:
        path = {"sse": "sse", "streamable-http": "mcp"}[transport]
        server = McpServer("notes", transport, f"http://localhost:{PORT}/{path}")
        started = f"{START} {transport} {PORT} >/srv/log 2>&1 &"
        assert (await sandbox.exec(started)).ok
    package = TaskPackage(str(tmp_path), "d", SPEC, mcp_servers=(server,))
    ctx = make_context(Task("set:one", "Do it.", package=package), sandbox, artifacts=tmp_path)
    ctx = dataclasses.replace(ctx, model=ScriptedModel(script))
    session = await ChatAgent(**options).connect(sandbox, ctx)
    try:
        yield session, ctx
    finally:
        await session.aclose()


def answers(step):
    return [message.content for message in step.messages if message.role == "tool"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_tools_of_an_official_server_are_offered_and_called(sandbox, tmp_path, transport):
    script = [
        [
            call("notes__remember", key="a", value="one"),
            call("notes__recall", key="a"),
            call("notes__recall", key="b"),
            call("notes__recall", kee="b"),
            call("notes__show"),
        ],
        lambda seen: f"It was {seen.answers[1]}.",
    ]
    async with opened(sandbox, tmp_path, transport, script) as (session, ctx):
        assert await session.prompt("Do it.") is StopReason.END_TURN
        first, last = recorded(ctx)
        kept, recalled, missing, wrong, shown = answers(first)
        assert (kept, recalled) == ("1 kept", "one")
        assert missing.startswith("Error: ")
        assert "nothing is kept as b" in missing
        assert wrong.startswith("Error: ")
        assert (
            shown
            == "look:\n[image, image/png, about 6 bytes: not shown]\n[resource memo://1]\na memo"
        )
        assert last.messages[0].content == "It was one."
        assert first.info["tool_errors"] == ["call_0_2", "call_0_3"]
        names = [tool["name"] for tool in first.info["tools"]]
        assert names[:4] == ["bash", "read", "write", "edit"]
        assert "notes__recall" in names
        [recall] = [tool for tool in first.info["tools"] if tool["name"] == "notes__recall"]
        assert recall["description"] == "What was kept."
        assert recall["parameters"]["properties"]["key"]["type"] == "string"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_slow_tool_is_given_up_and_the_server_goes_on(sandbox, tmp_path, transport):
    script = [[call("notes__sleep", seconds=30), call("notes__sleep", seconds=0)], "Done."]
    async with opened(sandbox, tmp_path, transport, script, mcp_timeout_sec=1.0) as (session, ctx):
        assert await session.prompt("Do it.") is StopReason.END_TURN
        late, quick = answers(recorded(ctx)[0])
        assert late == "Error: the MCP server notes: no answer within 1 s"
        assert quick == "rested"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_server_that_dies_is_told_to_the_model(sandbox, tmp_path, transport):
    script = [
        call("notes__remember", key="a", value="one"),
        call("bash", command="pkill -9 -f server.py; sleep 0.2; echo killed"),
        call("notes__recall", key="a"),
        "Done.",
    ]
    async with opened(sandbox, tmp_path, transport, script) as (session, ctx):
        assert await session.prompt("Do it.") is StopReason.END_TURN
        [said] = answers(recorded(ctx)[2])
        assert said.startswith("Error: the MCP server notes: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_restored_without_processes_the_server_is_new(provider, sandbox, tmp_path, transport):
    script = [
        call("notes__remember", key="a", value="one"),
        call("notes__recall", key="a"),
        "Done.",
    ]
    async with opened(sandbox, tmp_path, transport, script) as (session, ctx):
        recorder = ctx.recorder
        await session.prompt("Do it.")
        assert answers(recorder.steps[1]) == ["one"]
        state = session.checkpoint()
        assert state.fidelity(False) is Fidelity.RESUMED
        assert state.fidelity(True) is (Fidelity.RESUMED if transport == "sse" else Fidelity.LIVE)
        image = await sandbox.freeze()
        copy = await provider.create(SPEC, image)
        try:
            if transport != "stdio":
                started = f"{START} {transport} {PORT} >/srv/log 2>&1 &"
                assert (await copy.exec(started)).ok
                if transport == "streamable-http":  # greeted only when it is used
                    waits = f"until grep -q running /srv/log; do sleep 0.1; done; : {PORT}"
                    assert (await copy.exec(waits, timeout_sec=20)).ok
            model = ScriptedModel([*script, call("notes__recall", key="a"), "Gone."])
            mine = dataclasses.replace(ctx, recorder=FakeRecorder(), model=model)
            restored = await state.restore(copy, mine)
            assert await restored.prompt("And now?") is StopReason.END_TURN
            [said] = answers(mine.recorder.steps[0])
            assert "nothing is kept as a" in said
            await restored.aclose()
        finally:
            await copy.teardown()
            await provider.discard(image)


@pytest.mark.live
@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_restored_with_processes_the_server_remembers(provider, image, tmp_path, transport):
    spec = msgspec.structs.replace(SPEC, live=True)
    script = [call("notes__remember", key="a", value="one"), "Done."]
    parent = await provider.create(spec, usable(image))
    try:
        async with opened(parent, tmp_path, transport, script) as (session, ctx):
            await session.prompt("Do it.")
            state = session.checkpoint()
            captured = await parent.checkpoint()
    finally:
        await parent.teardown()
    for value in ("two", "three"):
        more = [call("notes__recall", key="a"), call("notes__remember", key="a", value=value)]
        copy = await provider.create(spec, captured)
        try:
            model = ScriptedModel([*script, more, "Done.", more, "Done."])
            mine = dataclasses.replace(ctx, recorder=FakeRecorder(), model=model)
            restored = await state.restore(copy, mine)
            assert await restored.prompt("And now?") is StopReason.END_TURN
            assert answers(mine.recorder.steps[0]) == ["one", "1 kept"]
            assert await restored.prompt("And now?") is StopReason.END_TURN
            assert answers(mine.recorder.steps[2]) == [value, "1 kept"]
            await restored.aclose()
        finally:
            await copy.teardown()
    await provider.discard(captured)


async def test_a_server_that_does_not_start_fails_the_world(sandbox, tmp_path):
    server = McpServer("gone", "stdio", None, "sh", ("-c", "echo no luck >&2; exit 3"))
    package = TaskPackage(str(tmp_path), "d", SPEC, mcp_servers=(server,))
    ctx = make_context(Task("set:one", "Do it.", package=package), sandbox, artifacts=tmp_path)
    ctx = dataclasses.replace(ctx, model=ScriptedModel([]))
    with pytest.raises(EnvironmentFailed, match=r"gone \(stdio, sh\).*exited 3: no luck"):
        await ChatAgent().connect(sandbox, ctx)
