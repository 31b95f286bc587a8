"""The verifier's own Python, in our own namespaces on the host's root file system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from own_python_cases import *  # noqa: F403 (the cases of every provider)
from verifier_stand import Room

from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(namespaces_problem: str | None, ramify_home: Path) -> AsyncIterator[Room | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        yield Room(provider, SandboxSpec(host_root=True, workdir="/app"))
    finally:
        await provider.aclose()
