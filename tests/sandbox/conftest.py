"""Parts that the sandbox tests share: a Docker provider and a container per module."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.sandbox import Sandbox, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import ApiError, EngineClient

DOCKER_IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker_spec(docker_problem: str | None) -> SandboxSpec:
    """A spec whose image is there; skips (on CI: fails) where Docker or the image is missing."""
    problem = docker_problem
    if problem is None:
        client = EngineClient()
        try:
            await client.call("GET", f"/images/{DOCKER_IMAGE}/json", "show the test image")
        except ApiError:
            problem = f"no image {DOCKER_IMAGE}: run dev/base-images"
        finally:
            await client.aclose()
    if problem is not None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(problem)
        pytest.skip(problem)
    return SandboxSpec(image=DOCKER_IMAGE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker(docker_spec: SandboxSpec, ramify_home: Path) -> AsyncIterator[DockerProvider]:
    """One provider for a module's tests."""
    provider = DockerProvider(ramify_home)
    yield provider
    await provider.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(docker: DockerProvider, docker_spec: SandboxSpec) -> Sandbox:
    """One container for a module's tests; the provider removes it."""
    return await docker.create(docker_spec)


@pytest.fixture
def sweep_home() -> Callable[[Path], Awaitable[int]]:
    """Sweeps what dead engines of a home left on the daemon, as the next engine of it does."""

    async def sweep(home: Path) -> int:
        provider = DockerProvider(home)
        try:
            return await provider.sweep()
        finally:
            await provider.aclose()

    return sweep


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that another user reaches."""
    place = Path("/var/tmp") / f"ramify-reachable-{os.getpid()}"
    place.mkdir()
    yield place
    shutil.rmtree(place)
