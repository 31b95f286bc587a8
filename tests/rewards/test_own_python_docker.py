"""The verifier's own Python, in Docker containers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from own_python_cases import *  # noqa: F403 (the cases of every provider)
from verifier_stand import Room

from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(docker_problem: str | None, ramify_home: Path) -> AsyncIterator[Room | None]:
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = DockerProvider(ramify_home)
    try:
        yield Room(provider, SandboxSpec(image=IMAGE, workdir="/app"))
    finally:
        await provider.aclose()
