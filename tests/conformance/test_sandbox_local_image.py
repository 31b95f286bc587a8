"""The sandbox suite against our own namespaces, on an image that a Docker daemon gave once."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck
from ramify.testing.sandbox_bench import count_mounts

pytestmark = [
    pytest.mark.docker,
    pytest.mark.namespaces,
    pytest.mark.asyncio(loop_scope="module"),
]

# What depends on the root file system; the rest is checked on the host's root.
CHECKS = [
    one
    for one in SANDBOX_CHECKS
    if one.name.startswith(("exec.", "isolation.", "life.", "mounts."))
]
SPEC = SandboxSpec(image=os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm"))
TRACES = partial(count_mounts, "/docker/")  # other tests may have containers meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(
    namespaces_problem: str | None, docker_problem: str | None
) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None or docker_problem is not None:
        yield None  # the marks skip each test, or fail it on CI
        return
    provider = LocalProvider()
    try:
        try:
            await provider.prepare(SPEC)
        except ConfigError as error:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                raise
            pytest.skip(str(error))
        yield provider
    finally:
        await provider.aclose()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_local_image(check: SandboxCheck, provider: LocalProvider, tmp_path: Path) -> None:
    await check.run(SandboxBench(provider, SPEC, tmp_path, LocalProvider, TRACES))
