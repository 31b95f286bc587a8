"""A container whose file system goes on in place: nothing of its processes or powers is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from ramify.contracts.errors import SandboxLostError, UnsupportedError
from ramify.contracts.frozen import HandsOver
from ramify.contracts.sandbox import Limits, NetworkMode, NetworkPolicy, Sandbox, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider

pytestmark = pytest.mark.docker
SPEC = SandboxSpec(image="debian:bookworm", env={"SECRET_OF_THE_AGENT": "1"})
LOCKED = msgspec.structs.replace(SPEC, lockdown=True, env={})


@pytest.fixture
async def provider(ramify_home: Path) -> AsyncIterator[DockerProvider]:
    made = DockerProvider()
    yield made
    await made.aclose()


async def given_over(sandbox: Sandbox, spec: SandboxSpec = LOCKED) -> Sandbox:
    assert isinstance(sandbox, HandsOver)
    return await sandbox.hand_over(spec)


async def text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command)).stdout.decode()


async def test_files_stay_and_processes_go(provider: DockerProvider) -> None:
    agent = await provider.create(SPEC)
    await agent.exec(
        "echo kept > /kept; (setsid sh -c 'while :; do echo x >> /beat; done' &); sleep 0.2"
    )
    process = await agent.spawn(["sleep", "1000"])
    heir = await given_over(agent)
    assert heir.id == agent.id
    assert await text(heir, "cat /kept") == "kept\n"
    before = await text(heir, "cat /beat; rm /beat")
    await asyncio.sleep(0.2)
    assert before
    assert "No such file" in (await heir.exec("cat /beat")).stderr.decode()
    assert "sleep" not in await text(heir, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "SECRET" not in await text(heir, "env; cat /proc/[0-9]*/environ 2>/dev/null")
    for use in (agent.exec("true"), process.wait()):
        with pytest.raises(SandboxLostError):
            await use
    await agent.teardown()
    assert await text(heir, "echo on") == "on\n", "the old one's end is not the new one's"
    await heir.teardown()


async def test_powers_go(provider: DockerProvider) -> None:
    agent = await provider.create(SPEC)
    heir = await given_over(agent)
    fresh = await provider.create(LOCKED)
    bounding = "grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status"
    assert await text(heir, bounding) == await text(fresh, bounding)
    everything = await asyncio.gather(*(heir.exec("exit 3") for _ in range(8)))
    assert [result.exit_code for result in everything] == [3] * 8


@pytest.mark.parametrize(
    "spec",
    [
        msgspec.structs.replace(LOCKED, network=NetworkPolicy(NetworkMode.OPEN)),
        msgspec.structs.replace(LOCKED, limits=Limits(pids=99)),
        SPEC,
    ],
    ids=["another network", "other limits", "no lockdown"],
)
async def test_what_cannot_be_had_in_place_is_refused_and_nothing_happens(
    provider: DockerProvider, spec: SandboxSpec
) -> None:
    agent = await provider.create(SPEC)
    with pytest.raises(UnsupportedError):
        await given_over(agent, spec)
    assert await text(agent, "echo alive") == "alive\n"


async def test_the_provider_ends_the_heir(ramify_home: Path) -> None:
    provider = DockerProvider()
    heir = await given_over(await provider.create(SPEC))
    await provider.aclose()
    with pytest.raises(SandboxLostError):
        await heir.exec("true")
