"""Images: frozen, built once per content, and such that have nothing that we could use."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.errors import ConfigError, SandboxError, SandboxLostError, SandboxStartError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import BuildSpec, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import EngineClient

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient()
    yield client
    await client.aclose()


async def test_children_of_a_frozen_sandbox_share_nothing(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    spec = SandboxSpec(image=docker_spec.image, env={"KEPT": "yes"}, workdir="/srv")
    parent = await docker.create(spec)
    await parent.exec("echo base > /srv/f; head -c 2000000 /dev/urandom > /srv/big; rm -rf /media")
    await parent.exec("setsid sleep 600 &")
    assert isinstance(parent, Freezable)
    image = await parent.freeze()
    assert (image.pristine, image.provider) == (False, "docker")
    assert image.parent is not None
    assert 2_000_000 <= image.size_bytes < 3_000_000
    with pytest.raises(SandboxLostError, match="frozen"):
        await parent.exec("true")
    await parent.teardown()

    one, two = await docker.create(spec, image), await docker.create(spec, image)
    await one.exec("echo one >> f")
    assert (await one.exec("cat f; echo $KEPT; ls -d /media")).stdout == b"base\none\nyes\n"
    assert (await two.exec("cat f; pgrep sleep; ls /.ramify/app")).stdout == b"base\nramify\n"
    assert isinstance(two, Freezable)
    grandchild = await two.freeze()
    three = await docker.create(spec, grandchild)
    assert (await three.exec("cat f")).stdout == b"base\n"
    for box in (one, three):
        await box.teardown()
    for old in (image, grandchild):
        await docker.discard(old)
        await docker.discard(old)
    with pytest.raises(SandboxStartError):
        await docker.create(spec, grandchild)


async def test_a_preload_list_of_the_agent_does_not_reach_us(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    parent = await docker.create(docker_spec)
    await parent.exec("mkdir -p /root/lib; echo /root/lib/evil.so > /etc/ld.so.preload")
    assert isinstance(parent, Freezable)
    image = await parent.freeze()
    child = await docker.create(docker_spec, image)
    result = await child.exec("echo fine")
    assert (result.stdout, result.stderr) == (b"fine\n", b"")
    await child.teardown()
    await docker.discard(image)


async def test_an_image_is_built_once_per_content(
    docker: DockerProvider, docker_spec: SandboxSpec, client: EngineClient, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    mark = os.urandom(8).hex()
    (context / "Dockerfile").write_text(
        f"FROM {docker_spec.image}\nCOPY . /task/\nRUN echo {mark} > /mark; date +%N >> /mark\n"
        'ENV GREETING="hello you" LD_PRELOAD=/none.so\nWORKDIR /task\nUSER nobody\n'
        'ENTRYPOINT ["/bin/false"]\n'
    )
    (context / ".dockerignore").write_text("# secrets\n*.key\n!keep.key\nlogs\n")
    for name in ("a.key", "keep.key", "main.py"):
        (context / name).write_text(name)
    (context / "logs").mkdir()
    (context / "logs/x").write_text("x")
    spec = SandboxSpec(build=BuildSpec(str(context)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(docker.prepare(spec)) for _ in range(3)]
    assert len({task.result().id for task in tasks}) == 1
    image = tasks[0].result()
    assert (image.user, image.workdir, image.env["GREETING"]) == ("nobody", "/task", "hello you")
    box = await docker.create(spec)
    assert (await box.exec("ls; id -un; echo $GREETING", env={"LD_PRELOAD": ""})).stdout == (
        b"Dockerfile\nkeep.key\nmain.py\nnobody\nhello you\n"
    )
    await box.teardown()

    os.utime(context / "main.py", (1, 1))
    (context / "b.key").write_text("ignored")
    assert await docker.prepare(spec) == image
    (context / "main.py").write_text("changed")
    other = await docker.prepare(spec)
    assert other.id != image.id
    for built in (image, other):
        await client.call(
            "DELETE", f"/images/{built.id}", "remove a test image", query={"force": "1"}
        )
    left = await client.call("GET", "/containers/json", "list", query={"all": "1"})
    assert not [c for c in left if mark in c["Command"]]


async def test_a_build_that_fails_says_why(
    docker: DockerProvider, docker_spec: SandboxSpec, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    build = SandboxSpec(build=BuildSpec(str(tmp_path)))
    file.write_text(f"FROM {docker_spec.image}\nRUN echo the reason; exit 5\n")
    with pytest.raises(SandboxStartError, match="the reason"):
        await docker.prepare(build)
    file.write_text(f"FROM {docker_spec.image}\nCOPY nothing /x\n")
    with pytest.raises(ConfigError, match="nothing"):
        await docker.prepare(build)
    file.write_text(f"FROM {docker_spec.image}\nFLY me\n")
    with pytest.raises(ConfigError, match=r"(?i)unknown instruction"):
        await docker.prepare(build)
    file.write_text(f"FROM {docker_spec.image}\nRUN sleep 100\n")
    started = time.monotonic()
    with pytest.raises(SandboxStartError, match="longer than 1 s"):
        await docker.prepare(SandboxSpec(build=BuildSpec(str(tmp_path), timeout_sec=1)))
    assert time.monotonic() - started < 20


async def test_an_image_with_nothing_but_a_shell(
    docker_spec: SandboxSpec, client: EngineClient, tmp_path: Path, ramify_home: Path
) -> None:
    """No Python, no C library where ours is looked for, no /etc/passwd, no /tmp."""
    docker = DockerProvider(ramify_home)
    source = await docker.create(docker_spec)
    await source.exec(
        "mkdir -p /mini/bin /mini/odd; cp /bin/dash /bin/cat /bin/ls /mini/odd;"
        "cp -L $(ldd /bin/ls | grep -o '/lib[^ ]*' | grep -v ld-linux) /mini/odd;"
        "cp -L /lib64/ld-linux-x86-64.so.2 /mini/odd/ld"
    )
    tree = tmp_path / "mini"
    await source.download("/mini", tree)
    await source.teardown()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tree, ".")
    query = {"fromSrc": "-", "repo": "ramify-test/mini", "tag": "1"}
    async for message in client.send(
        "POST", "/images/create", "import", buffer.getvalue(), query=query
    ):
        assert "error" not in message
    box = await docker.create(SandboxSpec(image="ramify-test/mini:1"))
    run = ["/odd/ld", "--library-path", "/odd", "/odd/dash", "-c"]
    result = await box.exec([*run, "echo hi; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"hi\n", b"err\n")
    assert (await box.exec("true")).exit_code == 127
    (tmp_path / "f").write_text("up")
    await box.upload(tmp_path / "f", "/deep/er/f")
    await box.download("/deep", tmp_path / "down")
    assert (tmp_path / "down/er/f").read_text() == "up"
    await docker.aclose()
    await client.call(
        "DELETE", "/images/ramify-test/mini:1", "remove a test image", query={"force": "1"}
    )
    shutil.rmtree(tree)


async def test_volumes_cannot_be_frozen_away(
    docker_spec: SandboxSpec, client: EngineClient, tmp_path: Path, ramify_home: Path
) -> None:
    provider = DockerProvider(ramify_home)
    (tmp_path / "Dockerfile").write_text(f"FROM {docker_spec.image}\nVOLUME /data\n")
    spec = SandboxSpec(build=BuildSpec(str(tmp_path)))
    box = await provider.create(spec)
    assert isinstance(box, Freezable)
    with pytest.raises(SandboxError, match="VOLUME"):
        await box.freeze()
    image = await provider.prepare(spec)
    await provider.aclose()
    await client.call("DELETE", f"/images/{image.id}", "remove", query={"force": "1"})
