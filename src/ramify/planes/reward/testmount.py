"""The sandbox of isolated tests: they lie there where nothing can write to them.

A shell reads a script while it runs: tested code that can write to it is obeyed, and may take its
line out again before anybody looks. A copy of the tests is therefore mounted from the host,
read-only, when the sandbox is made, and goes with the sandbox.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import shutil
import stat
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from ramify.contracts.context import Context
from ramify.contracts.errors import SandboxStartError
from ramify.contracts.inside import TESTS_DIR, WORLD_FILE
from ramify.contracts.sandbox import Mount, Sandbox, SandboxProvider
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Hardening, TaskPackage
from ramify.planes.reward.stage import (
    Prepare,
    agent_sandbox,
    crossing_paths,
    fresh_sandbox,
    has_own_image,
)
from ramify.planes.reward.tests import tests_tree

_READ_ONLY = "read-only"


class Place(NamedTuple):
    """Where tests run; `tests` says how they lie there: `read-only`, or `writable` and why."""

    sandbox: Sandbox
    tests: str


def lie_read_only(sandbox: Sandbox) -> bool:
    """Whether /tests of a sandbox is a mount that cannot be written to."""
    return any(m.target == TESTS_DIR and m.mode == "ro" for m in sandbox.spec.mounts)


@asynccontextmanager
async def tests_sandbox(
    ctx: Context,
    package: TaskPackage,
    prepare: Prepare,
    hardening: Hardening,
    *,
    workdir: bool,
) -> AsyncGenerator[Place]:
    """A fresh sandbox (see `fresh_sandbox`); with isolated tests mounted in it, where they can be.

    What the task's world answered is among mounted tests, as it would be among others. `workdir`:
    the agent's work directory will be copied there.

    Raises: ConfigError (no tests), InfraError, SandboxError.
    """
    why = _hindrance(ctx, package, hardening, workdir)
    async with AsyncExitStack() as stack:
        if not why:
            copy = await stack.enter_async_context(_copy(ctx, package))
            mount = Mount(copy, TESTS_DIR)
            try:
                made = fresh_sandbox(ctx, package, prepare, (mount,))
                sandbox = await stack.enter_async_context(made)
            except SandboxStartError as error:
                # A daemon that does not see this directory, or a file system that cannot be
                # mounted for other owners; where it is anything else, it fails again below.
                why = f"the mount was refused: {str(error)[:200]}"
            else:
                yield Place(sandbox, _READ_ONLY)
                return
        sandbox = await stack.enter_async_context(fresh_sandbox(ctx, package, prepare))
        yield Place(sandbox, f"writable: {why}")


def _hindrance(ctx: Context, package: TaskPackage, hardening: Hardening, workdir: bool) -> str:
    """Why the tests cannot be mounted; empty where they can."""
    provider: SandboxProvider = agent_sandbox(ctx)[1]
    own = package.verifier.sandbox if has_own_image(package) else package.sandbox
    if hardening is not Hardening.ISOLATED:
        return "not isolated"
    if not package.verifier.tests:
        return "they are part of the verifier's image"
    if "ro" not in provider.capabilities().mounts:
        return f"the {provider.name} sandbox has no read-only mounts here"
    if own is not None and own.compose is not None:
        return "a Compose project takes no mounts but its own"
    if any(_overlap(path) for path in crossing_paths(ctx, package, workdir=workdir)):
        return f"the agent's work lies in {TESTS_DIR} too"
    return ""


def _overlap(path: str) -> bool:
    """Whether a path lies in the tests, or they in it."""
    one, two = posixpath.join(path, ""), f"{TESTS_DIR}/"
    return one.startswith(two) or two.startswith(one)


@asynccontextmanager
async def _copy(ctx: Context, package: TaskPackage) -> AsyncGenerator[str]:
    """The tests, as they are mounted: in a directory that nobody else on the host can enter.

    It lies among the artifacts: a daemon may see the directories of jobs, and not our own.
    """
    world = ctx.artifacts / WORLD_FILE
    # Root of a container may be another user than we are, without power over our files.
    anyone = os.geteuid() != 0 or package.verifier.user not in (None, "root", "0")
    async with Scratch(ctx.artifacts) as folder, tests_tree(ctx, package) as tests:
        assert tests is not None  # there are some: `_hindrance`
        copy = folder / "tests"
        await asyncio.to_thread(_lay, tests, copy, world, anyone)
        yield await asyncio.to_thread(os.path.realpath, copy)


def _lay(tests: Path, copy: Path, world: Path, anyone: bool) -> None:
    _lay_tree(tests, copy, anyone)
    if world.is_file() and not os.path.lexists(copy / WORLD_FILE):
        shutil.copyfile(world, copy / WORLD_FILE)
        (copy / WORLD_FILE).chmod(0o644)


def _lay_tree(source: Path, target: Path, anyone: bool) -> None:
    """Copy regular files, directories and links (as links), as an upload does."""
    target.mkdir(mode=0o700)
    for entry in os.scandir(source):
        place = target / entry.name
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            _lay_tree(Path(entry.path), place, anyone)
        elif entry.is_file():
            shutil.copyfile(entry.path, place)
            info = entry.stat()
            place.chmod(_mode(info.st_mode, anyone))
            os.utime(place, ns=(info.st_mtime_ns, info.st_mtime_ns))
    target.chmod(_mode(source.stat().st_mode, anyone))


def _mode(mode: int, anyone: bool) -> int:
    """That of a copy: its owner, or `anyone`, may read it and start it as before."""
    if stat.S_ISDIR(mode):
        return mode & 0o755 | (0o755 if anyone else 0o700)
    runs = 0o111 if anyone and mode & 0o111 else 0
    return mode & 0o755 | (0o444 if anyone else 0o400) | runs
