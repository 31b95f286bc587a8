"""What tests may need of the machine: asked once, skipped with the reason, never skipped on CI."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest


def _need(what: str, problem: str | None) -> None:
    if problem is None:
        return
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what} must be there on CI: {problem}")
    pytest.skip(f"{what} is missing: {problem}")


@pytest.fixture(scope="session", autouse=True)
def ramify_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own, so that tests neither read nor leave anything in the user's."""
    home = tmp_path_factory.mktemp("ramify-home")
    os.environ["RAMIFY_HOME"] = str(home)
    if (criu := Path(__file__).parent.parent / ".venv" / "criu").is_dir():
        os.environ.setdefault("RAMIFY_CRIU", str(criu))  # where `make criu` puts it
    return home


def _probe(make: Callable[[], object]) -> str | None:
    """None when the provider works here, else why not."""

    async def ask() -> str | None:
        provider = make()
        probe: Callable[[], Awaitable[object]] = provider.probe  # type: ignore[attr-defined]
        try:
            report = await probe()
            return None if report.ok else f"{report.detail}; {report.remedy}"  # type: ignore[attr-defined]
        finally:
            await provider.aclose()  # type: ignore[attr-defined]

    return asyncio.run(ask())


@pytest.fixture(scope="session")
def docker_problem(ramify_home: Path) -> str | None:
    """Why Docker cannot be used, asked once."""
    from ramify.planes.sandbox.docker import DockerProvider

    return _probe(DockerProvider)


@pytest.fixture(scope="session")
def namespaces_problem(ramify_home: Path) -> str | None:
    """Why namespaces cannot be used, asked once."""
    from ramify.planes.sandbox.local import LocalProvider

    return _probe(LocalProvider)


@pytest.fixture(scope="session")
def live_problem(namespaces_problem: str | None) -> str | None:
    """Why processes cannot be captured, asked once."""
    from ramify.contracts.errors import UnsupportedError
    from ramify.contracts.sandbox import SandboxSpec
    from ramify.planes.sandbox.local import LocalProvider

    async def ask() -> str | None:
        provider = LocalProvider()
        try:
            await provider.prepare(SandboxSpec(host_root=True, live=True))
        except UnsupportedError as error:
            return str(error)
        finally:
            await provider.aclose()
        return None

    return namespaces_problem or asyncio.run(ask())


@pytest.fixture
def live_available(live_problem: str | None) -> None:
    """Skip (or, on CI, fail) where processes cannot be captured."""
    _need("live checkpoints", live_problem)


@pytest.fixture
def docker_available(docker_problem: str | None) -> None:
    """Skip (or, on CI, fail) where there is no Docker engine."""
    _need("a Docker engine", docker_problem)


@pytest.fixture
def namespaces_available(namespaces_problem: str | None) -> None:
    """Skip (or, on CI, fail) where namespaces are forbidden."""
    _need("namespaces", namespaces_problem)


@pytest.fixture(autouse=True)
def _marked_parts(request: pytest.FixtureRequest) -> None:
    """`@pytest.mark.docker`, `namespaces` and `live` ask for their part by themselves."""
    for mark in ("docker", "namespaces", "live"):
        if request.node.get_closest_marker(mark):
            request.getfixturevalue(f"{mark}_available")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Full counts run under `make proof` only."""
    if config.getoption("-m"):
        return
    kept = [item for item in items if not item.get_closest_marker("proof")]
    config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("proof")])
    items[:] = kept
