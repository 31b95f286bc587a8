"""How commands, containers and engines end: nothing is ever left."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import gethostname

import pytest

from ramify.contracts.errors import (
    ConfigError,
    SandboxError,
    SandboxStartError,
    UnsupportedError,
)
from ramify.contracts.sandbox import (
    BuildSpec,
    Limits,
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import EngineClient

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

NASTY = {
    "plain": "sleep 600",
    "child of a shell": "sh -c 'sleep 600; true'; true",
    "signals ignored": "trap '' TERM INT HUP; sleep 600; sleep 600",
    "daemon that holds stdout": "setsid sleep 600 & sleep 600",
    "double fork, stdout closed": "(setsid sh -c 'sleep 600 >/dev/null 2>&1 &' &); sleep 600",
    "forks for ever": "while :; do sleep 600 & sleep 0.01; done",
    "stopped": "sh -c 'sleep 600 & kill -STOP $$' & sleep 600",
}
ENGINE = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider

async def main():
    provider = DockerProvider(Path(sys.argv[1]))
    spec = SandboxSpec(image=sys.argv[2])
    box = await provider.create(spec)
    image = await (await provider.create(spec)).freeze()
    await box.exec("setsid sleep 600 & true")
    print(box.id, image.id, flush=True)
    await box.exec("sleep 600")

asyncio.run(main())
"""


async def containers(name: str) -> int:
    client = EngineClient()
    filters = json.dumps({"name": [name]})
    found = await client.call(
        "GET", "/containers/json", "list", query={"all": "1", "filters": filters}
    )
    await client.aclose()
    return len(found)


@pytest.mark.parametrize("command", NASTY.values(), ids=NASTY)
async def test_a_timeout_leaves_no_process(box: Sandbox, command: str) -> None:
    started = time.monotonic()
    result = await box.exec(command, timeout_sec=0.5)
    assert time.monotonic() - started < 8
    assert result.timed_out
    assert result.exit_code == 124
    assert not (await box.exec("pgrep sleep")).ok


async def test_leftovers_of_a_command_that_succeeds_can_be_killed(box: Sandbox) -> None:
    for command in ("setsid sleep 600 &", "(setsid sleep 600 >/dev/null 2>&1 &)"):
        assert (await box.exec(command, kill_leftovers=True)).ok
        assert not (await box.exec("pgrep sleep")).ok


async def test_aclose_of_a_process_kills_what_it_started(box: Sandbox) -> None:
    process = await box.spawn("trap '' TERM; setsid sleep 600 & sleep 600")
    await asyncio.sleep(0.1)
    await process.aclose()
    assert not (await box.exec("pgrep sleep")).ok
    await process.aclose()


async def test_a_cancelled_exec_kills_its_command(box: Sandbox) -> None:
    task = asyncio.create_task(box.exec("setsid sleep 600 & sleep 600"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while (await box.exec("pgrep sleep")).ok:
            continue


async def test_a_cancelled_create_leaves_no_container(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    mark = secrets.token_hex(8)
    spec = SandboxSpec(image=docker_spec.image, labels={"test": mark})
    for delay in (0.0, 0.02, 0.1, 0.3):
        task = asyncio.create_task(docker.create(spec))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().teardown()
    client = EngineClient()
    async with asyncio.timeout(20):
        query = {"all": "1", "filters": json.dumps({"label": [f"test={mark}"]})}
        while await client.call("GET", "/containers/json", "list", query=query):
            continue
    await client.aclose()


async def test_aclose_removes_everything(docker_spec: SandboxSpec, tmp_path: Path) -> None:
    provider = DockerProvider(tmp_path)
    boxes = [await provider.create(docker_spec) for _ in range(3)]
    await boxes[0].exec("setsid sleep 600 &")
    frozen = await boxes[1].freeze()  # type: ignore[attr-defined]
    await provider.aclose()
    await provider.aclose()
    for box in boxes:
        assert await containers(box.id) == 0
    client = EngineClient()
    images = await client.call("GET", "/images/json", "list")
    await client.aclose()
    assert frozen.id not in [image["Id"] for image in images]
    assert list((tmp_path / "engines").iterdir()) == []
    with pytest.raises(ConfigError, match="closed"):
        await provider.create(docker_spec)


async def test_a_killed_engine_leaves_no_container_and_sweep_takes_the_rest(
    docker_spec: SandboxSpec,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
) -> None:
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, str(tmp_path), str(docker_spec.image),
        stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    assert engine.stdout is not None
    name, image = (await engine.stdout.readline()).decode().split()
    assert await containers(name) == 1
    await sweep_home(tmp_path)
    assert await containers(name) == 1, "a live engine's things are not touched"
    engine.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    await engine.wait()
    while await containers(name):
        assert time.monotonic() - killed < 10
        await asyncio.sleep(0.05)
    print(f"gone after {time.monotonic() - killed:.2f} s")
    assert await sweep_home(tmp_path) >= 1
    client = EngineClient()
    assert image not in [i["Id"] for i in await client.call("GET", "/images/json", "list")]
    await client.aclose()
    assert not list((tmp_path / "engines").iterdir())


@pytest.mark.parametrize("engine", ["0123456789ab", "../victim", "victim"])
async def test_labels_of_an_image_name_no_file_of_the_host(
    docker_spec: SandboxSpec,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
    engine: str,
) -> None:
    """Whoever writes a Dockerfile chooses labels; a sweep that believed them would remove files."""
    victim = tmp_path / "victim.lock"
    victim.write_text("kept")
    (tmp_path / "home").mkdir()
    labels = {"ramify.engine": engine, "ramify.lock": str(victim), "ramify.host": gethostname()}
    name = f"ramify-test/hostile-labels:{secrets.token_hex(6)}"
    client = EngineClient()
    lines = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
    (tmp_path / "Dockerfile").write_text("\n".join([f"FROM {docker_spec.image}", *lines]))
    build = await asyncio.create_subprocess_exec(
        "docker", "build", "-q", "-t", name, str(tmp_path), stdout=asyncio.subprocess.DEVNULL
    )
    assert await build.wait() == 0
    try:
        await sweep_home(tmp_path / "home")
        assert victim.read_text() == "kept"
        assert await client.call("GET", f"/images/{name}/json", "show an image")
    finally:
        await client.call("DELETE", f"/images/{name}", "remove", query={"force": "1"})
        await client.aclose()


async def test_what_cannot_be_had_is_refused(docker: DockerProvider) -> None:
    with pytest.raises(UnsupportedError, match="local"):
        await docker.create(SandboxSpec(host_root=True))
    with pytest.raises(ConfigError, match="exactly one"):
        await docker.prepare(SandboxSpec())
    with pytest.raises(ConfigError, match="base-images"):
        await docker.prepare(SandboxSpec(image="ramify-test/no-such-image:1"))
    with pytest.raises(ConfigError, match="no image name"):
        await docker.prepare(SandboxSpec(image="Not An Image"))
    network = NetworkPolicy(NetworkMode.NONE, ("example.org",))
    with pytest.raises(ConfigError, match="allowed_hosts"):
        await docker.create(SandboxSpec(image="x", network=network))
    with pytest.raises(ConfigError, match="context"):
        await docker.prepare(SandboxSpec(build=BuildSpec("/no/such/context")))
    with pytest.raises(UnsupportedError, match="provider"):
        await docker.create(SandboxSpec(image="x"), SandboxImage("1", "local", "1"))
    if "disk_mb" not in docker.capabilities().limits:
        with pytest.raises(UnsupportedError, match="disk"):
            await docker.create(SandboxSpec(image="x", limits=Limits(disk_mb=10)))


async def test_a_daemon_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    provider = DockerProvider(tmp_path)
    report = await provider.probe()
    assert not report.ok
    assert "none.sock" in report.detail
    with pytest.raises(SandboxStartError, match="start Docker"):
        await provider.prepare(SandboxSpec(image="x"))
    await provider.aclose()
    monkeypatch.setenv("DOCKER_HOST", "ftp://x")
    provider = DockerProvider(tmp_path)
    assert "DOCKER_HOST" in (await provider.probe()).detail
    await provider.aclose()


async def test_a_full_process_table_is_an_error_and_no_hang(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    box = await docker.create(SandboxSpec(image=docker_spec.image, limits=Limits(pids=16)))
    bomb = "import os\nwhile 1:\n try: os.fork()\n except OSError: pass"
    process = await box.spawn(["python3", "-c", bomb])
    (tmp_path / "big").write_bytes(bytes(1_000_000))

    async def refused(work: Callable[[], Awaitable[object]]) -> bool:
        try:
            await work()
        except SandboxError:
            return True
        return False

    async with asyncio.timeout(60):
        while (await box.exec("true")).ok:
            continue
        while not await refused(lambda: box.download("/etc", tmp_path / "out")):
            continue
        while not await refused(lambda: box.upload(tmp_path / "big", "/big")):
            continue
        await process.aclose()
        assert (await box.exec("true")).ok
    await box.teardown()
