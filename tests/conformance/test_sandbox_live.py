"""The sandbox suite against local sandboxes whose processes can be captured."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench, SandboxCheck
from ramify.testing.sandbox_bench import count_mounts

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.asyncio(loop_scope="module"),
]

SPEC = SandboxSpec(host_root=True, live=True)
# A filter of system calls and capturing exclude each other, and so do mounts of the caller.
CHECKS = [
    check
    for check in SANDBOX_CHECKS
    if "lockdown" not in check.name and not any(need.startswith("mounts.") for need in check.needs)
]

TRACES = partial(count_mounts, "/docker/")  # other tests may have containers meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    os.environ.setdefault("RAMIFY_CRIU", str(ramify_home({}) / "criu"))
    provider = LocalProvider()
    try:
        try:
            await provider.prepare(SPEC)
        except UnsupportedError as error:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail(f"live checkpoints must work on CI: {error}")
            pytest.skip(str(error))
        yield provider
    finally:
        await provider.aclose()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_live(check: SandboxCheck, provider: LocalProvider, tmp_path: Path) -> None:
    await check.run(SandboxBench(provider, SPEC, tmp_path, LocalProvider, TRACES))
