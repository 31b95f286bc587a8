"""Run a task by hand: every path it names lies below a directory that RAMIFY_ROOT names."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ramify.contracts.task import IsolationLevel, Task, TaskPackage

RunByHand = Callable[[Task, bool], Awaitable[float]]


async def _script(script: Path, root: Path, workdir: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "RAMIFY_ROOT": str(root), "TMPDIR": str(root)}
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(script),
        cwd=workdir,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    print(f"{script.name}: exit {process.returncode}\n{output.decode(errors='replace')}")


def _place(package: TaskPackage, root: Path) -> Path:
    workdir = root / package.workdir.lstrip("/")
    workdir.mkdir(parents=True)
    return workdir


async def _agent_phase(package: TaskPackage, root: Path, *, solve: bool) -> Path:
    source = Path(package.path)
    workdir = _place(package, root)
    if package.files is not None:
        shutil.copytree(source / package.files, workdir, dirs_exist_ok=True)
    if package.setup is not None:
        await _script(source / package.setup, root, workdir)
    if solve:
        assert package.solution is not None
        shutil.copytree(source / package.solution.path, root / "solution")
        await _script(root / "solution" / "solve.sh", root, workdir)
    return workdir


def _without_links(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(folder, name).is_symlink()}


def _handed_over(package: TaskPackage, workdir: Path, root: Path) -> tuple[Path, Path]:
    """The verifier's root and work directory, at the strictest level that the task allows."""
    level = package.verifier.isolation or IsolationLevel.OUTPUTS
    if level in (IsolationLevel.FILESYSTEM, IsolationLevel.LIVE):
        return root, workdir
    fresh = root.with_name("verifier")
    target = _place(package, fresh)
    if level is IsolationLevel.WORKDIR:
        shutil.copytree(workdir, target, ignore=_without_links, dirs_exist_ok=True)
        return fresh, target
    assert package.outputs, "the level `outputs` needs declared outputs"
    for output in package.outputs:
        if (workdir / output).is_dir():
            shutil.copytree(workdir / output, target / output, ignore=_without_links)
        elif (workdir / output).is_file():
            shutil.copyfile(workdir / output, target / output)
    return fresh, target


def _reward(logs: Path) -> float:
    if (logs / "reward.json").exists():
        return float(json.loads((logs / "reward.json").read_text())["reward"])
    return float((logs / "reward.txt").read_text())


@pytest.fixture
def run_by_hand(tmp_path: Path) -> RunByHand:
    """`await run_by_hand(task, solve)`: set up, perhaps solve, verify; returns the reward."""

    async def run(task: Task, solve: bool) -> float:
        package = task.package
        assert package is not None
        root = tmp_path / "agent"
        workdir = await _agent_phase(package, root, solve=solve)
        try:
            verifier_root, verifier_workdir = _handed_over(package, workdir, root)
            shutil.copytree(Path(package.path) / "tests", verifier_root / "tests")
            (verifier_root / "logs" / "verifier").mkdir(parents=True)
            await _script(verifier_root / "tests" / "test.sh", verifier_root, verifier_workdir)
            return _reward(verifier_root / "logs" / "verifier")
        finally:
            if (workdir / "run" / "pid").exists():
                os.kill(int((workdir / "run" / "pid").read_text()), signal.SIGKILL)

    return run
