"""Package mirrors with private addresses: the operator names them, and no task can."""

from __future__ import annotations

import asyncio

import pytest

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy, SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.planes.sandbox.mirrors import with_mirrors

OPEN = NetworkPolicy(NetworkMode.OPEN)
FETCH = "exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT {} HTTP/1.1\\r\\n\\r\\n' >&3; head -1 <&3"


def test_only_open_sandboxes_get_mirrors() -> None:
    environ = {"RAMIFY_MIRRORS": "mirror.corp:443, mirror.corp:80,"}
    assert with_mirrors(OPEN, environ).allowed_hosts == ("mirror.corp:443", "mirror.corp:80")
    assert with_mirrors(OPEN, {}) == OPEN
    for mode in (NetworkMode.NONE, NetworkMode.ALLOWLIST):
        policy = NetworkPolicy(mode, ("a.org",) if mode is NetworkMode.ALLOWLIST else ())
        assert with_mirrors(policy, environ) == policy


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
