"""The sandbox suite against Docker containers.

The image is `RAMIFY_TEST_IMAGE`, a Debian (default `debian:bookworm`): from a registry, or made
here with `debootstrap --variant=minbase bookworm tree && tar -C tree -c . | docker import -`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import RamifyError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(image=os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(docker_problem: str | None) -> AsyncIterator[DockerProvider | None]:
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = DockerProvider()
    try:
        try:
            await provider.prepare(SPEC)
        except RamifyError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"the image {SPEC.image} is missing: {error}")
        yield provider
    finally:
        await provider.aclose()


def own_containers() -> int:
    """Containers of engines of this home; each takes its mounts along."""
    form = '{{.Label "ramify.lock"}}'
    done = subprocess.run(
        ["docker", "ps", "-a", "--format", form], capture_output=True, text=True, check=True
    )
    return done.stdout.count(f"{ramify_home()}/")


@pytest.mark.parametrize("check", SANDBOX_CHECKS, ids=lambda check: check.name)
async def test_docker(check: SandboxCheck, provider: DockerProvider, tmp_path: Path) -> None:
    await check.run(SandboxBench(provider, SPEC, tmp_path, DockerProvider, own_containers))
