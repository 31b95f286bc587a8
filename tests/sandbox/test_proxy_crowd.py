"""Hundreds of connections at once out of one sandbox, as package managers open them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from ramify import compose
from ramify.contracts.frozen import Reconnects
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy, SandboxSpec

SPECS = {
    "local": SandboxSpec(host_root=True),
    "docker": SandboxSpec(image="python:3.12-slim"),
}
PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]
SERVED = 256  # as many as the proxy serves at once: the others wait for their turn
CROWD = 400
CLIENT = f"""
import os, socket, sys
host, port = os.environ["http_proxy"].split("/")[2].split(":")
def request(number):
    sock = socket.create_connection((host, int(port)), 60)
    url = b"http://127.0.0.1:%s/%d" % (sys.argv[1].encode(), number)
    sock.sendall(b"GET " + url + b" HTTP/1.1\\r\\n\\r\\n")
    return sock
good = 0
for number, sock in enumerate([request(n) for n in range({CROWD})]):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    head, _, body = data.partition(b"\\r\\n\\r\\n")
    good += head.startswith(b"HTTP/1.1 200") and body == b"%06d" % number
print(good)
"""


@asynccontextmanager
async def registry() -> AsyncGenerator[int]:
    """A stand-in for a package registry on this machine's loopback; its port.

    It answers nobody before as many ask as can be served at once.
    """
    asking, crowded = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        nonlocal asking
        asking += 1
        if asking == SERVED:
            crowded.set()
        await crowded.wait()
        number = int(head.split(b" ")[1].rpartition(b"/")[2])
        body = b"%06d" % number
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_crowd_of_connections_is_served(name: str) -> None:
    provider = compose.sandbox_provider(name)
    try:
        image = await provider.prepare(SPECS[name])
        sandbox = await provider.create(SPECS[name], image)
        try:
            async with registry() as port:
                assert isinstance(sandbox, Reconnects)
                hosts = (f"127.0.0.1:{port}",)
                await sandbox.reconnect(NetworkPolicy(NetworkMode.ALLOWLIST, hosts))
                done = await sandbox.exec(["python3", "-c", CLIENT, str(port)], timeout_sec=100)
        finally:
            await sandbox.teardown()
    finally:
        await provider.aclose()
    assert done.stdout == b"%d\n" % CROWD, done
