"""A directory of the host for one operation of a driver."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted


@asynccontextmanager
async def scratch() -> AsyncGenerator[Path]:
    """An empty directory of the host, gone at the end."""
    folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="ramify-")
    try:
        yield Path(folder.name)
    finally:
        await uninterrupted(asyncio.to_thread(folder.cleanup))
