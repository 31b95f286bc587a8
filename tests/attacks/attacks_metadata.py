"""Attacks on the metadata service of a cloud, at an address that every machine there has (S13).

The service is ours: its address is put on the loopback of this host while an attack runs, which
takes root. Who gets its answer holds the keys of the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attack_cases import BLOCKED, Attack
from attack_ground import Ground
from attacks_sandbox import new_sandbox, on_host

from ramify.contracts.sandbox import NetworkMode, NetworkPolicy

_ADDRESS = "169.254.169.254"
_WAIT_SEC = 60.0
_PROBE = """python3 - <<'END'
import http.client, os, socket, urllib.request
PATH = "/latest/meta-data/iam/security-credentials/role"
for host in ("169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]"):
    url = f"http://{host}{PATH}"
    for ask in (urllib.request.build_opener(),
                urllib.request.build_opener(urllib.request.ProxyHandler({}))):
        try:
            print(host, ask.open(url, timeout=2).read().decode())
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(host, error)
proxy = os.environ.get("http_proxy", "").removeprefix("http://").strip("/")
if proxy:
    host, _, port = proxy.rpartition(":")
    try:
        link = http.client.HTTPConnection(host, int(port), timeout=2)
        link.set_tunnel("169.254.169.254", 80)
        link.request("GET", PATH)
        print("tunnel", link.getresponse().read().decode())
    except OSError as error:
        print("tunnel", error)
print("tried")
END
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@asynccontextmanager
async def _alone() -> AsyncGenerator[None]:
    """No other test of this machine has the address meanwhile."""
    path = Path(tempfile.gettempdir(), "ramify-tests-metadata.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        async with asyncio.timeout(_WAIT_SEC):
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.1)
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def _service(ground: Ground) -> AsyncGenerator[None]:
    """A service at the address that tells the secret."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2000)
        body = f'{{"SecretAccessKey": "{ground.marker}"}}'
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("an address of the host is root's to give, by the program `ip`")
    async with _alone():
        await asyncio.to_thread(_ip, "addr", "replace", f"{_ADDRESS}/32", "dev", "lo")
        try:
            server = await asyncio.start_server(tell, _ADDRESS, 80)
            try:
                yield
            finally:
                server.close()
                await server.wait_closed()
        finally:
            await asyncio.to_thread(_ip, "addr", "del", f"{_ADDRESS}/32", "dev", "lo")


async def _undefended(ground: Ground) -> bool:
    async with _service(ground):
        return ground.marker in await asyncio.to_thread(on_host, ground, _PROBE)


def _asks(id: str, shows: str, network: NetworkPolicy) -> Attack:
    async def ramify(ground: Ground) -> tuple[str, object]:
        async with _service(ground), new_sandbox(ground, network=network) as sandbox:
            done = await sandbox.exec(_PROBE, user="root", cwd="/app", timeout_sec=60)
        tried = done.stdout.endswith(b"tried\n")
        reached = ground.marker.encode() in done.stdout
        return (BLOCKED if tried and not reached else "reached"), done

    async def honest(ground: Ground) -> float:
        own = _PROBE.replace("169.254.169.254", "127.0.0.1").partition("proxy =")[0] + "END\n"
        serve = (
            "mkdir -p latest/meta-data/iam/security-credentials; "
            "echo mine > latest/meta-data/iam/security-credentials/role; "
            "python3 -m http.server 80 >/dev/null 2>&1 & for i in $(seq 200); do python3 -c "
            "'import socket; socket.create_connection((\"127.0.0.1\", 80))' 2>/dev/null && break; "
            "done; "
        )
        async with new_sandbox(ground, network=network) as sandbox:
            done = await sandbox.exec(serve + own, user="root", cwd="/app", timeout_sec=60)
        return float(b"127.0.0.1 mine" in done.stdout)

    return Attack(id, shows, (BLOCKED,), _undefended, ramify, honest)


ATTACKS: list[Attack] = [
    _asks("S13f", "the cloud's metadata service, from a closed network", NetworkPolicy()),
    _asks("S13g", "the same where some hosts are allowed",
          NetworkPolicy(NetworkMode.ALLOWLIST, ("example.com", "*.example.org"))),
    _asks("S13h", "the same from an open network", NetworkPolicy(NetworkMode.OPEN)),
]  # fmt: skip
