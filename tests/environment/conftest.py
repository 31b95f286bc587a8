"""Rooms for worlds: the host's root in namespaces, and a Python image in Docker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from small_world import HOST_ROOT, SLIM, Room, provider_of

from ramify.contracts.errors import RamifyError


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """On the host's root, in namespaces."""
    provider = provider_of(HOST_ROOT)
    yield Room(provider, HOST_ROOT, tmp_path)
    await provider.aclose()


@pytest_asyncio.fixture
async def docker_room(tmp_path: Path) -> AsyncIterator[Room]:
    """On python:3.12-slim, in Docker."""
    provider = provider_of(SLIM)
    try:
        await provider.prepare(SLIM)
    except RamifyError as error:
        await provider.aclose()
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the image {SLIM.image} is missing: {error}")
    yield Room(provider, SLIM, tmp_path)
    await provider.aclose()
