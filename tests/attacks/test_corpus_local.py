"""The corpus of attacks in our own namespaces: a sample, and by `make proof` all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from attack_cases import prove
from attack_ground import Field, new_ground, open_field
from corpus import ATTACKS, sample
from residual import RESIDUALS, admit

from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field(
    namespaces_problem: str | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Field | None]:
    if namespaces_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    async with open_field(LocalProvider(), tmp_path_factory.mktemp("field"), None) as made:
        yield made


SAMPLE = sample(60)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.proof) for n in ATTACKS]
)
async def test_attack(field: Field, tmp_path: Path, name: str) -> None:
    await prove(ATTACKS[name], new_ground(field, tmp_path))


@pytest.mark.parametrize("name", RESIDUALS)
async def test_what_pays_is_admitted(field: Field, tmp_path: Path, name: str) -> None:
    await admit(RESIDUALS[name], new_ground(field, tmp_path))
