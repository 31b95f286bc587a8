"""What the tests of live checkpoints share: a provider that can, and programs to capture."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.local import LocalProvider

LIVE = SandboxSpec(host_root=True, live=True)

COUNTER = """
import sqlite3, sys
db = sqlite3.connect("/var/tmp/live.db", isolation_level=None)
db.execute("pragma journal_mode = wal")
db.execute("create table if not exists t (n integer)")
for line in sys.stdin:
    try:
        db.execute("insert into t values (?)", (int(line),))
        rows = db.execute("select count(*), max(n) from t").fetchone()
        print(*rows, flush=True)
    except sqlite3.Error as error:
        print("error", error, flush=True)
"""
"""Writes each number that it is given to a SQLite database; says what is in it then."""


async def live_provider(problem: str | None) -> AsyncIterator[LocalProvider | None]:
    """For a fixture: a provider that can capture. Skips with the reason else; fails on CI."""
    if problem is not None:
        yield None  # the mark of the test skips it, or fails it on CI
        return
    os.environ.setdefault("RAMIFY_CRIU", str(ramify_home({}) / "criu"))
    provider = LocalProvider()
    try:
        try:
            await provider.prepare(LIVE)
        except UnsupportedError as error:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail(f"live checkpoints must work on CI: {error}")
            pytest.skip(str(error))
        yield provider
    finally:
        await provider.aclose()


async def lines(process: Process, count: int = 1) -> list[str]:
    """The next `count` lines of output."""
    data = b""
    async with asyncio.timeout(30):
        while data.count(b"\n") < count:
            piece = await process.read()
            if not piece:
                raise AssertionError(f"the output ended after {data!r}")
            data += piece
    return data.decode().split("\n")[:-1]


async def ask(process: Process, line: str) -> str:
    """Give it a line; the line it answers."""
    await process.write(f"{line}\n".encode())
    return (await lines(process))[0]


def python(code: str, *arguments: str) -> list[str]:
    """A command of a third party: Python with a program."""
    return ["/usr/bin/python3", "-uc", code, *arguments]


async def captured(sandbox: Sandbox) -> SandboxImage:
    """A checkpoint of it."""
    assert isinstance(sandbox, Snapshottable)
    image = await sandbox.checkpoint()
    assert image.live
    return image


def attached(sandbox: Sandbox, process: Process) -> Process:
    """The copy of a process."""
    assert isinstance(sandbox, Snapshottable)
    return sandbox.attach(process.pid)


@asynccontextmanager
async def children(
    provider: LocalProvider, image: SandboxImage, count: int, spec: SandboxSpec = LIVE
) -> AsyncGenerator[list[Sandbox]]:
    """That many sandboxes of an image, made in parallel."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(provider.create(spec, image)) for _ in range(count)]
    made = [task.result() for task in tasks]
    try:
        yield made
    finally:
        for sandbox in made:
            await sandbox.teardown()
