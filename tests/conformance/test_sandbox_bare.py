"""The sandbox suite against bare processes, which do not isolate and say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.sandbox import NetworkMode, NetworkPolicy, SandboxSpec
from ramify.planes.sandbox.local import BareProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck
from ramify.testing.sandbox_bench import count_mounts

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
]

# It does not isolate and says so: anything but an open network is refused.
SPEC = SandboxSpec(host_root=True, network=NetworkPolicy(NetworkMode.OPEN))

TRACES = partial(count_mounts, "/docker/")  # other tests may have containers meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[BareProvider]:
    provider = BareProvider()
    try:
        await provider.prepare(SPEC)
        yield provider
    finally:
        await provider.aclose()


@pytest.mark.parametrize("check", SANDBOX_CHECKS, ids=lambda check: check.name)
async def test_bare(check: SandboxCheck, provider: BareProvider, tmp_path: Path) -> None:
    await check.run(SandboxBench(provider, SPEC, tmp_path, BareProvider, TRACES))
