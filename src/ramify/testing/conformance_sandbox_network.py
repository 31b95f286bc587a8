"""Checks of the network: policies, `serve_in` and `expose_port`."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from ramify.contracts.errors import SandboxError
from ramify.contracts.sandbox import (
    MIB,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.testing.check import CheckSkipped, check, equal, raises, require, within
from ramify.testing.sandbox_bench import SandboxBench, sh
from ramify.testing.sandbox_peers import (
    NOT_CONNECTED,
    ask,
    connect_inside,
    get_request,
    host_server,
    server_inside,
    through_proxy,
)

BLOB = hashlib.shake_256(b"network").digest(2 * MIB)


def _with_network(bench: SandboxBench, mode: NetworkMode, *allowed: str) -> SandboxSpec:
    return msgspec.structs.replace(bench.spec, network=NetworkPolicy(mode, allowed))


def _free_port() -> int:
    """A port on which nothing listens here: some sandboxes share the host's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _own_address() -> str:
    """An address of this host that is not the loopback. Raises CheckSkipped without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            raise CheckSkipped(f"the host has no address but the loopback: {error}") from error
        return probe.getsockname()[0]


async def _echo(reader: ByteReader, writer: ByteWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _collect(reader: ByteReader, writer: ByteWriter) -> None:
    """Answer only once the peer has half-closed, with the size and digest of what it sent."""
    digest, size = hashlib.sha256(), 0
    while data := await reader.read(65536):
        digest.update(data)
        size += len(data)
    writer.write(f"{size} {digest.hexdigest()}".encode())
    await writer.drain()
    writer.close()


@check("network.none", "isolation")
async def _none_reaches_no_loopback_of_the_host(bench: SandboxBench) -> None:
    """Nothing outside the sandbox: a server on the host's loopback is out of reach."""
    async with host_server() as server:
        async with bench.sandbox(_with_network(bench, NetworkMode.NONE)) as sandbox:
            result = await connect_inside(sandbox, server.port)
            equal(result.exit_code, NOT_CONNECTED, "exit code of a connection to the host")
        equal(server.connections, 0, "connections that reached the host")


@check("network.none", "isolation")
async def _none_reaches_no_address_of_the_host(bench: SandboxBench) -> None:
    """Nothing outside the sandbox: the host's other addresses are out of reach, too."""
    address = _own_address()
    async with host_server(address) as server:
        async with bench.sandbox(_with_network(bench, NetworkMode.NONE)) as sandbox:
            with within(8, "a refused connection"):
                result = await connect_inside(sandbox, server.port, host=address)
            equal(result.exit_code, NOT_CONNECTED, "exit code of a connection to the host")
        equal(server.connections, 0, "connections that reached the host")


@check("network.none", "isolation")
async def _none_has_no_other_interface(bench: SandboxBench) -> None:
    """Nothing outside the sandbox: no interface but the loopback has a route."""
    async with bench.sandbox(_with_network(bench, NetworkMode.NONE)) as sandbox:
        routes = await sh(sandbox, "cat /proc/net/route")
        equal(routes.splitlines()[1:], [], "routes inside")
        mine = await asyncio.to_thread(_network_namespace)
        require(await sh(sandbox, "readlink /proc/self/ns/net") != mine, "the host's network")


def _network_namespace() -> str:
    return str(Path("/proc/self/ns/net").readlink())


@check("network.none")
async def _loopback_works(bench: SandboxBench) -> None:
    """Loopback inside the sandbox always works, between programs of the inside."""
    port = _free_port()
    async with bench.sandbox(_with_network(bench, NetworkMode.NONE)) as sandbox:
        async with server_inside(sandbox, port, "inside:"):
            result = await connect_inside(sandbox, port, b"hello")
            equal((result.exit_code, result.stdout), (0, b"inside:hello"), "answer")


@check("isolation")
async def _same_port_in_two_sandboxes(bench: SandboxBench) -> None:
    """Two sandboxes can both listen on the same port."""
    port = _free_port()
    async with bench.sandbox() as one, bench.sandbox() as two:
        async with server_inside(one, port, "one:"), server_inside(two, port, "two:"):
            for sandbox, name in ((one, b"one:"), (two, b"two:")):
                result = await connect_inside(sandbox, port, b"x")
                equal(result.stdout, name + b"x", "answer")
            ends = [await sandbox.expose_port(port) for sandbox in (one, two)]
            equal([await ask(end, b"") for end in ends], [b"one:", b"two:"], "from the host")


@check()
async def _serve_in_carries_both_ways(bench: SandboxBench) -> None:
    """serve_in: each connection is served by the handler here; bytes go both ways, and whole."""
    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, _echo)
        require(0 < listener.port < 65536, f"port {listener.port} must be a real one")
        result = await connect_inside(sandbox, listener.port, BLOB[:300_000])
        require(result.stdout == BLOB[:300_000], f"{len(result.stdout)} bytes came back, or others")
        await listener.aclose()


@check()
async def _serve_in_half_close(bench: SandboxBench) -> None:
    """serve_in: the end of one direction leaves the other open."""
    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, _collect)
        result = await connect_inside(sandbox, listener.port, BLOB)
        expected = f"{len(BLOB)} {hashlib.sha256(BLOB).hexdigest()}".encode()
        equal(result.stdout, expected, "the answer after the half-close")
        await listener.aclose()


@check()
async def _serve_in_many_connections(bench: SandboxBench) -> None:
    """serve_in: connections are served side by side."""
    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, _echo)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(connect_inside(sandbox, listener.port, str(n).encode()))
                for n in range(8)
            ]
        equal([task.result().stdout for task in tasks], [b"%d" % n for n in range(8)], "answers")
        await listener.aclose()


@check()
async def _serve_in_on_a_taken_port(bench: SandboxBench) -> None:
    """serve_in raises SandboxError if the port is taken."""
    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, _echo)
        with raises(SandboxError, doing="serving on a port that is taken"):
            await sandbox.serve_in(listener.port, _echo)
        equal((await connect_inside(sandbox, listener.port, b"on")).stdout, b"on", "the first one")
        await listener.aclose()


@check()
async def _serve_in_ends(bench: SandboxBench) -> None:
    """Listener.aclose stops listening and ends open connections, and is idempotent."""

    async def silent(reader: ByteReader, writer: ByteWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        connected.set()
        await asyncio.sleep(60)

    connected = asyncio.Event()
    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, silent)
        client = asyncio.create_task(connect_inside(sandbox, listener.port, half=False))
        async with asyncio.timeout(10):
            await connected.wait()
        with within(3, "closing a listener with an open connection"):
            await listener.aclose()
            await listener.aclose()
            equal((await client).timed_out, False, "the open connection must end, so timed_out")
        again = await connect_inside(sandbox, listener.port)
        equal(again.exit_code, NOT_CONNECTED, "exit code of a connection after aclose")


@check()
async def _failing_handler_is_contained(bench: SandboxBench) -> None:
    """serve_in: a handler that fails ends its own connection and nothing else."""

    async def handler(reader: ByteReader, writer: ByteWriter) -> None:
        if await reader.read(100) == b"fail":
            raise ConnectionResetError("the handler's peer went away")
        writer.write(b"served")
        await writer.drain()
        writer.close()

    async with bench.sandbox() as sandbox:
        listener = await sandbox.serve_in(0, handler)
        await connect_inside(sandbox, listener.port, b"fail")
        equal((await connect_inside(sandbox, listener.port, b"ok")).stdout, b"served", "the next")
        await listener.aclose()


@check()
async def _expose_port_carries_both_ways(bench: SandboxBench) -> None:
    """expose_port: connections to the address reach the port inside; half-close is carried."""
    port = _free_port()
    async with bench.sandbox() as sandbox:
        async with server_inside(sandbox, port, "got:"):
            endpoint = await sandbox.expose_port(port)
            require(await ask(endpoint, BLOB) == b"got:" + BLOB, "2 MiB must come back unchanged")
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(endpoint, b"%d" % n)) for n in range(8)]
            equal([t.result() for t in tasks], [b"got:%d" % n for n in range(8)], "answers")


@check()
async def _expose_port_before_the_server(bench: SandboxBench) -> None:
    """expose_port: the address stays until teardown, whether or not something listens yet."""
    port = _free_port()
    async with bench.sandbox() as sandbox:
        endpoint = await sandbox.expose_port(port)
        with suppress(ConnectionError):  # a refused connection is as good an answer
            equal(await ask(endpoint, b"early"), b"", "answer while nothing listens")
        async with server_inside(sandbox, port, "late:"):
            equal(await ask(endpoint, b"x"), b"late:x", "answer once something listens")
    try:
        answer = await ask(endpoint, b"x")
    except ConnectionError:
        answer = b""
    equal(answer, b"", "answer at the address after teardown")


@check("network.allowlist")
async def _allowlist_lets_the_listed_through(bench: SandboxBench) -> None:
    """Only `allowed_hosts`, through the HTTP(S) proxy of the engine: the listed host answers."""
    async with host_server() as server:
        listed = f"127.0.0.1:{server.port}"
        spec = _with_network(bench, NetworkMode.ALLOWLIST, listed)
        async with bench.sandbox(spec) as sandbox:
            answer = await through_proxy(sandbox, get_request(listed))
            require(" 200 " in answer.split("\r\n")[0], f"GET through the proxy: {answer[:200]!r}")
            require(answer.endswith("from the host"), f"body: {answer[-100:]!r}")
            tunnel = f"CONNECT {listed} HTTP/1.1\r\nHost: {listed}\r\n\r\nGET / HTTP/1.1\r\n\r\n"
            answer = await through_proxy(sandbox, tunnel)
            require(" 200 " in answer.split("\r\n")[0], f"CONNECT: {answer[:200]!r}")
            require(answer.endswith("from the host"), f"through the tunnel: {answer[-100:]!r}")


@check("network.allowlist")
async def _allowlist_refuses_others(bench: SandboxBench) -> None:
    """Only `allowed_hosts`: another port, another host and a name that is not listed get 403."""
    async with host_server() as listed, host_server() as other:
        spec = _with_network(bench, NetworkMode.ALLOWLIST, f"127.0.0.1:{listed.port}")
        async with bench.sandbox(spec) as sandbox:
            for authority in (
                f"127.0.0.1:{other.port}",
                f"localhost:{other.port}",
                f"127.0.0.1.:{other.port}",
                f"[::ffff:127.0.0.1]:{other.port}",
                "example.org:80",
            ):
                connect = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
                for request in (get_request(authority), connect):
                    status = (await through_proxy(sandbox, request)).split("\r\n")[0]
                    require(" 403 " in f"{status} ", f"{authority} got {status!r}, not 403")
        equal((listed.connections, other.connections), (0, 0), "connections that reached the host")


@check("network.allowlist", "isolation")
async def _allowlist_has_no_way_round(bench: SandboxBench) -> None:
    """Only through the proxy: a direct connection fails, even to a listed host."""
    async with host_server() as server:
        spec = _with_network(bench, NetworkMode.ALLOWLIST, f"127.0.0.1:{server.port}")
        async with bench.sandbox(spec) as sandbox:
            result = await connect_inside(sandbox, server.port)
            equal(result.exit_code, NOT_CONNECTED, "exit code of a direct connection")
        equal(server.connections, 0, "connections that reached the host")


NETWORK_CHECKS = (
    _none_reaches_no_loopback_of_the_host,
    _none_reaches_no_address_of_the_host,
    _none_has_no_other_interface,
    _loopback_works,
    _same_port_in_two_sandboxes,
    _serve_in_carries_both_ways,
    _serve_in_half_close,
    _serve_in_many_connections,
    _serve_in_on_a_taken_port,
    _serve_in_ends,
    _failing_handler_is_contained,
    _expose_port_carries_both_ways,
    _expose_port_before_the_server,
    _allowlist_lets_the_listed_through,
    _allowlist_refuses_others,
    _allowlist_has_no_way_round,
)
"""Checks of network policies, `serve_in` and `expose_port`."""
