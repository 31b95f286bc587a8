"""The sandbox suite against our own namespaces, on the host's root file system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck
from ramify.testing.sandbox_bench import count_mounts

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.asyncio(loop_scope="module"),
]

SPEC = SandboxSpec(host_root=True)

TRACES = partial(count_mounts, "/docker/")  # other tests may have containers meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        await provider.prepare(SPEC)
        yield provider
    finally:
        await provider.aclose()


@pytest.mark.parametrize("check", SANDBOX_CHECKS, ids=lambda check: check.name)
async def test_local(check: SandboxCheck, provider: LocalProvider, tmp_path: Path) -> None:
    await check.run(SandboxBench(provider, SPEC, tmp_path, LocalProvider, TRACES))
