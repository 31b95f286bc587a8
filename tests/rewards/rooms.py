"""Rooms for the tests of verifiers, one for a module; imported there under the name `room`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from verifier_stand import Room

from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker_room(docker_problem: str | None, ramify_home: Path) -> AsyncIterator[Room | None]:
    """Containers."""
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = DockerProvider(ramify_home)
    try:
        yield Room(provider, SandboxSpec(image=IMAGE, workdir="/app"))
    finally:
        await provider.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_room(
    namespaces_problem: str | None, ramify_home: Path
) -> AsyncIterator[Room | None]:
    """Our own namespaces, on the host's root file system."""
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        yield Room(provider, SandboxSpec(host_root=True, workdir="/app"))
    finally:
        await provider.aclose()
