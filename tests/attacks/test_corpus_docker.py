"""The corpus of attacks in Docker containers: a sample, and by `make proof` all of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from attack_cases import prove
from attack_ground import Field, new_ground, open_field
from corpus import ATTACKS, sample
from residual import RESIDUALS, admit

from ramify.planes.sandbox.docker import DockerProvider

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field(
    docker_problem: str | None, ramify_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Field | None]:
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    place = tmp_path_factory.mktemp("field")
    async with open_field(DockerProvider(ramify_home), place, IMAGE) as made:
        yield made


SAMPLE = sample(30)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.proof) for n in ATTACKS]
)
async def test_attack(field: Field, tmp_path: Path, name: str) -> None:
    await prove(ATTACKS[name], new_ground(field, tmp_path))


@pytest.mark.parametrize("name", RESIDUALS)
async def test_what_pays_is_admitted(field: Field, tmp_path: Path, name: str) -> None:
    await admit(RESIDUALS[name], new_ground(field, tmp_path))
