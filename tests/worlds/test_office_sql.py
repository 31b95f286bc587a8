"""The office over PostgreSQL and Redis: servers restart in each copy, and the data is right."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from checker import State, differences
from office_branch import Life, Stand, close_all, mutate, seen
from office_stand import OFFICE

from ramify.contracts.errors import RamifyError, UnsupportedError
from ramify.contracts.sandbox import SandboxImage, SandboxProvider
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

MANIFEST = OFFICE / "manifest-sql.toml"
CHILDREN = 3
SERVERS = {"postgres", "redis"}
# The image is built from a Debian archive, which can take longer than any test should.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


async def built(provider: SandboxProvider, place: Path) -> Stand:
    """Where the image with both servers is."""
    stand = Stand(provider, place, host_root=False)
    try:
        await provider.prepare(stand.spec(stand.task(MANIFEST, "close-falcon"), live=False))
    except RamifyError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(f"the image with PostgreSQL and Redis cannot be built here: {error}")
    return stand


@pytest_asyncio.fixture
async def local(namespaces_available: None, tmp_path: Path) -> AsyncGenerator[Stand]:
    provider = LocalProvider()
    await provider.probe()
    try:
        yield await built(provider, tmp_path)
    finally:
        await provider.aclose()


@pytest_asyncio.fixture
async def docker(tmp_path: Path) -> AsyncGenerator[Stand]:
    provider = DockerProvider()
    await provider.probe()
    try:
        yield await built(provider, tmp_path)
    finally:
        await provider.aclose()


def hooked(place: Path) -> Path:
    """The same world for where no processes can be captured."""
    place.mkdir(parents=True)
    for name in ("world", "sql"):
        (place / name).symlink_to(OFFICE / name)
    text = MANIFEST.read_text().replace('on_branch = "live"', 'on_branch = "hook"')
    (place / "manifest.toml").write_text(text)
    return place / "manifest.toml"


def numbers(state: State) -> dict[str, int]:
    """How many of the writer's numbers, from 1 on without a gap, each place has."""
    rows = {
        "rows of mail": [row.split("number ")[1].split("\t")[0] for row in state["rows"]["postgres"]
                         if "dana@north.example\tsent" in row and "number " in row],
        "documents of chat": [doc.split('"number ')[1].split('"')[0]
                              for _, doc in state["rows"]["chat:posts"] if '"number ' in doc],
        "log of mail": [json.loads(e["body"])["subject"].split()[1] for e in state["logs"]["mail"]
                        if '"subject": "number' in e["body"] and e["status"] == 201],
        "log of chat": [json.loads(e["body"])["text"].split()[1] for e in state["logs"]["chat"]
                        if '"text": "number' in e["body"] and e["status"] == 201],
    }  # fmt: skip
    for where, found in rows.items():
        assert sorted(map(int, found)) == [*range(1, len(found) + 1)], where
    return {where: len(found) for where, found in rows.items()}


async def branched(stand: Stand, life: Life, *, live: bool) -> list[State]:
    """Cut, let copies look, go apart, and compare with one more copy; their states."""
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        image, ways = await stand.cut(life, live=live)
        images.append(image)
        assert {name for name, way in ways.items() if way == "restart"} == SERVERS
        assert set(ways.values()) == {"restart", "live" if live else "hook"}
        copies += await stand.children(life, image, CHILDREN)
        if live:
            async with asyncio.TaskGroup() as group:
                for copy in copies:
                    group.create_task(copy.acknowledged(60))
        states = [await copy.look() for copy in copies]
        but = ("processes",)
        for state in states[1:]:
            assert differences(states[0], state, but=but) == []
        for number, copy in enumerate(copies):
            await mutate(copy, f"child{number}")
        for number, copy in enumerate(copies):
            assert await seen(copy) == [f"of child{number}"] * 6
            assert differences(states[0], await copy.look(), but=but)
        again = await stand.child(life, image)
        copies.append(again)
        if live:
            await again.acknowledged(60)
        assert differences(states[0], await again.look(), but=but) == []
        return states
    finally:
        await close_all([life, *copies])
        for image in images:
            await stand.provider.discard(image)


async def test_services_live_and_servers_restarted(local: Stand) -> None:
    try:
        spec = local.spec(local.task(MANIFEST, "close-falcon"), live=True)
        await local.provider.prepare(spec)
    except UnsupportedError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(f"no live checkpoints here: {error}")
    life = await local.open(MANIFEST, live=True)
    try:
        await life.start_programs()
        await life.allow(60)
        await life.acknowledged(15)
    except BaseException:
        await life.close()
        raise
    states = await branched(local, life, live=True)
    assert set(numbers(states[0]).values()) == {60}


async def without_processes(stand: Stand, place: Path) -> None:
    life = await stand.open(hooked(place), live=False)
    try:
        await life.start_programs()
        await life.allow(20)
        await life.acknowledged(20)
        before = await life.look()
    except BaseException:
        await life.close()
        raise
    states = await branched(stand, life, live=False)
    states[0]["mounts"].pop("/etc/ld.so.preload", None)  # Docker's, over each frozen image
    assert differences(before, states[0], but=("processes", "network")) == []
    assert before["network"]["reached"] == states[0]["network"]["reached"]
    assert set(numbers(states[0]).values()) == {20}


async def test_without_captured_processes_on_local(local: Stand, tmp_path: Path) -> None:
    await without_processes(local, tmp_path / "office")


async def test_without_captured_processes_on_docker(docker: Stand, tmp_path: Path) -> None:
    await without_processes(docker, tmp_path / "office")
