"""Branching on Docker: what children of a commit keep, its cost, deep chains, what is refused."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.sandbox import (
    BuildSpec,
    Limits,
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.docker import DockerProvider, images
from ramify.planes.sandbox.docker.client import EngineClient

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

DOCKERFILE = """
FROM {base}
ENV GREETING="hello you" PRICE="\\$5"
LABEL org.example.kept="a label"
RUN mkdir /work && echo built > /work/built
WORKDIR /work
USER nobody
STOPSIGNAL SIGINT
HEALTHCHECK --interval=7s --retries=4 CMD test -e /work/built
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["exec sleep 99"]
"""
KEPT = ("Env", "User", "WorkingDir", "Entrypoint", "Cmd", "Healthcheck", "StopSignal")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient()
    yield client
    await client.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(
    docker: DockerProvider,
    docker_spec: SandboxSpec,
    client: EngineClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[SandboxSpec]:
    """An image that says everything that an image can say of how it is run."""
    context = tmp_path_factory.mktemp("context")
    own = f"LABEL run={secrets.token_hex(8)}\n"  # another run's children do not hold this one
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=docker_spec.image) + own)
    spec = SandboxSpec(build=BuildSpec(str(context)))
    image = await docker.prepare(spec)
    yield spec
    await client.call("DELETE", f"/images/{image.id}", "remove", query={"force": "1"})


async def frozen(box: Sandbox) -> SandboxImage:
    assert isinstance(box, Freezable)
    return await box.freeze()


async def container(client: EngineClient, box: Sandbox) -> dict[str, Any]:
    return await client.call("GET", f"/containers/{box.id}/json", "show a container")


async def config(client: EngineClient, image: str) -> dict[str, Any]:
    return (await client.call("GET", f"/images/{image}/json", "show an image"))["Config"]


async def layers(client: EngineClient, image: SandboxImage) -> int:
    found = await client.call("GET", f"/images/{image.id}/json", "show an image")
    return len(found["RootFS"]["Layers"])


async def frozen_names(client: EngineClient) -> set[str]:
    found = await client.call("GET", "/images/json", "list", query={"all": "1"})
    names = {name for image in found for name in image["RepoTags"] or ()}
    return {name for name in names if name.startswith("ramify/frozen:")}


SPECS = {
    "limits": SandboxSpec(limits=Limits(memory_mb=300, cpus=0.5, pids=77)),
    "open": SandboxSpec(network=NetworkPolicy(NetworkMode.OPEN)),
    "allowlist": SandboxSpec(network=NetworkPolicy(NetworkMode.ALLOWLIST, ("example.org",))),
    "lockdown": SandboxSpec(lockdown=True),
    "labels": SandboxSpec(labels={"org.example.mine": "1"}),
}


@pytest.mark.parametrize("case", SPECS)
async def test_children_are_run_as_their_parent_was(
    case: str, docker: DockerProvider, docker_spec: SandboxSpec, client: EngineClient
) -> None:
    """Limits, mounts, privileges and network, as the daemon tells them."""
    spec = SandboxSpec(
        image=docker_spec.image,
        **{field: getattr(SPECS[case], field) for field in ("limits", "network", "lockdown",
                                                            "labels")},
    )  # fmt: skip
    parent = await docker.create(spec)
    before = await container(client, parent)
    image = await frozen(parent)
    child = await docker.create(spec, image)
    after = await container(client, child)

    def mounts(found: dict[str, Any]) -> set[tuple[str, str, bool]]:
        return {(one["Source"], one["Destination"], one["RW"]) for one in found["Mounts"]}

    # A list of libraries that the parent's agent may have left is covered in children.
    assert mounts(after) - mounts(before) == {("/dev/null", "/etc/ld.so.preload", False)}
    assert mounts(before) <= mounts(after)
    differing = {
        key
        for key in before["HostConfig"]
        if key != "Mounts" and before["HostConfig"][key] != after["HostConfig"][key]
    }
    assert differing == set()
    host = after["HostConfig"]
    if case == "limits":
        assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (300 << 20, 5 * 10**8, 77)
    assert host["NetworkMode"] == ("bridge" if case == "open" else "none")
    if case == "allowlist":
        result = await child.exec("echo $https_proxy")
        assert result.stdout.strip() == b"http://127.0.0.1:3128"
    assert host["CapDrop"] == {"lockdown": ["ALL"], "open": ["NET_RAW"]}.get(case)
    if case == "labels":
        assert after["Config"]["Labels"]["org.example.mine"] == "1"
    await child.teardown()
    await docker.discard(image)


async def test_children_have_the_image_s_environment_user_and_directory(
    docker: DockerProvider, built: SandboxSpec, client: EngineClient
) -> None:
    pristine = await docker.prepare(built)
    parent = await docker.create(built)
    image = await frozen(parent)
    child = await docker.create(built, image)
    look = 'id -un; pwd; echo "$GREETING $PRICE"; ls'
    assert (await child.exec(look)).stdout == b"nobody\n/work\nhello you $5\nbuilt\n"
    assert (image.entrypoint, image.cmd) == (("/bin/sh", "-c"), ("exec sleep 99",))
    assert image.healthcheck == pristine.healthcheck is not None
    assert image.healthcheck.interval_sec == 7.0

    before, after = await config(client, pristine.id), await config(client, image.id)
    assert {key: after[key] for key in KEPT} == {key: before[key] for key in KEPT}
    assert after["Labels"]["org.example.kept"] == "a label"
    await child.teardown()
    await docker.discard(image)


async def test_what_a_commit_costs_is_told(
    docker: DockerProvider, docker_spec: SandboxSpec, caplog: pytest.LogCaptureFixture
) -> None:
    parent = await docker.create(docker_spec)
    await parent.exec("head -c 3000000 /dev/urandom > /srv/state")
    with caplog.at_level(logging.INFO, "ramify.sandbox.docker"):
        image = await frozen(parent)
    assert 3_000_000 <= image.size_bytes < 3_500_000
    (line,) = [text for text in caplog.messages if text.startswith(f"froze {parent.id}")]
    assert f"{image.size_bytes} bytes" in line
    await docker.discard(image)


async def test_children_start_together_and_keep_apart(
    docker: DockerProvider, docker_spec: SandboxSpec, client: EngineClient
) -> None:
    parent = await docker.create(docker_spec)
    await parent.exec("echo base > /srv/f")
    image = await frozen(parent)

    async def one(number: int) -> bytes:
        child = await docker.create(docker_spec, image)
        await child.exec(f"echo {number} >> /srv/f; touch /srv/own{number}")
        await barrier.wait()
        found = await child.exec("cat /srv/f; ls /srv")
        await child.teardown()
        return found.stdout

    barrier = asyncio.Barrier(4)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(4)]
    for number, task in enumerate(tasks):
        assert task.result().split() == [b"base", b"%d" % number, b"f", b"own%d" % number]
    await docker.discard(image)


async def test_deep_chains_are_flattened(
    docker: DockerProvider,
    built: SandboxSpec,
    client: EngineClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pristine = await docker.prepare(built)
    bound = await layers(client, pristine) + 2
    monkeypatch.setattr(images, "_MOST_LAYERS", bound)
    chain, names = [pristine], set[str]()
    for number in range(5):
        box = await docker.create(built, chain[-1])
        script = f"rm -f f{number - 1}; echo {number} > f{number}; ln f{number} hard{number}"
        names.add(f"ramify/frozen:{box.id}")
        done = await box.exec(f"{script}; chown 33:44 f{number}; chmod 4755 hard{number}", user="0")
        assert done.ok, done
        chain.append(await frozen(box))
    depths = [await layers(client, image) for image in chain]
    assert max(depths) <= bound
    assert depths[3] < depths[2] == bound  # one layer, and what follows on top
    box = await docker.create(built, chain[-1])
    look = "ls; cat f4; stat -c '%u:%g:%a:%h' f4 hard0; id -un; pwd; echo $PRICE; cat built"
    assert (await box.exec(look)).stdout.decode().split() == [
        "built", "f4", *(f"hard{n}" for n in range(5)), "4", "33:44:4755:2", "33:44:4755:1",
        "nobody", "/work", "$5", "built",
    ]  # fmt: skip
    before, after = await config(client, pristine.id), await config(client, chain[-1].id)
    assert {key: after[key] for key in KEPT} == {key: before[key] for key in KEPT}
    await box.teardown()
    for image in chain[1:]:  # parents first: what they hold goes with the last child
        await docker.discard(image)
    there = await frozen_names(client)
    assert not [name for name in there if name.removesuffix("-flat") in names]
    left = await client.call("GET", "/containers/json", "list", query={"all": "1"})
    flat = {f"/{name.removeprefix('ramify/frozen:')}-flat" for name in names}
    assert not [one for one in left if not flat.isdisjoint(one["Names"])]
    for image in chain[1:]:
        found = await client.call("GET", "/images/json", "list", query={"all": "1"})
        assert image.id not in {one["Id"] for one in found}


DYING = """
import asyncio, os, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider, images

async def die(*_):
    os.kill(os.getpid(), 9)

async def main():
    images._MOST_LAYERS = 0
    images.Images._forget_flat = die
    provider = DockerProvider(Path(sys.argv[1]))
    box = await provider.create(SandboxSpec(image=sys.argv[2]))
    print(box.id, flush=True)
    await box.freeze()

asyncio.run(main())
"""


async def test_what_is_left_of_a_flattening_is_swept(
    docker_spec: SandboxSpec,
    client: EngineClient,
    tmp_path: Path,
    sweep_home: Callable[[Path], Awaitable[int]],
) -> None:
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING, str(tmp_path), str(docker_spec.image),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _errors = await engine.communicate()
    name = output.decode().strip()
    kept = {f"ramify/frozen:{name}", f"ramify/frozen:{name}-flat"}
    assert kept <= await frozen_names(client)
    await sweep_home(tmp_path)
    assert not kept & await frozen_names(client)
    left = await client.call("GET", "/containers/json", "list", query={"all": "1"})
    assert not [one for one in left if f"/{name}-flat" in one["Names"]]


@pytest.mark.proof
@pytest.mark.timeout(1200)
async def test_a_chain_of_a_hundred_and_forty_commits(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    chain = [await docker.prepare(docker_spec)]
    for number in range(140):
        box = await docker.create(docker_spec, chain[-1])
        assert (await box.exec(f"echo {number} > /srv/{number}")).ok
        chain.append(await frozen(box))
    box = await docker.create(docker_spec, chain[-1])
    assert len((await box.exec("ls /srv")).stdout.split()) == 140
    await box.teardown()
    for image in reversed(chain[1:]):
        await docker.discard(image)


async def test_live_is_refused_with_what_to_use_instead(
    docker: DockerProvider, docker_spec: SandboxSpec
) -> None:
    spec = SandboxSpec(image=docker_spec.image, live=True)
    for refused in (docker.create(spec), docker.prepare(spec)):
        with pytest.raises(UnsupportedError, match="live.*--sandbox local"):
            await refused
    assert docker.capabilities().snapshot == "freeze"
    box = await docker.create(docker_spec)
    assert not isinstance(box, Snapshottable)
    await box.teardown()
