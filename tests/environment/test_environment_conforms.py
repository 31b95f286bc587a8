"""The suite of the contracts Environment, Revertible and Forkable, against all of our worlds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from small_world import Room, ask, small, tell_to_crash

from ramify.contracts.environment import Environment
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import Task, TaskPackage
from ramify.planes.environment.package import PackageEnvironment
from ramify.planes.environment.world import ManifestEnvironment
from ramify.testing.check import Check
from ramify.testing.conformance_environment import (
    ENVIRONMENT_CHECKS,
    EnvironmentBench,
    Opened,
)

checks = pytest.mark.parametrize("check", ENVIRONMENT_CHECKS, ids=lambda check: check.name)
counter = iter(range(10_000))


async def change(world: Environment, sandbox: Sandbox) -> None:
    assert isinstance(world, ManifestEnvironment)
    for url in (await world.urls()).values():
        await asyncio.to_thread(ask, f"{url}/add", f"note {next(counter)}".encode())
    await sandbox.exec(f"echo {next(counter)} >> notes/first.txt", cwd="/app")


async def look(world: Environment, sandbox: Sandbox) -> object:
    """What the services say, their files, and the log that one of them has in memory alone."""
    assert isinstance(world, ManifestEnvironment)
    urls = await world.urls()
    notes = [await asyncio.to_thread(ask, f"{url}/notes") for url in urls.values()]
    log = await asyncio.to_thread(ask, f"{urls['mail']}/log")
    files = await sandbox.exec("cat notes/first.txt", cwd="/app")
    return notes, log, files.stdout


async def crash(world: Environment, sandbox: Sandbox) -> None:
    assert isinstance(world, ManifestEnvironment)
    await asyncio.to_thread(tell_to_crash, (await world.urls())["mail"])


LIVE = (('on_branch = "hook"', 'on_branch = "live"'), ('on_branch = "restart"', ""))


def bench_of(room: Room, changes: Sequence[tuple[str, str]] = ()) -> EnvironmentBench:
    manifest = small(room.place / "small", *changes)

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Opened]:
        async with room.sandbox() as (sandbox, ctx):
            world = room.world(manifest, revertible=not changes)
            try:
                yield world, sandbox, ctx
            finally:
                await world.teardown()

    return EnvironmentBench(opened, change, look, crash)


@pytest.mark.namespaces
@checks
async def test_manifest_on_local(check: Check[EnvironmentBench], room: Room) -> None:
    await check.run(bench_of(room))


@pytest.mark.namespaces
@pytest.mark.parametrize(
    "check",
    [check for check in ENVIRONMENT_CHECKS if "forkable" in check.needs],
    ids=lambda check: check.name,
)
async def test_manifest_live(check: Check[EnvironmentBench], room: Room) -> None:
    """The services go on as the processes they are; nothing declares what they remember."""
    live = replace(room, spec=msgspec.structs.replace(room.spec, live=True))
    try:
        await live.provider.prepare(live.spec)
    except UnsupportedError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    await check.run(bench_of(live, LIVE))


@pytest.mark.docker
@checks
async def test_manifest_on_docker(check: Check[EnvironmentBench], docker_room: Room) -> None:
    await check.run(bench_of(docker_room))


async def write_file(world: Environment, sandbox: Sandbox) -> None:
    await sandbox.exec(f"echo {next(counter)} >> made.txt", cwd="/app")


async def read_files(world: Environment, sandbox: Sandbox) -> object:
    return (await sandbox.exec("cat /app/*.txt", cwd="/app")).stdout


@pytest.mark.namespaces
@checks
async def test_package(check: Check[EnvironmentBench], room: Room, tmp_path: Path) -> None:
    (tmp_path / "task" / "files").mkdir(parents=True)
    (tmp_path / "task" / "files" / "given.txt").write_text("given\n")
    package = TaskPackage(str(tmp_path / "task"), "digest", room.spec, files="files")

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Opened]:
        async with room.sandbox(Task("worlds:package", package=package)) as (sandbox, ctx):
            yield PackageEnvironment(), sandbox, ctx

    await check.run(EnvironmentBench(opened, write_file, read_files))
