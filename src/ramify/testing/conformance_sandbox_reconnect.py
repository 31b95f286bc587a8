"""Checks of `Reconnects`: the network of a sandbox changes while it lives."""

from __future__ import annotations

import asyncio
import socket

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.frozen import Reconnects
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy, Sandbox, SandboxSpec
from ramify.testing.check import CheckSkipped, check, equal, raises, require, within
from ramify.testing.sandbox_bench import SandboxBench, sh
from ramify.testing.sandbox_peers import (
    NOT_CONNECTED,
    connect_inside,
    get_request,
    host_server,
    through_proxy,
)

_NONE = NetworkPolicy()
_OPEN = NetworkPolicy(NetworkMode.OPEN)


def _only(port: int) -> NetworkPolicy:
    return NetworkPolicy(NetworkMode.ALLOWLIST, (f"127.0.0.1:{port}",))


def _began(bench: SandboxBench, policy: NetworkPolicy, *, lockdown: bool = False) -> SandboxSpec:
    return msgspec.structs.replace(bench.spec, network=policy, lockdown=lockdown)


def _able(sandbox: Sandbox) -> Reconnects:
    if not isinstance(sandbox, Reconnects):
        raise CheckSkipped("the network of a sandbox cannot be changed")
    return sandbox


async def _proxies(sandbox: Sandbox) -> str:
    return await sh(sandbox, "env | grep -ci '^https*_proxy='; :")


async def _reached(sandbox: Sandbox, port: int) -> bool:
    return "from the host" in await through_proxy(sandbox, get_request(f"127.0.0.1:{port}"))


@check("network.allowlist", "isolation")
async def _opens_and_closes(bench: SandboxBench) -> None:
    """reconnect: from then on the inside reaches what the policy allows, and nothing else."""
    async with host_server() as server, host_server() as other:
        async with bench.sandbox(_began(bench, _NONE)) as sandbox:
            able = _able(sandbox)
            equal(await _proxies(sandbox), "0", "variables before")
            await able.reconnect(_only(server.port))
            require(await _reached(sandbox, server.port), "an allowed host was not reached")
            require(not await _reached(sandbox, other.port), "another one was reached")
            proxy = await sh(sandbox, "echo $http_proxy")
            await able.reconnect(_NONE)
            equal(await _proxies(sandbox), "0", "variables after")
            request = get_request(f"127.0.0.1:{server.port}").encode()
            port = int(proxy.rpartition(":")[2])
            answer = await connect_inside(sandbox, port, request, half=False)
            require(b"from the host" not in answer.stdout, "the old way out still works")
            direct = await connect_inside(sandbox, server.port)
            equal(direct.exit_code, NOT_CONNECTED, "exit code of a direct connection")
            await able.reconnect(_only(other.port))
            require(await _reached(sandbox, other.port), "the newly allowed host was not reached")
            require(not await _reached(sandbox, server.port), "the old one was reached")
        equal((server.connections, other.connections), (1, 1), "connections that came through")


@check("network.allowlist", "lockdown")
async def _works_in_lockdown(bench: SandboxBench) -> None:
    """reconnect works in a locked-down sandbox as in any."""
    async with host_server() as server:
        async with bench.sandbox(_began(bench, _NONE, lockdown=True)) as sandbox:
            await _able(sandbox).reconnect(_only(server.port))
            require(await _reached(sandbox, server.port), "an allowed host was not reached")


@check("network.allowlist", "isolation")
async def _cuts_connections(bench: SandboxBench) -> None:
    """reconnect: connections that the new policy would not have allowed are cut."""
    connected = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"held")
        connected.set()
        try:
            await _reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with bench.sandbox(_began(bench, _only(port))) as sandbox:
            able = _able(sandbox)
            proxy = int((await sh(sandbox, "echo $http_proxy")).rpartition(":")[2])
            tunnel = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()
            client = asyncio.create_task(connect_inside(sandbox, proxy, tunnel, half=False))
            async with asyncio.timeout(10):
                await connected.wait()
            with within(5, "the end of a connection that is not allowed any more"):
                await able.reconnect(_NONE)
                equal((await client).timed_out, False, "the connection must end, so timed_out")
    finally:
        server.close()


@check("network.open", "network.none", "isolation")
async def _open_is_closed_again(bench: SandboxBench) -> None:
    """reconnect: what began open reaches nothing once it is `none`."""
    address = _own_address()
    async with host_server(address) as server:
        async with bench.sandbox(_began(bench, _OPEN)) as sandbox:
            await _able(sandbox).reconnect(_NONE)
            routes = await sh(sandbox, "cat /proc/net/route")
            equal(routes.splitlines()[1:], [], "routes inside")
            equal(await _proxies(sandbox), "0", "variables")
            direct = await connect_inside(sandbox, server.port, host=address)
            equal(direct.exit_code, NOT_CONNECTED, "exit code of a connection to the host")
            await _able(sandbox).reconnect(_OPEN)
            answer = await through_proxy(sandbox, get_request(f"{address}:{server.port}"))
            require(" 403 " in answer.split("\r\n")[0], f"the host answered: {answer[:100]!r}")
        equal(server.connections, 0, "connections that reached the host")


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            raise CheckSkipped(f"the host has no address but the loopback: {error}") from error
        return probe.getsockname()[0]


@check("network.allowlist", "isolation")
async def _bad_policy_changes_nothing(bench: SandboxBench) -> None:
    """reconnect: a policy that cannot be meant is refused, and the old one holds."""
    async with host_server() as server:
        async with bench.sandbox(_began(bench, _only(server.port))) as sandbox:
            able, bad = _able(sandbox), NetworkPolicy(NetworkMode.ALLOWLIST, ("no host at all",))
            with raises(ConfigError, doing="a policy with a host that is none"):
                await able.reconnect(bad)
            require(await _reached(sandbox, server.port), "the allowed host was not reached")


@check("network.allowlist", "isolation")
async def _squatter_gets_nothing(bench: SandboxBench) -> None:
    """reconnect: who took the proxy's port before inside is not led anybody to."""
    async with host_server() as server:
        async with bench.sandbox(_began(bench, _NONE)) as sandbox:

            async def squat(*_: object) -> None:
                raise ConnectionResetError("nobody is to come here")

            await sandbox.serve_in(3128, squat)
            await _able(sandbox).reconnect(_only(server.port))
            require(await _reached(sandbox, server.port), "an allowed host was not reached")


RECONNECT_CHECKS = (
    _opens_and_closes,
    _works_in_lockdown,
    _cuts_connections,
    _open_is_closed_again,
    _bad_policy_changes_nothing,
    _squatter_gets_nothing,
)
"""Checks of a network that changes."""
