"""One verification per repository at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ramify.apps.pipeline.lock import repository_lock
from ramify.contracts.errors import ConfigError, InfraError


def lock(
    root: Path,
    repository: str,
    *,
    wait: bool = False,
    hear: Callable[[str], None] = lambda line: None,
) -> AbstractAsyncContextManager[None]:
    return repository_lock(
        root / "artifacts",
        root / repository,
        run_id=f"run-{repository}",
        since="2026-01-01T00:00:00Z",
        wait=wait,
        on_wait=hear,
    )


async def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    async with lock(tmp_path, "a"):
        with pytest.raises(InfraError) as caught:
            async with lock(tmp_path, "a"):
                pass
        assert str(caught.value) == (
            f"{tmp_path}/a is being verified already (run run-a of process {os.getpid()} on "
            f"{os.uname().nodename}, since 2026-01-01T00:00:00Z); --wait waits for it"
        )
        async with lock(tmp_path, "b"):
            pass
    async with lock(tmp_path, "a"):
        pass


async def test_whoever_waits_says_for_whom_and_gets_it(tmp_path: Path) -> None:
    told: list[str] = []
    order: list[str] = []
    holding, waiting = asyncio.Event(), asyncio.Event()

    def hear(line: str) -> None:
        told.append(line)
        waiting.set()

    async def first() -> None:
        async with lock(tmp_path, "a"):
            holding.set()
            await waiting.wait()
            order.append("first")

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        await holding.wait()
        async with lock(tmp_path, "a", wait=True, hear=hear):
            order.append("second")
    assert order == ["first", "second"]
    assert len(told) == 1
    assert told[0].startswith("waiting for run run-a of process ")


async def test_waiting_can_be_called_off(tmp_path: Path) -> None:
    async with lock(tmp_path, "a"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), lock(tmp_path, "a", wait=True):
                pass
    async with lock(tmp_path, "a"):
        pass


async def test_a_repository_by_another_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "alias").symlink_to("a")
    async with lock(tmp_path, "a"):
        with pytest.raises(InfraError):
            async with lock(tmp_path, "alias"):
                pass


async def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_lock import lock
async def main():
    async with lock(Path({str(tmp_path)!r}), "a"):
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert await other.stdout.readline() == b"held\n"
    with pytest.raises(InfraError, match=f"process {other.pid} "):
        async with lock(tmp_path, "a"):
            pass
    other.kill()
    await other.wait()
    async with lock(tmp_path, "a"):
        pass


async def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    async with lock(tmp_path, "a"):
        pass
    (path,) = (tmp_path / "artifacts" / "locks").iterdir()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic.*AGENT_ARTIFACT_DIR"):
        async with lock(tmp_path, "a"):
            pass
    assert not (tmp_path / "elsewhere").exists()
