"""The tests of a task, as one tree on the host."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import MIB
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import TaskPackage

_MAX_CHECKED_TESTS = 64
_MAX_CHECKED_BYTES = 16 * MIB


@asynccontextmanager
async def tests_tree(ctx: Context, package: TaskPackage) -> AsyncGenerator[Path | None]:
    """The directory that becomes /tests; None where the verifier's image holds the tests.

    Several sources are laid over each other in a temporary copy.

    Raises:
        ConfigError: a source is not there.
    """
    settings = package.verifier
    if not settings.tests:
        yield None
        return
    sources = [Path(package.path) / name for name in (settings.tests, *settings.more_tests)]
    for name, source in zip((settings.tests, *settings.more_tests), sources, strict=True):
        if not source.exists():
            raise ConfigError(
                f"{name!r} is not a directory", file=package.path, field="verifier.tests"
            )
    if len(sources) == 1 and sources[0].is_dir():
        yield sources[0]
        return
    async with Scratch() as folder:
        await asyncio.to_thread(_lay, sources, folder)
        yield folder


def small_files(tests: Path) -> list[tuple[str, bytes]]:
    """Name and content of the test files; none when they are many or large.

    Decided by the package alone, so an agent cannot turn the check off.
    """
    paths = sorted(path for path in tests.rglob("*") if path.is_file() and not path.is_symlink())
    if len(paths) > _MAX_CHECKED_TESTS:
        return []
    if sum(path.stat().st_size for path in paths) > _MAX_CHECKED_BYTES:
        return []
    return [(path.relative_to(tests).as_posix(), path.read_bytes()) for path in paths]


def _lay(sources: list[Path], folder: Path) -> None:
    folder.chmod(0o755)
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / source.name)
