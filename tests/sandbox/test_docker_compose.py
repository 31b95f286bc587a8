"""Compose projects on Docker: several containers, in their order, and nothing left of them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import (
    ComposeSpec,
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxSpec,
)
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import EngineClient, Json

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

SERVER = """
import http.server, sys, time
print("starting", flush=True)
time.sleep(0.5)
open("/shared/order", "a").write("server\\n")
http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)
"""
PROJECT = """
services:
  main:
    image: ${IMAGE}
    command: ["false"]
    working_dir: /srv
    environment: {COLOUR: "${COLOUR:-blue}"}
    hostname: workshop
    depends_on:
      store: {condition: service_healthy}
      prepare: {condition: service_completed_successfully}
    volumes: ["shared:/shared", "./data:/data", "./fixed:/fixed:ro", "./fixed/server.py:/file"]
  prepare:
    image: ${IMAGE}
    command: sh -c "sleep 0.3; echo prepare >> /shared/order"
    volumes: ["shared:/shared"]
  store:
    image: ${IMAGE}
    command: [python3, -u, /fixed/server.py]
    volumes: ["shared:/shared", "./fixed:/fixed:ro"]
    depends_on: {prepare: {condition: service_completed_successfully}}
    healthcheck:
      test: python3 -c "import urllib.request as u; u.urlopen('http://localhost:8000')"
      interval: 20s
      timeout: 5s
    networks: {default: {aliases: [database]}}
    mem_limit: 256m
volumes: {shared: }
"""
GET = (
    'python3 -c "import urllib.request as u; '
    "print(u.urlopen('http://{}:8000', timeout=3).status)\""
)
DIAL = "python3 -c \"import socket; socket.create_connection(('{}', {}), 2)\""
ENGINE = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.sandbox import ComposeSpec, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider

async def main():
    provider = DockerProvider(Path(sys.argv[1]))
    compose = ComposeSpec(sys.argv[2], "main", {"IMAGE": sys.argv[3]})
    box = await provider.create(SandboxSpec(compose=compose))
    print(box.id, flush=True)
    await box.exec("sleep 600")

asyncio.run(main())
"""


def project(folder: Path, image: str | None, text: str = PROJECT) -> SandboxSpec:
    for name in ("data", "fixed"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "server.py").write_text(SERVER)
    if not (folder / "data" / "link").is_symlink():
        (folder / "data" / "link").symlink_to("/etc/hostname")
    (folder / "compose.yaml").write_text(text)
    return SandboxSpec(
        compose=ComposeSpec(str(folder / "compose.yaml"), "main", {"IMAGE": image or ""})
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spec(docker_spec: SandboxSpec, tmp_path_factory: pytest.TempPathFactory) -> SandboxSpec:
    return project(tmp_path_factory.mktemp("project"), docker_spec.image)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(docker: DockerProvider, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
    box = await docker.create(spec)
    yield box
    await box.teardown()


async def left(name: str) -> list[str]:
    """What is on the daemon of a world."""
    client = EngineClient()
    query = {"all": "1", "filters": json.dumps({"name": [name]})}
    try:
        containers = await client.call("GET", "/containers/json", "list", query=query)
        networks = await client.call("GET", "/networks", "list", query=query)
        volumes = await client.call("GET", "/volumes", "list", query=query)
    finally:
        await client.aclose()
    made: list[Json] = volumes["Volumes"] or []
    found = [str(item["Names"][0]) for item in containers]
    return found + [str(item["Name"]) for item in (*networks, *made)]


async def out(box: Sandbox, command: str) -> str:
    result = await box.exec(command, timeout_sec=30)
    assert result.ok, (command, result)
    return result.stdout.decode().strip()


async def test_services_start_in_their_order_and_are_found_by_name(world: Sandbox) -> None:
    assert await out(world, "cat /shared/order") == "prepare\nserver"
    for name in ("store", "database"):
        assert await out(world, GET.format(name)) == "200"
    assert await out(world, "echo $COLOUR; pwd; hostname") == "blue\n/srv\nworkshop"
    assert await out(world, "getent hosts main | wc -l") == "1"


async def test_only_the_project_is_within_reach(world: Sandbox) -> None:
    for address, port in (("1.1.1.1", 53), ("172.17.0.1", 22), ("store", 9)):
        assert not (await world.exec(DIAL.format(address, port), timeout_sec=20)).ok
    gateway = await out(world, "getent hosts store | sed 's/[0-9]* .*/1/'")
    refused = await world.exec(DIAL.format(gateway, 22), timeout_sec=20)
    assert b"refused" not in refused.stderr, "the host must have no address there"
    assert not (await world.exec("getent hosts example.org", timeout_sec=20)).ok


async def test_files_of_the_task_can_be_written_inside_alone(
    world: Sandbox, spec: SandboxSpec
) -> None:
    assert spec.compose is not None
    before = (Path(spec.compose.file).parent / "data" / "server.py").read_text()
    await out(world, "rm /data/server.py; echo mine > /data/mine; ls -l /data/link")
    folder = Path(spec.compose.file).parent / "data"
    assert sorted(path.name for path in folder.iterdir()) == ["link", "server.py"]
    assert (folder / "server.py").read_text() == before
    for path in ("/file", "/fixed/server.py"):
        assert not (await world.exec(f"echo x >> {path}")).ok


REACH = """
import os, socket
out = [f"links {len(os.listdir('/sys/class/net'))}", socket.gethostname()]
for address in ("172.17.0.1", "store"):
    try:
        socket.create_connection((address, 8000), 3)
        out.append("connected")
    except OSError as error:
        out.append(str(error.strerror or error))
open("/shared/reach", "w").write(", ".join(out))
"""
SPY = """
  spy:
    image: ${IMAGE}
    command: [python3, /data/reach.py]
    hostname: outpost
    volumes: ["shared:/shared", "./data:/data"]
    depends_on: {store: {condition: service_healthy}}
volumes:"""


@pytest.mark.parametrize("mode", [NetworkMode.ALLOWLIST, NetworkMode.OPEN])
async def test_with_a_way_out_the_services_stay_in_reach(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path, mode: NetworkMode
) -> None:
    text = PROJECT.replace("\nvolumes:", SPY).replace(
        "prepare: {condition",
        "spy: {condition: service_completed_successfully}\n      prepare: {condition",
        1,
    )
    spec = project(tmp_path, docker_spec.image, text)
    (tmp_path / "data" / "reach.py").write_text(REACH)
    box = await docker.create(msgspec.structs.replace(spec, network=NetworkPolicy(mode)))
    assert await out(box, GET.format("store")) == "200"
    refused = await box.exec(DIAL.format("172.17.0.1", 9), timeout_sec=20)
    links, host, bridge, peer = (await out(box, "cat /shared/reach")).split(", ")
    assert (host, peer) == ("outpost", "connected")
    if mode is NetworkMode.OPEN:
        # Without the policies, the host's address would say "refused".
        assert b"not permitted" in refused.stderr
        assert (links, bridge) == ("links 3", "Operation not permitted")
    else:
        assert not refused.ok
        assert links == "links 2"
        assert bridge != "connected"
    await box.teardown()


async def test_a_frozen_container_comes_back_among_the_same_services(
    docker: DockerProvider, spec: SandboxSpec
) -> None:
    box = await docker.create(spec)
    await out(box, "echo work > /srv/work; echo agent >> /shared/order; sleep 600 & true")
    assert isinstance(box, Freezable)
    image = await box.freeze()
    locked = msgspec.structs.replace(spec, lockdown=True)
    judge = await docker.create(locked, image)
    assert await out(judge, "cat /srv/work /shared/order") == "work\nprepare\nserver\nagent"
    assert await out(judge, GET.format("store")) == "200"
    assert not (await judge.exec("pgrep sleep")).ok
    with pytest.raises(UnsupportedError, match="one after the other"):
        await docker.create(locked, image)
    await judge.teardown()
    again = await docker.create(locked, image)
    assert await out(again, "cat /srv/work") == "work"
    await again.teardown()
    assert await left(box.id), "the services stay until the image is discarded"
    await docker.discard(image)
    assert await left(box.id) == []


async def test_a_fresh_one_has_services_of_its_own(
    docker: DockerProvider, spec: SandboxSpec, world: Sandbox
) -> None:
    fresh = await docker.create(spec, await docker.prepare(spec))
    await out(fresh, "echo mine >> /shared/order")
    assert "mine" not in await out(world, "cat /shared/order")
    await fresh.teardown()


SICK = {
    "unhealthy": ("sh -c 'echo the disk is on fire >&2; sleep 600'", "not healthy within 2 s"),
    "ended": ("sh -c 'echo the disk is on fire; exit 3'", "exit code 3"),
}


@pytest.mark.parametrize(("command", "what"), SICK.values(), ids=SICK)
async def test_a_service_that_is_not_well_is_named_with_its_log(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path, command: str, what: str
) -> None:
    text = f"""
services:
  main: {{image: "${{IMAGE}}", depends_on: {{sick: {{condition: service_healthy}}}}}}
  well: {{image: "${{IMAGE}}", command: sleep 600}}
  sick:
    image: ${{IMAGE}}
    command: {command}
    healthcheck: {{test: "false", interval: 1s, timeout: 1s, retries: 1}}
"""
    with pytest.raises(EnvironmentFailed, match=what) as caught:
        await docker.create(
            msgspec.structs.replace(
                project(tmp_path, docker_spec.image, text), labels={"test": str(tmp_path)}
            )
        )
    assert "'sick'" in str(caught.value)
    assert "the disk is on fire" in str(caught.value)
    assert await labelled(str(tmp_path)) == 0


async def test_a_command_that_is_not_there_and_a_health_nobody_checks(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    text = "services:\n  main: {image: '${IMAGE}', depends_on: {a: {condition: service_healthy}}}\n"
    with pytest.raises(ConfigError, match="no healthcheck"):
        await docker.create(project(tmp_path, docker_spec.image, text + "  a: {image: '${IMAGE}'}"))
    broken = "services:\n  main: {image: '${IMAGE}'}\n  a: {image: '${IMAGE}', command: [nonsense]}"
    with pytest.raises(EnvironmentFailed, match="nonsense"):
        await docker.create(project(tmp_path, docker_spec.image, broken))


async def test_a_cancelled_start_leaves_nothing(docker: DockerProvider, spec: SandboxSpec) -> None:
    mark = secrets.token_hex(8)
    marked = msgspec.structs.replace(spec, labels={"test": mark})
    for delay in (0.1, 0.5, 1.2):
        task = asyncio.create_task(docker.create(marked))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().teardown()
    async with asyncio.timeout(20):
        while await labelled(mark):
            continue


def children(pid: int) -> list[int]:
    """Of every thread: whichever started it."""
    found = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for text in found for word in text.split()]


async def labelled(value: str) -> int:
    client = EngineClient()
    query = {"all": "1", "filters": json.dumps({"label": [f"test={value}"]})}
    try:
        found = [
            await client.call("GET", path, "list", query=query)
            for path in ("/containers/json", "/networks")
        ]
        volumes = await client.call("GET", "/volumes", "list", query=query)
    finally:
        await client.aclose()
    return sum(map(len, found)) + len(volumes["Volumes"] or [])


async def test_a_killed_engine_leaves_nothing(
    spec: SandboxSpec,
    docker_spec: SandboxSpec,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
) -> None:
    assert spec.compose is not None
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, str(tmp_path), spec.compose.file, str(docker_spec.image),
        stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    assert engine.stdout is not None
    name = (await engine.stdout.readline()).decode().strip()
    assert len(await left(name)) == 6
    await sweep_home(tmp_path)
    assert len(await left(name)) == 6, "a live engine's things are not touched"
    engine.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    await engine.wait()
    while await left(name):
        assert time.monotonic() - killed < 10
        await asyncio.sleep(0.05)
    print(f"gone after {time.monotonic() - killed:.2f} s")


async def test_sweep_takes_what_the_watchdog_could_not(
    spec: SandboxSpec,
    docker_spec: SandboxSpec,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
) -> None:
    assert spec.compose is not None
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, str(tmp_path), spec.compose.file, str(docker_spec.image),
        stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    assert engine.stdout is not None
    name = (await engine.stdout.readline()).decode().strip()
    for child in children(engine.pid):
        os.kill(child, signal.SIGKILL)
    engine.send_signal(signal.SIGKILL)
    await engine.wait()
    assert await left(name)
    assert await sweep_home(tmp_path) >= 3
    assert await left(name) == []
