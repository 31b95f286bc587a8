"""The MCP client against servers that are odd, broken or hostile, over a fake sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest
from aiohttp import web

from ramify.contracts.agent import StopReason
from ramify.contracts.errors import ConfigError, EnvironmentFailed
from ramify.contracts.messages import ToolCall
from ramify.contracts.sandbox import Endpoint, SandboxSpec
from ramify.contracts.task import McpServer, Task, TaskPackage
from ramify.contracts.tree import Fidelity
from ramify.planes.agent.chat import ChatAgent
from ramify.testing.context import RealClock
from ramify.testing.fakecontext import FakeRecorder, fake_context
from ramify.testing.fakes import FakeProcess, FakeProvider, FakeSandbox
from ramify.testing.scripted_model import ScriptedModel, call

SPEC = SandboxSpec(host_root=True, workdir="/work")
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
STDIO = McpServer("s", "stdio", None, "server")


def tool(name, **more):
    return {"name": name, "description": f"does {name}", "inputSchema": SCHEMA, **more}


def text(said, **more):
    return {"content": [{"type": "text", "text": said}], **more}


class Server:
    """A server in a few lines: methods answer with results, or say what they like."""

    def __init__(self, tools=(), call=None, version="2025-06-18"):
        self.tools, self.version = list(tools) or [tool("do")], version
        self.heard = []
        if call is not None:
            self.call = call

    def initialize(self, params):
        return {"protocolVersion": self.version, "capabilities": {}, "serverInfo": {}}

    def list(self, params):
        return {"tools": self.tools}

    def call(self, params):
        return text(f"did {params['name']} {params['arguments']}")

    def before(self, message):
        """What is sent before an answer."""
        return []

    def answers(self, message):
        """The messages that answer one, as they are sent."""
        self.heard.append(message)
        methods = {
            "initialize": self.initialize,
            "tools/list": self.list,
            "tools/call": self.call,
        }
        method = methods.get(message.get("method"))
        if method is None:
            return []
        result = method(message.get("params"))
        if result is None:
            return self.before(message)
        kind = "error" if "code" in result else "result"
        answer = {"jsonrpc": "2.0", "id": message["id"], kind: result}
        return [*self.before(message), answer]

    async def run(self, sandbox, asked, process):
        while line := await process.stdin.readline():
            for answer in self.answers(json.loads(line)):
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                process.say(data + b"\n")
        return 0


class Stand:
    """A chat agent with one MCP server, on a fake sandbox."""

    def __init__(self, tmp_path, program, server=STDIO, sandbox=None, **options):
        self.provider = FakeProvider()
        run = program.run if isinstance(program, Server) else program
        self.provider.on_spawn("server", run)
        self.server, self.options, self.tmp_path = server, options, tmp_path
        self.made = sandbox

    def context(self, sandbox, script):
        package = TaskPackage(
            str(self.tmp_path), "d", SPEC, mcp_servers=(self.server,), agent_user="dev"
        )
        task = Task("set:one", input="Do it.", package=package)
        ctx = fake_context(task, artifacts=self.tmp_path, sandbox=sandbox)
        return dataclasses.replace(ctx, model=ScriptedModel(script), clock=RealClock())

    async def open(self, *script):
        self.sandbox = self.made or await self.provider.create(SPEC)
        self.ctx = self.context(self.sandbox, script)
        return await ChatAgent(**self.options).connect(self.sandbox, self.ctx)

    async def run(self, *script):
        """The answers of the tools of the first step."""
        session = await self.open(*script, "Done.")
        try:
            assert await session.prompt("Do it.") is StopReason.END_TURN
        finally:
            await session.aclose()
        return self.answers(0)

    def answers(self, index):
        step = self.ctx.recorder.steps[index]
        return [message.content for message in step.messages if message.role == "tool"]

    @property
    def tools(self):
        return {tool["name"]: tool for tool in self.ctx.recorder.steps[0].info["tools"][4:]}


async def test_a_server_is_greeted_listed_and_called_as_the_agents_user(tmp_path):
    server = Server()
    stand = Stand(tmp_path, server)
    assert await stand.run(call("s__do", x=1)) == ["did do {'x': 1}"]
    assert stand.tools == {
        "s__do": {"name": "s__do", "description": "does do", "parameters": SCHEMA}
    }
    [spawned] = stand.sandbox.calls
    assert (spawned.command, spawned.user, spawned.cwd) == ("server", "dev", "/work")
    assert [m["method"] for m in server.heard] == [
        "initialize",
        "notifications/initialized",
        "tools/list",
        "tools/call",
    ]


async def test_names_are_made_valid_and_told_apart(tmp_path):
    long = "a" * 70
    names = ["x.y", "x y", long, long + "b", "do", "do"]
    stand = Stand(tmp_path, Server([tool(name) for name in names]))
    await stand.run(call("s__do"))
    assert len(stand.tools) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in stand.tools)
    assert list(stand.tools)[0] == "s__x_y"
    said = await stand.run(*[[call(name) for name in stand.tools]])
    assert said == [f"did {name} {{}}" for name in names[:5]]


async def test_a_list_may_have_pages(tmp_path):
    class Paged(Server):
        def list(self, params):
            page = int((params or {}).get("cursor", 0))
            more = {"nextCursor": str(page + 1)} if page < 3 else {}
            return {"tools": [tool(f"t{page}")], **more}

    stand = Stand(tmp_path, Paged())
    await stand.run(call("s__t3"))
    assert list(stand.tools) == ["s__t0", "s__t1", "s__t2", "s__t3"]


class Chatty(Server):
    """Sends much that nobody asked for, and asks back."""

    def before(self, message):
        return [
            b"starting up ...",
            b"{",
            b"[1, 2]",
            {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}},
            {"jsonrpc": "2.0", "id": 99999, "result": {}},
            {"jsonrpc": "2.0", "id": str(message["id"]), "result": {}},
            {"jsonrpc": "2.0", "id": True, "result": {}},
            {"jsonrpc": "2.0", "id": "p1", "method": "ping"},
            {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}},
        ]


async def test_what_was_not_asked_for_is_passed_over_and_requests_are_answered(tmp_path):
    server = Chatty()
    assert await Stand(tmp_path, server).run(call("s__do")) == ["did do {}"]
    replies = [message for message in server.heard if "method" not in message]
    assert {"jsonrpc": "2.0", "id": "p1", "result": {}} in replies
    assert [r["error"]["code"] for r in replies if r["id"] == 1] == [-32601] * 3


class Changing(Server):
    """One method answers otherwise."""

    def __init__(self, name, value, **more):
        super().__init__(**more)
        setattr(self, name, value)


def endless(message):
    return [b"garbage"] * 10_001


CONNECT = {
    "another version": (Server(version="1999-01-01"), "speaks version '1999-01-01'"),
    "no object": (Changing("list", lambda params: [1]), "its answer is no object"),
    "no tools": (Changing("list", lambda params: {}), "lists no tools"),
    "no schema": (Server([{"name": "x"}]), "a tool without a name or schema"),
    "refusal": (
        Changing("initialize", lambda params: {"code": -1, "message": "go away"}),
        r"it refuses: go away \(-1\)",
    ),
    "endless pages": (
        Changing("list", lambda params: {"tools": [], "nextCursor": "x"}),
        "more than 100 pages",
    ),
    "too many tools": (Server([tool(f"t{n}") for n in range(600)]), "more than 512 tools"),
    "too large a tool": (Server([tool("t", title="x" * 2_000_000)]), "1048576 bytes"),
    "endless garbage": (Changing("before", endless), "messages and no answer"),
    "a huge message": (
        Changing("before", lambda message: [b"x" * (9 << 20)]),
        "message of more than 8388608 bytes",
    ),
    "silence": (Changing("initialize", lambda params: None), r"no answer within 0\.5 s"),
}


@pytest.mark.parametrize("case", CONNECT)
async def test_a_server_that_cannot_be_used_fails_the_world(tmp_path, case):
    server, message = CONNECT[case]
    stand = Stand(tmp_path, server, mcp_start_sec=0.5 if case == "silence" else 60.0)
    with pytest.raises(EnvironmentFailed, match=rf"server s \(stdio, server\).*{message}"):
        await stand.open()
    [process] = stand.sandbox.processes
    assert not process.running


async def test_a_program_that_ends_says_why(tmp_path):
    async def program(sandbox, asked, process):
        process.say(b"no such module", err=True)
        return 3

    with pytest.raises(EnvironmentFailed, match="exited 3: no such module"):
        await Stand(tmp_path, program).open()


CALLS = {
    "an error": ({"code": -32602, "message": "bad x"}, "it refuses: bad x (-32602)"),
    "no object": ([1], "its answer is no object"),
}


@pytest.mark.parametrize("case", CALLS)
async def test_a_call_that_fails_is_told_to_the_model(tmp_path, case):
    result, message = CALLS[case]
    stand = Stand(tmp_path, Server(call=lambda params: result))
    assert await stand.run([call("s__do"), call("bash", command="x")]) == [
        f"Error: the MCP server s: {message}",
        stand.answers(0)[1],
    ]


async def test_content_becomes_text(tmp_path):
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
        {"type": "resource", "resource": {"uri": "u:1", "text": "inner"}},
        {"type": "resource", "resource": {"uri": "u:2", "mimeType": "x/y", "blob": "AAAA"}},
        {"type": "resource_link", "uri": "u:3", "name": "n"},
        {"type": "hologram"},
        7,
    ]
    results = iter(
        [
            {"content": blocks},
            {"content": [], "structuredContent": {"n": 1}},
            {},
            text("broken", isError=True),
            text("y" * 5000),
        ]
    )
    stand = Stand(tmp_path, Server(call=lambda params: next(results)), output_limit=1000)
    said = await stand.run([call("s__do")] * 5)
    assert said[0].splitlines() == [
        "a",
        "[audio, audio/wav, about 3 bytes: not shown]",
        "[resource u:1]",
        "inner",
        "[resource u:2, x/y, about 3 bytes: not shown]",
        "[resource u:3: n]",
        "[content of an unknown type: hologram]",
        "[content of an unknown type: None]",
    ]
    assert said[1:4] == ['{"n":1}', "[no output]", "Error: broken"]
    assert len(said[4]) < 1100


async def test_arguments_that_are_no_object_do_not_reach_the_server(tmp_path):
    bad = [ToolCall("", "s__do", arguments) for arguments in ("[1]", "{", "7")]
    server = Server()
    said = await Stand(tmp_path, server).run([*bad, call("s__do")])
    assert all(one.startswith("Error: invalid arguments for s__do") for one in said[:3])
    assert len([m for m in server.heard if m.get("method") == "tools/call"]) == 1


async def test_a_late_answer_is_not_taken_for_the_next(tmp_path):
    late = []

    def slow(params):
        return text("at once") if late else late.append(1)

    class Slow(Server):
        def before(self, message):
            if message["method"] == "tools/call" and len(self.heard) > 4:
                return [{"jsonrpc": "2.0", "id": message["id"] - 1, "result": text("too late")}]
            return []

    server = Slow(call=slow)
    stand = Stand(tmp_path, server, mcp_timeout_sec=0.2)
    said = await stand.run([call("s__do"), call("s__do")])
    assert said == ["Error: the MCP server s: no answer within 0.2 s", "at once"]
    [told] = [m for m in server.heard if m["method"] == "notifications/cancelled"]
    first = next(m for m in server.heard if m["method"] == "tools/call")
    assert told["params"]["requestId"] == first["id"]


class Attachable(FakeSandbox):
    """A fake whose server came along, as a program that goes on from a state."""

    def __init__(self, provider, server, pid, unread):
        super().__init__(provider, 9, SPEC, provider.pristine)
        self.process = FakeProcess(pid=pid)
        self.process.stdout.feed_data(unread)
        self.process.start(server.run(self, None, self.process))

    def attach(self, pid):
        if pid != self.process.pid:
            raise LookupError(pid)
        return self.process


async def test_a_live_copy_goes_on_with_the_same_server(tmp_path):
    server = Server()
    stand = Stand(tmp_path, server)
    session = await stand.open(call("s__do", x=1), "Done.", call("s__do", x=2), "Again.")
    await session.prompt("Do it.")
    state = session.checkpoint()
    assert (state.fidelity(True), state.fidelity(False)) == (Fidelity.LIVE, Fidelity.RESUMED)
    [process] = stand.sandbox.processes
    asked = len(server.heard)
    for unread in (b"", b'{"jsonrpc": "2.0", "method": "notifications/x"}\nhalf a l\n'):
        copied = Attachable(stand.provider, server, process.pid, unread)
        mine = dataclasses.replace(stand.ctx, recorder=FakeRecorder())
        restored = await state.restore(copied, mine)
        assert await restored.proceed() is StopReason.END_TURN
        assert await restored.prompt("And now?") is StopReason.END_TURN
        assert mine.recorder.steps[0].messages[-1].content == "did do {'x': 2}"
        assert [m["method"] for m in server.heard[asked:]] == ["tools/call"]
        assert server.heard[-1]["id"] == 4
        asked = len(server.heard)
        await restored.aclose()
        assert not copied.process.running
    await session.aclose()


# Over HTTP: a real server on a real socket; the fake sandbox leads to it.


class Reaching(FakeSandbox):
    """A fake whose ports are those of this machine."""

    def __init__(self):
        provider = FakeProvider()
        super().__init__(provider, 1, SPEC, provider.pristine)
        self.asked = []

    async def expose_port(self, port):
        self.asked.append(port)
        return Endpoint("127.0.0.1", self.port)


class HttpServer:
    """A streamable HTTP server in front of a Server."""

    def __init__(self, server, stream=False):
        self.server, self.stream, self.requests = server, stream, []
        self.session = "s-1"

    async def post(self, request):
        message = await request.json()
        self.requests.append((request.method, request.headers, message))
        given = request.headers.get("Mcp-Session-Id")
        if message.get("method") != "initialize" and given != self.session:
            return web.Response(status=404, text="Session not found")
        answers = self.server.answers(message)
        if not answers:
            return web.Response(status=202)
        headers = {"Mcp-Session-Id": self.session}
        if not self.stream:
            return web.json_response(answers[-1], headers=headers)
        said = b": hello\r\nid: 7\r\ndata:\r\n\r\n"
        for answer in answers:
            body = answer if isinstance(answer, bytes) else json.dumps(answer, indent=1).encode()
            said += b"event: message\r\n"
            said += b"".join(b"data: " + line + b"\r\n" for line in body.split(b"\n")) + b"\r\n"
        return web.Response(body=said, content_type="text/event-stream", headers=headers)

    async def delete(self, request):
        self.requests.append((request.method, request.headers, None))
        return web.Response()

    async def moved(self, request):
        raise web.HTTPTemporaryRedirect("/mcp/")

    async def away(self, request):
        raise web.HTTPTemporaryRedirect("http://elsewhere/mcp")


@pytest.fixture
async def serve():
    """Starts an application on a port of its own."""
    runners = []

    async def start(*routes):
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    yield start
    for runner in runners:
        await runner.cleanup()


def http(path="/mcp", host="localhost:8000"):
    return McpServer("s", "streamable-http", f"http://{host}{path}")


@pytest.mark.parametrize("stream", [False, True])
async def test_streamable_http(tmp_path, serve, stream):
    server = HttpServer(Chatty() if stream else Server(), stream)
    runner = await serve(
        web.post("/mcp", server.moved), web.post("/mcp/", server.post),
        web.delete("/mcp", server.moved), web.delete("/mcp/", server.delete),
    )  # fmt: skip
    sandbox = Reaching()
    sandbox.port = runner.addresses[0][1]
    stand = Stand(tmp_path, Server(), http(), sandbox)
    session = await stand.open(call("s__do", x=1), "Done.", call("s__do", x=2), "Done.")
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert not runner.server.connections, "a connection outlives its request"
    assert stand.answers(0) == ["did do {'x': 1}"]
    assert sandbox.asked == [8000]
    first, *others = [headers for method, headers, _ in server.requests]
    assert {headers["Host"] for headers in (first, *others)} == {"localhost:8000"}
    assert "Mcp-Session-Id" not in first
    assert others[-1]["MCP-Protocol-Version"] == "2025-06-18"
    server.session = "s-2"  # it was started again
    assert await session.prompt("Once more.") is StopReason.END_TURN
    assert stand.answers(2) == ["did do {'x': 2}"]
    state = session.checkpoint()
    assert (state.fidelity(True), state.fidelity(False)) == (Fidelity.LIVE, Fidelity.RESUMED)
    await session.aclose()
    method, headers, _ = server.requests[-1]
    assert (method, headers["Mcp-Session-Id"]) == ("DELETE", "s-2")


HTTP = {
    "another server": ("/away", "sends on to another server, 'http://elsewhere/mcp'"),
    "not there": ("/none", "HTTP 404: 404: Not Found"),
    "a flood": ("/flood", "answered with more than 8388608 bytes"),
    "an endless event": ("/event", "an event of more than 8388608 bytes|a line of more than"),
    "nothing": ("/empty", "ended its answer without one"),
}


@pytest.mark.parametrize("case", HTTP)
async def test_http_servers_that_cannot_be_used(tmp_path, serve, case):
    async def flood(request):
        return web.Response(body=b"x" * (9 << 20), content_type="application/json")

    async def event(request):
        body = b"data: " + b"x" * (1 << 20) + b"\n"
        return web.Response(body=body * 9, content_type="text/event-stream")

    async def empty(request):
        return web.Response(content_type="text/event-stream")

    path, message = HTTP[case]
    runner = await serve(
        web.post("/away", HttpServer(None).away), web.post("/flood", flood),
        web.post("/event", event), web.post("/empty", empty),
    )  # fmt: skip
    sandbox = Reaching()
    sandbox.port = runner.addresses[0][1]
    stand = Stand(tmp_path, Server(), http(path), sandbox, mcp_start_sec=0.3)
    with pytest.raises(EnvironmentFailed, match=message):
        await stand.open()


async def test_a_server_that_comes_up_late_is_waited_for(tmp_path, serve):
    server = HttpServer(Server())
    tries = []

    async def post(request):
        tries.append(1)
        return web.Response(status=503) if len(tries) < 3 else await server.post(request)

    runner = await serve(web.post("/mcp", post))
    sandbox = Reaching()
    sandbox.port = runner.addresses[0][1]
    assert await Stand(tmp_path, Server(), http(), sandbox).run(call("s__do")) == ["did do {}"]


async def test_nobody_listens(tmp_path):
    sandbox = Reaching()
    sandbox.port = 1
    stand = Stand(tmp_path, Server(), http(), sandbox, mcp_start_sec=0.3)
    with pytest.raises(EnvironmentFailed, match="streamable-http.*Connect"):
        await stand.open()


async def test_a_host_without_a_program_to_reach_it_with(tmp_path):
    async def relay(sandbox, asked, process):
        process.say(b"no bash, nc or python3 to reach it with", err=True)
        return 127

    stand = Stand(tmp_path, Server(), http(host="tools:8000"), mcp_start_sec=0.3)
    stand.provider.on_spawn(re.compile("tools 8000$"), relay)
    with pytest.raises(EnvironmentFailed, match="no bash, nc or python3 to reach it with"):
        await stand.open()


@pytest.mark.parametrize("url", ["ftp://x/", "localhost:8000/mcp", "http://x:99999/", "http:///"])
async def test_what_is_no_address_is_refused(tmp_path, url):
    stand = Stand(tmp_path, Server(), McpServer("s", "streamable-http", url))
    with pytest.raises(ConfigError, match="no address of an MCP server"):
        await stand.open()


async def test_an_endpoint_elsewhere_is_refused(tmp_path, serve):
    async def stream(request):
        body = b"event: endpoint\ndata: http://127.0.0.1:1/steal\n\n"
        return web.Response(body=body, content_type="text/event-stream")

    runner = await serve(web.get("/sse", stream))
    sandbox = Reaching()
    sandbox.port = runner.addresses[0][1]
    server = McpServer("s", "sse", "http://localhost:8000/sse")
    stand = Stand(tmp_path, Server(), server, sandbox, mcp_start_sec=0.3)
    with pytest.raises(EnvironmentFailed, match="its endpoint is on another server"):
        await stand.open()


class SseServer:
    """A server of the older transport, whose streams end when they are told to."""

    def __init__(self, server):
        self.server, self.streams, self.ends = server, 0, False

    async def stream(self, request):
        self.streams += 1
        response = self.response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        await response.write(b"event: endpoint\ndata: /post?s=1\n\n")
        self.ended = asyncio.Event()
        await self.ended.wait()
        return response

    async def post(self, request):
        message = await request.json()
        answers = self.server.answers(message)
        if message["method"] == "tools/call" and self.ends:
            self.ended.set()
            return web.Response(status=202)
        for answer in answers:
            data = b"data: " + json.dumps(answer).encode() + b"\n\n"
            await self.response.write(b"event: message\n" + data)
        return web.Response(status=202)


async def test_a_stream_that_ends_is_opened_again_and_no_call_made_twice(tmp_path, serve):
    sse = SseServer(Server())
    runner = await serve(web.get("/sse", sse.stream), web.post("/post", sse.post))
    sandbox = Reaching()
    sandbox.port = runner.addresses[0][1]
    server = McpServer("s", "sse", "http://localhost:8000/sse")
    stand = Stand(tmp_path, Server(), server, sandbox)
    session = await stand.open(call("s__do", x=1), "A.", call("s__do", x=2), "B.", [
        call("s__do", x=3), call("s__do", x=4),
    ], "C.")  # fmt: skip
    assert await session.prompt("Do it.") is StopReason.END_TURN
    assert stand.answers(0) == ["did do {'x': 1}"]
    sse.ends = True
    assert await session.prompt("Once more.") is StopReason.END_TURN
    assert stand.answers(2) == ["Error: the MCP server s: it closed the stream"]
    sse.ends = False
    assert await session.prompt("And again.") is StopReason.END_TURN
    assert stand.answers(4) == ["did do {'x': 3}", "did do {'x': 4}"]
    called = [m["params"]["arguments"] for m in sse.server.heard if m["method"] == "tools/call"]
    assert called == [{"x": 1}, {"x": 2}, {"x": 3}, {"x": 4}]
    assert sse.streams == 2
    assert session.checkpoint().fidelity(True) is Fidelity.RESUMED
    await session.aclose()
