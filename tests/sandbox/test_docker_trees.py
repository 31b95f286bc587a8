"""Trees in and out of a container, and connections through it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest

from ramify.contracts.errors import SandboxError, TransferLimitError
from ramify.contracts.sandbox import (
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxSpec,
    TransferLimits,
)
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.planes.sandbox.docker import DockerProvider

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


async def test_a_tree_goes_in_and_comes_back(box: Sandbox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub/empty").mkdir(parents=True)
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "sub/data").write_bytes(os.urandom(3_000_000))
    (tree / "link").symlink_to("sub/data")
    await box.upload(tree, "/opt/a/b", owner="nobody")
    seen = await box.exec("./run.sh; readlink link; stat -c '%U %a' run.sh sub", cwd="/opt/a/b")
    assert seen.stdout == b"ran\nsub/data\nnobody 755\nnobody 755\n"
    report = await box.download("/opt/a/b", tmp_path / "back")
    assert (tmp_path / "back/sub/data").read_bytes() == (tree / "sub/data").read_bytes()
    assert (report.files, report.dropped_count) == (2, 1)
    assert not (tmp_path / "back/link").is_symlink()

    (tmp_path / "one").write_text("1")
    await box.upload(tmp_path / "one", "/opt/one", mode=0o600)
    assert (await box.exec("stat -c %a /opt/one; cat /opt/one")).stdout == b"600\n1"
    await box.upload(tree / "sub", "/opt/a/b", clear=True)
    assert (await box.exec("ls /opt/a/b")).stdout == b"data\nempty\n"
    await box.download("/opt/one", tmp_path / "one.back")
    assert (tmp_path / "one.back").read_text() == "1"


async def test_what_cannot_cross_is_refused(box: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await box.download("/no/such/thing", tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        await box.upload(tmp_path / "nothing", "/opt/x")
    with pytest.raises(ValueError, match="absolute"):
        await box.download("etc", tmp_path / "x")
    (tmp_path / "f").write_text("f")
    with pytest.raises(SandboxError, match="nobody-knows"):
        await box.upload(tmp_path / "f", "/opt/x", owner="nobody-knows-me")
    with pytest.raises(SandboxError):
        await box.upload(tmp_path / "f", "/etc")
    await box.exec("mkdir -p /big; head -c 100000 /dev/zero > /big/f")
    with pytest.raises(TransferLimitError):
        await box.download("/big", tmp_path / "y", limits=TransferLimits(max_bytes=1000))


async def test_a_hostile_tree_stays_in_its_place(box: Sandbox, tmp_path: Path) -> None:
    await box.exec(
        "mkdir -p /evil/d; cd /evil; ln -s /etc/passwd l; ln -s / root; ln -s ../.. up;"
        "mkfifo pipe; echo x > f; ln f hard; chmod 4755 f; mknod dev c 1 3;"
        "ln -s /proc/1/mem mem; touch '../../../../tmp/e'; echo y > 'd/a\nb'"
    )
    async with asyncio.timeout(30):
        report = await box.download(
            "/evil", tmp_path / "out", limits=TransferLimits(links="inside")
        )
    out = tmp_path / "out"
    names = {path.name for path in out.rglob("*")}
    assert {"f", "hard", "d", "a\nb"} <= names
    assert not names & {"l", "root", "up", "pipe", "dev", "mem"}
    assert (out / "f").stat().st_mode & 0o7000 == 0
    assert (out / "f").stat().st_ino != (out / "hard").stat().st_ino
    assert report.dropped_count >= 5
    with pytest.raises(FileNotFoundError):
        await box.download("/evil/l", tmp_path / "passwd")
    with pytest.raises(FileNotFoundError):
        await box.download("/evil/root/etc", tmp_path / "etc")


async def test_a_port_inside_is_reached(box: Sandbox) -> None:
    server = await box.spawn("cd /usr/bin && exec python3 -m http.server 8099 --bind 127.0.0.1")
    endpoint = await box.expose_port(8099)
    url = f"http://{endpoint.host}:{endpoint.port}/perl"
    size = int((await box.exec("stat -Lc %s /usr/bin/perl")).stdout)
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        while True:
            try:
                async with http.get(url) as answer:
                    assert len(await answer.read()) == size
                    break
            except aiohttp.ClientError:  # it is not listening yet: the connection is closed
                await asyncio.sleep(0.05)
    await server.aclose()
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_our_listener_inside_serves_commands(box: Sandbox) -> None:
    async def shout(reader: ByteReader, writer: ByteWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    listener = await box.serve_in(0, shout)
    client = (
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
        "s.sendall(b'a' * 1000000 + b'b'); s.shutdown(1); n = 0; last = b''\n"
        "while d := s.recv(65536): n += len(d); last = d\n"
        "print(n, last[-1:])"
    )
    result = await box.exec(["python3", "-c", client, str(listener.port)], timeout_sec=30)
    assert result.stdout == b"1000001 b'B'\n", result
    with pytest.raises(SandboxError, match="in use"):
        await box.serve_in(listener.port, shout)
    await listener.aclose()
    result = await box.exec(["python3", "-c", client, str(listener.port)], timeout_sec=30)
    assert b"refused" in result.stderr
    again = await box.serve_in(listener.port, shout)
    await again.aclose()


async def test_without_network_nothing_is_reached(box: Sandbox) -> None:
    script = "import socket; socket.create_connection(('1.1.1.1', 80), 3)"
    result = await box.exec(["python3", "-c", script], timeout_sec=10)
    assert b"unreachable" in result.stderr
    assert (await box.exec("ls /sys/class/net")).stdout == b"lo\n"


async def test_only_allowed_hosts_are_reached(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    policy = NetworkPolicy(NetworkMode.ALLOWLIST, (f"127.0.0.1:{port}",))
    box = await docker.create(SandboxSpec(image=docker_spec.image, network=policy))
    script = (
        "import os, sys, urllib.request as u\n"
        "u.install_opener(u.build_opener(u.ProxyHandler({'http': os.environ['http_proxy']})))\n"
        "os.environ['no_proxy'] = ''\n"
        "print(u.urlopen(sys.argv[1], timeout=10).read())"
    )
    allowed = await box.exec(["python3", "-c", script, f"http://127.0.0.1:{port}/"])
    assert allowed.stdout == b"b'hello'\n", allowed.stderr
    denied = await box.exec(["python3", "-c", script, "http://127.0.0.1:1/"])
    assert b"403" in denied.stderr
    await box.teardown()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("lockdown", [False, True])
async def test_an_open_network_ends_before_private_addresses(
    docker: DockerProvider, docker_spec: SandboxSpec, lockdown: bool
) -> None:
    """The host's end of the bridge answers the container's packets, but none is let out to it."""
    network = NetworkPolicy(NetworkMode.OPEN)
    spec = SandboxSpec(image=docker_spec.image, network=network, lockdown=lockdown)
    box, other = await docker.create(spec), await docker.create(spec)
    script = (
        "import socket, struct\n"
        "rows = [l.split() for l in open('/proc/net/route')][1:]\n"
        "gate = next(r[2] for r in rows if r[1] == '00000000')\n"
        "gate = socket.inet_ntoa(struct.pack('<I', int(gate, 16)))\n"
        "own = socket.gethostbyname(socket.gethostname())\n"
        "for host, dev in ((gate, b''), (gate, b'eth0'), ('169.254.169.254', b''),"
        " ('192.168.1.1', b''), ('127.0.0.1', b''), (own, b'')):\n"
        "    s = socket.socket(); s.settimeout(5); s.setsockopt(1, 25, dev)\n"
        "    try: s.connect((host, 9))\n"
        "    except OSError as error: print(error.errno)\n"
        "print(own)"
    )
    result = await box.exec(["python3", "-c", script], timeout_sec=40)
    *errors, own = result.stdout.split()
    assert errors == [b"1"] * 4 + [b"111"] * 2, result
    reach = f"import socket; socket.create_connection(('{own.decode()}', 9), 5)"
    assert b"not permitted" in (await other.exec(["python3", "-c", reach])).stderr
    status = (await box.exec("grep Cap /proc/self/status")).stdout.decode()
    for line in status.splitlines():
        assert not int(line.split()[1], 16) & (1 << 12 | 1 << 13), status
    for one in (box, other):
        await one.teardown()
