"""Mounts of the caller beyond the conformance suite: other modes, limits, killed engines."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from without_root import run_without_root

from ramify.contracts.errors import ConfigError, SandboxStartError, UnsupportedError
from ramify.contracts.sandbox import ComposeSpec, Limits, Mount, NetworkPolicy, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import Daemon, EngineClient
from ramify.planes.sandbox.docker.mounted import offered
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck

MOUNT_CHECKS = [one for one in SANDBOX_CHECKS if one.name.startswith("mounts.")]
AT = "/srv/given"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def cow(place: Path) -> Mount:
    """A copy-on-write mount of a small tree; changes go to `place/scratch`."""
    for name in ("source", "scratch"):
        (place / name).mkdir(parents=True)
    (place / "source" / "file").write_text("original")
    return Mount(str(place / "source"), AT, "cow", str(place / "scratch"))


@as_root
@pytest.mark.namespaces
@pytest.mark.parametrize("check", MOUNT_CHECKS, ids=lambda check: check.name)
async def test_mounts_without_a_user_namespace(check: SandboxCheck, tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "home", mode="plain")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    try:
        await provider.probe()
        await check.run(SandboxBench(provider, SandboxSpec(host_root=True), scratch))
    finally:
        await provider.aclose()


ROOTLESS = """
import asyncio, sys, unittest
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench

async def main():
    place = Path(sys.argv[1])
    provider = LocalProvider(place / "local")
    print("mode", (await provider.probe()).mode)
    for check in SANDBOX_CHECKS:
        if check.name.startswith(("mounts.", "reconnect.")):
            scratch = place / check.name
            scratch.mkdir()
            try:
                await check.run(SandboxBench(provider, SandboxSpec(host_root=True), scratch))
            except unittest.SkipTest as skipped:
                print("skipped", skipped)
    await provider.aclose()
    print("all")

asyncio.run(main())
"""


@as_root
@pytest.mark.namespaces
async def test_mounts_and_networks_without_root(tmp_path: Path) -> None:
    home = Path("/var/tmp") / f"ramify-mounts-{os.getpid()}"
    home.mkdir()
    try:
        rows, errors = await run_without_root(ROOTLESS, home, tmp_path)
    finally:
        shutil.rmtree(home)
    if rows[:1] == ["mode none"]:
        pytest.skip("namespaces are forbidden for other users here")
    assert rows[-1:] == ["all"], errors
    assert {row for row in rows if row.startswith("skipped")} <= {
        "skipped there are no other users inside"
    }


@pytest.mark.namespaces
async def test_a_disk_limit_counts_what_goes_into_a_mount(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "home")
    spec = SandboxSpec(host_root=True, mounts=(cow(tmp_path),), limits=Limits(disk_mb=4))
    try:
        box = await provider.create(spec)
        flood = f"for n in 1 2 3 4 5 6; do head -c 3000000 /dev/zero > {AT}/$n; sleep 0.7; done"
        result = await box.exec(flood, timeout_sec=30)
        assert result.exit_code == 137
        assert b"more disk" in result.stderr
    finally:
        await provider.aclose()


@pytest.mark.namespaces
async def test_a_sandbox_that_cannot_be_built_leaves_the_scratch_empty(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "home")
    # A file is in the way of the second target.
    more = Mount(str(tmp_path), f"{AT}/file/below")
    try:
        with pytest.raises(SandboxStartError, match="there is no directory /srv/given/file/below"):
            await provider.create(SandboxSpec(host_root=True, mounts=(cow(tmp_path), more)))
        assert os.listdir(tmp_path / "scratch") == []
    finally:
        await provider.aclose()


@as_root
@pytest.mark.namespaces
async def test_a_scratch_on_an_overlay_is_refused_with_the_remedy(tmp_path: Path) -> None:
    names = ("lower", "upper", "work", "merged")
    for name in names:
        (tmp_path / name).mkdir()
    options = ",".join(f"{name}dir={tmp_path / name}" for name in names[:3])
    script = (
        f"mount -t overlay overlay -o {options} {tmp_path}/merged && exec {sys.executable} - <<X"
        "\nfrom ramify.contracts.sandbox import Mount, SandboxSpec"
        "\nfrom ramify.planes.sandbox.mounting import check_mounts"
        "\nimport os"
        f"\nos.makedirs('{tmp_path}/merged/s'); os.makedirs('{tmp_path}/merged/in')"
        f"\nmount = Mount('{tmp_path}/merged/in', '/x', 'cow', '{tmp_path}/merged/s')"
        "\ntry: check_mounts(SandboxSpec(mounts=(mount,)), frozenset({'cow'}), 'local')"
        "\nexcept Exception as error: print(type(error).__name__, error)\nX\n"
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", script), stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    assert said.startswith("ConfigError")
    assert "lies on an overlay file system" in said
    assert "volume or a tmpfs" in said


@pytest.mark.namespaces
async def test_a_live_sandbox_takes_no_mounts(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "home")
    try:
        with pytest.raises(UnsupportedError, match="a live sandbox takes no mounts"):
            await provider.create(SandboxSpec(host_root=True, live=True, mounts=(cow(tmp_path),)))
    finally:
        await provider.aclose()


ENGINE = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.sandbox import Mount, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

async def main(kind, place, image):
    place = Path(place)
    mount = Mount(str(place / "source"), "/srv/given", "cow", str(place / "scratch"))
    made = LocalProvider if kind == "local" else DockerProvider
    root = {"host_root": True} if kind == "local" else {"image": image}
    box = await made(place / "home").create(SandboxSpec(mounts=(mount,), **root))
    await box.exec("echo new > /srv/given/new; setsid sleep 600 >/dev/null 2>&1 &")
    print(box.id, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def killed_engine(kind: str, place: Path, image: str = "") -> str:
    """Start an engine with a sandbox that has a mount, and kill it; the sandbox's id."""
    cow(place)
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, kind, str(place), image, stdout=asyncio.subprocess.PIPE
    )
    assert engine.stdout is not None
    name = (await engine.stdout.readline()).decode().strip()
    assert name, "the engine did not start"
    assert seen_in(place / "scratch"), "something must be mounted while it runs"
    engine.send_signal(signal.SIGKILL)
    await engine.wait()
    return name


def seen_in(place: Path) -> list[str]:
    """Processes that have something mounted which names a place of the host."""
    found: list[str] = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lines = table.read_text()
        except OSError:  # it ended meanwhile
            continue
        if f"{place.parent.name}/" in lines:
            found.append(table.parent.name)
    return found


@pytest.mark.namespaces
async def test_a_killed_engine_leaves_nothing_mounted_on_local(tmp_path: Path) -> None:
    await killed_engine("local", tmp_path)
    died = time.monotonic()
    while seen_in(tmp_path / "scratch"):
        assert time.monotonic() - died < 10
        await asyncio.sleep(0.02)
    print(f"gone after {time.monotonic() - died:.2f} s")
    while os.listdir(tmp_path / "scratch") != ["upper"]:
        assert time.monotonic() - died < 10
        await asyncio.sleep(0.02)
    assert (tmp_path / "scratch" / "upper" / "new").read_text() == "new\n"
    assert (tmp_path / "source" / "file").read_text() == "original"


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_engine_leaves_no_overlay_on_docker(
    docker_spec: SandboxSpec,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
) -> None:
    name = await killed_engine("docker", tmp_path, str(docker_spec.image))
    died = time.monotonic()
    client = EngineClient()
    try:
        while any(v["Name"].startswith(name) for v in await volumes(client)):
            assert time.monotonic() - died < 15
            await asyncio.sleep(0.05)
        print(f"gone after {time.monotonic() - died:.2f} s")
        await sweep_home(tmp_path / "home")
        assert not seen_in(tmp_path / "scratch")
    finally:
        await client.aclose()


async def volumes(client: EngineClient) -> list[dict[str, str]]:
    found = await client.call("GET", "/volumes", "list volumes")
    return found["Volumes"] or []


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
async def test_no_volume_is_left_after_a_container_that_cannot_start(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    mount = cow(tmp_path)
    file = Mount(str(tmp_path), "/etc/passwd/below")
    with pytest.raises(SandboxStartError):
        await docker.create(SandboxSpec(image=docker_spec.image, mounts=(mount, file)))
    client = EngineClient()
    try:
        assert str(tmp_path) not in str(await volumes(client))
    finally:
        await client.aclose()
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
async def test_what_docker_refuses(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    given = (Mount(str(tmp_path), AT),)
    compose = SandboxSpec(compose=ComposeSpec("/none.yaml"), mounts=given)
    with pytest.raises(UnsupportedError, match="Compose project takes no mounts"):
        await docker.create(compose)
    box = await docker.create(SandboxSpec(image=docker_spec.image, mounts=given))
    try:
        hand_over = box.hand_over  # type: ignore[attr-defined]  # of docker's sandboxes
        with pytest.raises(UnsupportedError, match="keeps its mounts"):
            await hand_over(SandboxSpec(image=docker_spec.image, lockdown=True))
        with pytest.raises(ConfigError, match="allowed_hosts"):
            await box.reconnect(NetworkPolicy(allowed_hosts=("a.org",)))  # type: ignore[attr-defined]
        assert (await box.exec(f"ls {AT}")).ok
    finally:
        await box.teardown()


def test_only_a_daemon_of_this_machine_makes_mounts() -> None:
    def daemon(**info: object) -> Daemon:
        return Daemon("1.41", "20.10", "linux", "amd64", dict(info))

    here, unix = os.uname().nodename, "unix:///run/docker.sock"
    assert offered(daemon(Name=here), unix) == {"ro", "rw", "cow"}
    assert offered(daemon(Name=here), "tcp://127.0.0.1:2375") == frozenset()
    assert offered(daemon(Name="docker-desktop"), unix) == {"ro", "rw"}
    rootless = daemon(Name=here, SecurityOptions=["name=seccomp", "name=rootless"])
    assert offered(rootless, unix) == {"ro", "rw"}
