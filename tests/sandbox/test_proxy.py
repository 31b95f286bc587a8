import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy
from ramify.planes.sandbox.egress import MachineResolver, compile_rules, is_public, reachable
from ramify.planes.sandbox.proxy import EgressProxy

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def allow(*hosts: str) -> NetworkPolicy:
    return NetworkPolicy(mode=NetworkMode.ALLOWLIST, allowed_hosts=hosts)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A TCP server whose connections are all closed at the end; gives its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        pending = list(tasks)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)


class Web:
    """An origin server that answers every request the same way and remembers what it got."""

    def __init__(self, answer: bytes, *, linger: bool = False, read_body: int = 0) -> None:
        self.answer, self.linger, self.read_body = answer, linger, read_body
        self.heads: list[bytes] = []
        self.body = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        if self.read_body:
            self.body = await reader.readexactly(self.read_body)
        writer.write(self.answer)
        await writer.drain()
        if self.linger:
            self.body += await reader.read()


async def talk(proxy: EgressProxy, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes to a proxy and read until it closes."""
    async with serving(proxy.handle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        if half_close:
            writer.write_eof()
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_forwards_one_request_and_closes() -> None:
    web = Web(
        OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\r\n"), linger=True
    )
    async with serving(web) as port:
        proxy = EgressProxy(allow(f"127.0.0.1:{port}"))
        answer = await talk(
            proxy,
            b"GET http://127.0.0.1:%d/p?q=1#frag HTTP/1.1\r\nHost: other.example\r\nX-Hop: 1\r\n"
            b"Connection: keep-alive, X-Hop, Content-Length\r\n"
            b"Proxy-Authorization: Basic c2VjcmV0\r\n"
            b"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nAccept: */*\r\n\r\n" % port,
        )
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    head = web.heads[0].decode()
    assert head.startswith(f"GET /p?q=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")
    for gone in ("other.example", "X-Hop", "secret", "c2VjcmV0", "Upgrade", "Proxy-", "keep-alive"):
        assert gone not in head
    assert head.endswith("Accept: */*\r\nConnection: close\r\n\r\n")


async def test_a_second_request_on_the_connection_never_reaches_anyone() -> None:
    web = Web(OK, linger=True)
    async with serving(web) as port:
        get = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port
        answer = await talk(
            EgressProxy(allow(f"127.0.0.1:{port}")),
            get + b"GET http://evil.example/ HTTP/1.1\r\n\r\n",
        )
    assert answer.count(b"HTTP/1.1") == 1
    assert web.body == b""
    assert len(web.heads) == 1


async def test_bodies_pass_in_both_framings() -> None:
    chunked = b"3\r\nabc\r\na;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    clean = b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    web = Web(answer, read_body=len(clean))
    async with serving(web) as port:
        policy = allow(f"127.0.0.1:{port}")
        start = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\n" % port
        got = await talk(
            EgressProxy(policy), start + b"Transfer-Encoding: chunked\r\n\r\n" + chunked
        )
        assert got.endswith(b"\r\n\r\n" + clean)
        assert web.body == clean
        web.read_body, web.answer = 5, b"HTTP/1.0 200 OK\r\n\r\nuntil the end"
        got = await talk(EgressProxy(policy), start + b"Content-Length: 5\r\n\r\nhelloEXTRA")
        assert got.endswith(b"until the end")
        assert web.body == b"hello"


async def test_interim_answers_and_head_requests() -> None:
    web = Web(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    async with serving(web) as port:
        policy = allow(f"127.0.0.1:{port}")
        got = await talk(EgressProxy(policy), b"GET http://127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
        assert got.startswith(b"HTTP/1.1 100 Continue")
        assert got.endswith(b"hi")
        web.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
        got = await talk(EgressProxy(policy), b"HEAD http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port)
        assert b"Content-Length: 500" in got


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b" folded: 1\r\n",
        b"No-Colon\r\n",
        b"X: a\nInjected: b\r\n",
        b"X: a\rb\r\n",
        b"X: a\0b\r\n",
        b"X" * 70_000 + b": 1\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(headers: bytes) -> None:
    web = Web(OK)
    async with serving(web) as port:
        request = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\n" % port + headers + b"\r\n"
        answer = await talk(EgressProxy(allow(f"127.0.0.1:{port}")), request + b"hello")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert web.heads == []


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"GET https://example.org/ HTTP/1.1",
        b"GET http://user@127.0.0.1/ HTTP/1.1",
        b"GET http:///x HTTP/1.1",
        b"GET http://127.0.0.1:99999/ HTTP/1.1",
        b"GET http://127.0.0.1/ HTTP/2.0",
        b"GET http://127.0.0.1/ a HTTP/1.1",
        b"CONNECT 127.0.0.1 HTTP/1.1",
        b"CONNECT http://127.0.0.1:80 HTTP/1.1",
        b"CONNECT [::1:80 HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_malformed_requests_get_400(line: bytes) -> None:
    answer = await talk(EgressProxy(NetworkPolicy(mode=NetworkMode.OPEN)), line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_bad_chunks_end_the_request() -> None:
    web = Web(b"", linger=True)
    async with serving(web) as port:
        start = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % port
        for chunks in (b"xyz\r\n", b"3\r\nabcdef\r\n", b"-1\r\n", b"f" * 40 + b"\r\n"):
            answer = await talk(EgressProxy(allow(f"127.0.0.1:{port}")), start + chunks)
            assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 101 Switch\r\n\r\n"])
async def test_servers_that_do_not_speak_http_give_502(answer: bytes) -> None:
    async with serving(Web(answer)) as port:
        request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port
        assert (await talk(EgressProxy(allow(f"127.0.0.1:{port}")), request)).startswith(
            b"HTTP/1.1 502 "
        )


async def test_connect_tunnels_bytes_with_half_close() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()

    async with serving(shout) as port:
        proxy = EgressProxy(allow(f"127.0.0.1:{port}"))
        request = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port
        answer = await talk(proxy, request + b"x" * 300_000, half_close=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 Connection established"
    assert body == b"X" * 300_000


async def test_idle_connections_are_closed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        proxy = EgressProxy(allow(f"127.0.0.1:{port}"), idle_sec=0.2)
        tunnel = await talk(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
        assert tunnel == b"HTTP/1.1 200 Connection established\r\n\r\n"
        plain = await talk(proxy, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port)
        assert plain.startswith(b"HTTP/1.1 504 ")


async def test_connections_are_limited() -> None:
    policy = NetworkPolicy(mode=NetworkMode.OPEN)
    proxy = EgressProxy(policy, max_connections=0, max_waiting=0)
    assert (await talk(proxy, b"")).startswith(b"HTTP/1.1 503 ")


async def test_connections_beyond_the_limit_wait_for_their_turn() -> None:
    begun, peak = 0, 0
    both = asyncio.Event()

    async def registry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun, peak
        begun += 1
        peak = max(peak, begun)
        await reader.readuntil(b"\r\n\r\n")
        if begun == 2:
            both.set()
        await both.wait()
        begun -= 1
        writer.write(OK)

    async with serving(registry) as port:
        proxy = EgressProxy(allow(f"127.0.0.1:{port}"), max_connections=2)
        request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port
        async with serving(proxy.handle) as front:

            async def fetch() -> bytes:
                reader, writer = await asyncio.open_connection("127.0.0.1", front)
                writer.write(request)
                try:
                    return await reader.read()
                finally:
                    writer.close()

            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                fetched = [group.create_task(fetch()) for _ in range(100)]
    assert all(task.result().endswith(b"hi") for task in fetched)
    assert peak == 2


async def test_many_connections_at_once_share_one_lookup_that_may_be_slow() -> None:
    """As in `npm install`: each of a hundred tunnels would wait behind the lookups of others."""
    answer, looked_up = threading.Event(), 0

    def slow(host: str, port: int) -> list[str]:
        nonlocal looked_up
        looked_up += 1
        answer.wait(30)
        return ["127.0.0.1"]

    async with serving(Web(OK)) as port:
        proxy = EgressProxy(allow(f"registry.example:{port}"), resolver=MachineResolver(slow))
        connect = b"CONNECT registry.example:%d HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n" % port
        async with serving(proxy.handle) as front, asyncio.timeout(60):
            peers = [await asyncio.open_connection("127.0.0.1", front) for _ in range(100)]
            for _reader, writer in peers:
                writer.write(connect)
                await writer.drain()
            peers.pop()[1].close()  # who leaves does not take the answer from the others
            await asyncio.sleep(0.1)
            answer.set()
            for reader, writer in peers:
                assert (await reader.read()).endswith(b"hi")
                writer.close()
            assert (await talk(proxy, connect)).endswith(b"hi")
    assert looked_up == 1


async def test_a_failed_lookup_is_not_remembered() -> None:
    answers: list[list[str]] = [[], ["127.0.0.1"]]

    def flaky(host: str, port: int) -> list[str]:
        found = answers.pop(0)
        if not found:
            raise OSError("the name server does not answer")
        return found

    resolver = MachineResolver(flaky)
    with pytest.raises(OSError, match="does not answer"):
        await resolver("a.example", 1)
    assert await resolver("a.example", 1) == ["127.0.0.1"]
    assert await resolver("a.example", 1) == ["127.0.0.1"]


async def test_denied_hosts_get_one_clear_line_and_are_recorded() -> None:
    proxy = EgressProxy(allow("good.example"))
    for _ in range(2):
        answer = await talk(proxy, b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n")
        head, _, line = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 Forbidden")
        assert line == b"ramify: evil.example:443 is not allowed by this sandbox's network policy\n"
    await talk(proxy, b"GET http://other.example/ HTTP/1.1\r\n\r\n")
    assert proxy.denied == ("evil.example:443", "other.example:80")
    for number in range(150):
        await talk(proxy, b"CONNECT h%d.example:1 HTTP/1.1\r\n\r\n" % number)
    assert len(proxy.denied) == 100


async def test_a_name_is_resolved_once_and_a_private_answer_is_refused() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "fe80::1%eth0"]

    web = Web(OK)
    async with serving(web) as port:
        for policy in (allow("rebind.example"), NetworkPolicy(mode=NetworkMode.OPEN)):
            proxy = EgressProxy(policy, resolver=rebinding)
            answer = await talk(proxy, b"CONNECT rebind.example:%d HTTP/1.1\r\n\r\n" % port)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"no public address" in answer
            assert proxy.denied == (f"rebind.example:{port}",)
        assert asked == ["rebind.example"] * 2
        proxy = EgressProxy(allow(f"rebind.example:{port}"), resolver=rebinding)
        request = b"GET http://REBIND.example.:%d/ HTTP/1.1\r\n\r\n" % port
        assert (await talk(proxy, request)).endswith(b"hi")


async def test_unresolvable_and_unreachable_hosts_give_502() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    proxy = EgressProxy(allow("a.example"), resolver=unknown)
    assert b"cannot be resolved" in await talk(proxy, b"CONNECT a.example:1 HTTP/1.1\r\n\r\n")
    async with serving(Web(OK)) as port:
        pass
    proxy = EgressProxy(allow(f"127.0.0.1:{port}"))
    answer = await talk(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    assert answer.startswith(b"HTTP/1.1 502 ")


async def test_names_of_this_machine_are_resolved_without_the_loops_threads() -> None:
    async with serving(Web(OK)) as port:
        asyncio.get_running_loop().set_default_executor(_NoThreads())
        proxy = EgressProxy(allow(f"localhost:{port}"))
        request = b"GET http://localhost:%d/ HTTP/1.1\r\n\r\n" % port
        assert (await talk(proxy, request)).endswith(b"hi")


class _NoThreads(ThreadPoolExecutor):
    def submit(self, *args: object, **kwargs: object) -> NoReturn:  # type: ignore[override]
        raise AssertionError("a lookup may block for long: it must not use the shared threads")


async def test_mode_none_refuses_even_what_is_named() -> None:
    async with serving(Web(OK)) as port:
        policy = NetworkPolicy(mode=NetworkMode.NONE, allowed_hosts=(f"127.0.0.1:{port}",))
        answer = await talk(EgressProxy(policy), b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "badexample.org", 443, False),
        ("EXAMPLE.org.", "example.org", 80, True),
        ("*.example.org", "www.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "badexample.org", 443, False),
        ("example.org:8443", "example.org", 8443, True),
        ("example.org:8443", "example.org", 443, False),
        ("[::1]:80", "::1", 80, True),
        ("2001:db8::1", "2001:db8::1", 443, True),
    ],
)
def test_allow_list_entries(entry: str, host: str, port: int, allowed: bool) -> None:
    assert compile_rules(allow(entry)).allows(host, port) is allowed


@pytest.mark.parametrize(
    "entry",
    ["", "*", "http://example.org", "a b", "example.org:0", "*.x.org:80", "ex*mple.org", "a/b"],
)
def test_bad_entries_are_refused_with_a_remedy(entry: str) -> None:
    with pytest.raises(ConfigError, match="write `host`"):
        EgressProxy(allow(entry))


PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "fec0::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_out_of_reach(address: str) -> None:
    assert reachable([address]) == []


def test_public_addresses_are_reachable() -> None:
    public = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"]
    assert reachable(public) == public


@given(st.ip_addresses(network="10.0.0.0/8"))
def test_mapped_forms_of_private_addresses_are_private(address: object) -> None:
    for form in (f"{address}", f"::ffff:{address}", f"64:ff9b::{address}"):
        assert not is_public(ip_address(form))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300), st.booleans())
async def test_random_bytes_get_an_answer_or_silence(data: bytes, prefixed: bool) -> None:
    start = b"GET http://h.example/ HTTP/1.1\r\n" if prefixed else b""

    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("none")

    proxy = EgressProxy(NetworkPolicy(mode=NetworkMode.OPEN), resolver=nowhere)
    answer = await talk(proxy, start + data + b"\r\n\r\n", half_close=True)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 502"))
