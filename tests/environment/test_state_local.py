"""The state suite against every driver, in local sandboxes with live services."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from state_worlds import DOCKERFILE, WORLDS, live

from ramify.contracts.sandbox import BuildSpec, SandboxSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.conformance_state import STATE_CHECKS, StateCheck

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]

HOST = SandboxSpec(host_root=True)
BASE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")
SERVERS = ("postgres", "redis")
EVERYWHERE = [kind for kind in WORLDS if kind not in SERVERS]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    provider = LocalProvider()
    try:
        await provider.prepare(HOST)
        yield provider
    finally:
        await provider.aclose()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> SandboxSpec:
    """An image with PostgreSQL and Redis from the Debian archive."""
    context = tmp_path_factory.mktemp("servers")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=BASE))
    return SandboxSpec(build=BuildSpec(str(context)))


async def run(
    check: StateCheck, kind: str, provider: LocalProvider, spec: SandboxSpec, at: Path, rounds: int
) -> None:
    async with live(kind, await provider.create(spec)) as parts:
        await check.run(parts.bench(at, rounds))


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("check", STATE_CHECKS, ids=lambda check: check.name)
async def test_state(check: StateCheck, kind: str, provider: LocalProvider, tmp_path: Path) -> None:
    await run(check, kind, provider, HOST, tmp_path, 6)


@pytest.mark.docker
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("check", STATE_CHECKS, ids=lambda check: check.name)
async def test_server(
    check: StateCheck, kind: str, provider: LocalProvider, servers: SandboxSpec, tmp_path: Path
) -> None:
    await run(check, kind, provider, servers, tmp_path, 6)


FULL = [check for check in STATE_CHECKS if check.name in ("restore_is_exact", "a_writer_hammers")]


@pytest.mark.proof
@pytest.mark.docker
@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("check", FULL, ids=lambda check: check.name)
async def test_twenty_of_twenty(
    check: StateCheck, kind: str, provider: LocalProvider, servers: SandboxSpec, tmp_path: Path
) -> None:
    await run(check, kind, provider, servers if kind in SERVERS else HOST, tmp_path, 20)
