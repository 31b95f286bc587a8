"""Package mirrors with private addresses: the operator names them, and no task can."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider
from ramify.planes.sandbox.mirrors import mirror_addresses, with_mirrors

OPEN = NetworkPolicy(NetworkMode.OPEN)
FETCH = "exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT {} HTTP/1.1\\r\\n\\r\\n' >&3; head -1 <&3"


def test_only_open_sandboxes_get_mirrors() -> None:
    environ = {"RAMIFY_MIRRORS": "mirror.corp:443, mirror.corp:80,"}
    assert with_mirrors(OPEN, environ).allowed_hosts == ("mirror.corp:443", "mirror.corp:80")
    assert with_mirrors(OPEN, {}) == OPEN
    for mode in (NetworkMode.NONE, NetworkMode.ALLOWLIST):
        policy = NetworkPolicy(mode, ("a.org",) if mode is NetworkMode.ALLOWLIST else ())
        assert with_mirrors(policy, environ) == policy


async def test_addresses_of_mirrors() -> None:
    named = {"RAMIFY_MIRRORS": "127.0.0.1:81, no-such-host.invalid:80, 127.0.0.1:82,127.0.0.1:81"}
    assert await mirror_addresses(named) == ("127.0.0.1:81", "127.0.0.1:82")
    assert await mirror_addresses({}) == ()
    with pytest.raises(ConfigError, match="RAMIFY_MIRRORS: 'a.org' is not a host and port"):
        await mirror_addresses({"RAMIFY_MIRRORS": "a.org"})


@pytest.mark.docker
async def test_a_container_reaches_a_mirror_and_nothing_else_that_is_private(
    monkeypatch: pytest.MonkeyPatch, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here\n")
        writer.close()

    address = _address_of_the_host()
    servers = [await asyncio.start_server(serve, address, 0) for _ in range(2)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    monkeypatch.setenv("RAMIFY_MIRRORS", f"{address}:{ports[0]}")
    docker = DockerProvider(tmp_path)
    try:
        box = await docker.create(SandboxSpec(image=docker_spec.image, network=OPEN))
        script = "timeout 5 bash -c 'head -1 </dev/tcp/{}/{}' 2>&1"
        said = [(await box.exec(script.format(address, port))).stdout for port in ports]
        assert said[0] == b"here\n"
        assert b"here" not in said[1]
    finally:
        await docker.aclose()
        for server in servers:
            server.close()


def _address_of_the_host() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            pytest.skip(f"the host has no address but the loopback: {error}")
        return probe.getsockname()[0]


@pytest.mark.namespaces
async def test_an_open_sandbox_reaches_a_mirror_and_nothing_else_that_is_private(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    mirror = await asyncio.start_server(serve, "127.0.0.1", 0)
    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    ports = [server.sockets[0].getsockname()[1] for server in (mirror, other)]
    monkeypatch.setenv("RAMIFY_MIRRORS", f"127.0.0.1:{ports[0]}")
    local = LocalProvider()
    try:
        box = await local.create(SandboxSpec(host_root=True, network=OPEN))
        said = [
            (await box.exec(["bash", "-c", FETCH.format(f"127.0.0.1:{port}")])).stdout.split()[1]
            for port in ports
        ]
        assert said == [b"200", b"403"]
        monkeypatch.setenv("RAMIFY_MIRRORS", "not a host")
        with pytest.raises(ConfigError, match="is not a host"):
            await local.create(SandboxSpec(host_root=True, network=OPEN))
    finally:
        await local.aclose()
        mirror.close()
        other.close()
