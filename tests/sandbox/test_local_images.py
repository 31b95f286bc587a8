"""Images that Docker built, run by the local sandbox: taken over once, then without a daemon."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from pathlib import Path

import pytest
from engine_relay import engine_relay

from ramify.contracts.errors import ConfigError, SandboxError
from ramify.contracts.sandbox import BuildSpec, Healthcheck, Sandbox, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import EngineClient
from ramify.planes.sandbox.docker.images import remove_image
from ramify.planes.sandbox.layer_names import named_images
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.docker, pytest.mark.namespaces]

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")
NOWHERE = "unix:///nowhere/docker.sock"
DOCKERFILE = f"""
FROM {IMAGE}
RUN mkdir -p /data/old && echo low > /data/gone && echo low > /data/old/file && \
    echo low > /data/kept && useradd -u 4321 -m worker && echo x > /data/owned && \
    chown 4321:65535 /data/owned && ln /data/owned /data/linked && chmod 4755 /data/kept
RUN rm /data/gone && rm -r /data/old && mkdir /data/old && echo high > /data/old/new
ENV GREETING="hello world" PATH=/opt/tool:/usr/bin:/bin
WORKDIR /srv/work
USER worker
HEALTHCHECK --interval=7s --retries=2 CMD test -e /tmp/up
ENTRYPOINT ["/bin/echo", "entry"]
CMD ["one", "two"]
"""
LOOK = (
    "id; pwd; echo $GREETING; echo $PATH; echo $HOME; find /data -printf '%p %M %U:%G %n %l\\n' |"
    " sort; cat /data/old/* /data/kept; touch ~/made && stat -c '%u:%g %a' ~/made"
)


def context(at: Path, dockerfile: str, **files: bytes) -> SandboxSpec:
    at.mkdir(parents=True)
    (at / "Dockerfile").write_text(dockerfile)
    for name, data in files.items():
        (at / name).write_bytes(data)
    return SandboxSpec(build=BuildSpec(str(at)))


async def look(sandbox: Sandbox) -> str:
    result = await sandbox.exec(LOOK)
    assert result.ok, result
    return result.stdout.decode()


@pytest.fixture
def small(tmp_path: Path) -> SandboxSpec:
    """An image of a few MB that no other test has."""
    return context(
        tmp_path / "small", "FROM scratch\nCOPY blob /blob\n", blob=secrets.token_bytes(12_000_000)
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def layers(home: Path) -> list[str]:
    return sorted(os.listdir(home / "store" / "layers"))


async def forget(spec: SandboxSpec) -> None:
    """Remove what Docker built for a test."""
    docker = DockerProvider()
    try:
        image = await docker.prepare(spec)
    finally:
        await docker.aclose()
    client = EngineClient()
    try:
        await remove_image(client, image.id)
    finally:
        await client.aclose()


async def test_what_docker_built_runs_the_same_without_docker(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, whiteouts, owners, environment, user and work directory are those of the image."""
    spec = context(tmp_path / "task", DOCKERFILE)
    docker, local = DockerProvider(), LocalProvider(home)
    try:
        built = await docker.prepare(spec)
        expected = await look(await docker.create(spec))
        image = await local.prepare(spec)
    finally:
        await docker.aclose()
        await local.aclose()
    assert "uid=4321(worker)" in expected
    assert "/srv/work" in expected
    assert "/data/gone" not in expected
    assert "4321:65535" in expected
    config = ("entrypoint", "cmd", "healthcheck", "env", "user", "workdir")
    assert [getattr(image, name) for name in config] == [getattr(built, name) for name in config]
    assert image.cmd == ("one", "two")
    assert image.healthcheck == Healthcheck(("CMD-SHELL", "test -e /tmp/up"), 7.0, retries=2)

    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    later = LocalProvider(home)
    try:
        assert await later.prepare(spec) == image
        sandbox = await later.create(spec)
        assert await look(sandbox) == expected
        hosts = await sandbox.exec(
            "cat /etc/hosts /etc/hostname; test ! -e /usr/ramify", user="root"
        )
        assert b"127.0.0.1 localhost" in hosts.stdout
        assert not (await sandbox.exec(["test", "-e", sys.base_prefix + "/bin/python3"])).ok or (
            sys.base_prefix == "/usr"
        )
    finally:
        await later.aclose()
        await forget_later(spec, monkeypatch)


async def forget_later(spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    await forget(spec)


async def test_tasks_with_the_same_base_share_its_layers(tmp_path: Path, home: Path) -> None:
    base = f"FROM {IMAGE}\n"
    specs = [
        context(tmp_path / name, f"{base}RUN echo {name} > /name\n") for name in ("one", "two")
    ]
    local = LocalProvider(home)
    try:
        images = [await local.prepare(spec) for spec in specs]
        sandboxes = [await local.create(spec) for spec in specs]
        said = [(await box.exec("cat /name")).stdout for box in sandboxes]
    finally:
        await local.aclose()
    assert images[0] != images[1]
    assert said == [b"one\n", b"two\n"]
    stored = named_images(home / "store")
    assert [image.layers for image in stored] == [2, 2]
    assert len(layers(home)) == 3
    for spec in specs:
        await forget(spec)


async def test_an_image_is_imported_once(
    small: SandboxSpec, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight tasks of two engines ask for it at the same moment."""
    async with engine_relay(tmp_path / "relay") as relay:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/relay")
        engines = [LocalProvider(home), LocalProvider(home)]
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(engines[n % 2].prepare(small)) for n in range(8)]
            assert len({task.result().id for task in asked}) == 1
            assert relay.exports == 1
        finally:
            for engine in engines:
                await engine.aclose()
    await forget_later(small, monkeypatch)


async def test_without_a_daemon_and_an_import_the_remedy_is_told(
    small: SandboxSpec, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    local = LocalProvider(home)
    try:
        for spec in (small, SandboxSpec(image="nobody/has-this:1")):
            with pytest.raises(ConfigError, match="ramify images import"):
                await local.prepare(spec)
    finally:
        await local.aclose()


@pytest.mark.parametrize(
    ("mode", "error", "says"), [("cut", SandboxError, "hung up"), ("flip", ConfigError, "damaged")]
)
async def test_a_spoilt_export_is_refused_and_leaves_nothing(
    mode: str,
    error: type[Exception],
    says: str,
    small: SandboxSpec,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with engine_relay(tmp_path / "relay") as relay:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/relay")
        relay.mode, relay.after = mode, 9_000_000
        local = LocalProvider(home)
        try:
            with pytest.raises(error, match=says):
                await local.prepare(small)
            assert layers(home) == []
            assert named_images(home / "store") == []
            relay.mode = "pass"
            assert (await local.prepare(small)).size_bytes >= 12_000_000
        finally:
            await local.aclose()
    await forget_later(small, monkeypatch)


async def test_a_cancelled_import_leaves_nothing(
    small: SandboxSpec, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_relay(tmp_path / "relay") as relay:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/relay")
        relay.mode, relay.after = "stall", 9_000_000
        local = LocalProvider(home)
        try:
            asked = asyncio.create_task(local.prepare(small))
            await relay.reached.wait()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            (engine,) = (home / "store" / "engines").iterdir()
            assert [path.name for path in engine.iterdir()] == ["lock"]
        finally:
            await local.aclose()
    await forget_later(small, monkeypatch)


KILLED = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.sandbox import BuildSpec, SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
asyncio.run(LocalProvider(Path(sys.argv[1])).prepare(SandboxSpec(build=BuildSpec(sys.argv[2]))))
"""


async def test_killed_in_the_middle_of_an_import(
    small: SandboxSpec, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.build is not None
    async with engine_relay(tmp_path / "relay") as relay:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/relay")
        relay.mode, relay.after = "stall", 9_000_000
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, str(home), small.build.context
        )
        async with asyncio.timeout(60):
            await relay.reached.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        relay.mode = "pass"
        assert layers(home) == []
        assert named_images(home / "store") == []
        local = LocalProvider(home)
        try:
            assert await local.sweep() >= 1
            assert len(list((home / "store" / "engines").iterdir())) == 1  # this one
            await local.prepare(small)
        finally:
            await local.aclose()
        assert len(layers(home)) == 1
    await forget_later(small, monkeypatch)


async def test_a_changed_image_is_taken_over_and_the_old_one_goes(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ramify-test/moving-{secrets.token_hex(4)}"
    docker, client = DockerProvider(), EngineClient()
    seen: list[str] = []
    try:
        for number in ("one", "two"):
            at = tmp_path / number
            spec = context(at, "FROM scratch\nCOPY f /f\n", f=number.encode() + os.urandom(8))
            built = await docker.prepare(spec)
            what = {"repo": name, "tag": "latest"}
            await client.call("POST", f"/images/{built.id}/tag", "name an image", query=what)
            local = LocalProvider(home)
            try:
                seen.append((await local.prepare(SandboxSpec(image=name))).id)
            finally:
                await local.aclose()
        monkeypatch.setenv("DOCKER_HOST", NOWHERE)
        local = LocalProvider(home)
        try:
            assert (await local.prepare(SandboxSpec(image=name))).id == seen[1]
        finally:
            await local.aclose()
    finally:
        await docker.aclose()
        await client.aclose()
        for number in ("one", "two"):
            spec = SandboxSpec(build=BuildSpec(str(tmp_path / number)))
            await forget_later(spec, monkeypatch)
    assert seen[0] != seen[1]
    assert [image.id for image in named_images(home / "store")] == [seen[1]]
    assert len(layers(home)) == 1
