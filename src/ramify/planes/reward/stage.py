"""Where a verifier runs, and how the agent's work gets there: only bytes, and only as evidence."""

from __future__ import annotations

import asyncio
import posixpath
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import (
    InfraError,
    InvalidRewardError,
    TransferLimitError,
    UnsupportedError,
)
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import (
    Freezable,
    NetworkPolicy,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    TransferLimits,
)
from ramify.contracts.task import TaskPackage

Prepare = Callable[[Sandbox, Context], Awaitable[None]]
"""Brings a fresh sandbox to the task's start, as the world's `provision` did for the agent's."""

_OUTPUT_LIMITS = TransferLimits(links="drop")
_WORKDIR_LIMITS = TransferLimits(links="inside")


@dataclass(frozen=True, slots=True)
class Carried:
    """What crossed from the agent's sandbox: paths that did not exist, and entries left out."""

    absent: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def agent_sandbox(ctx: Context) -> tuple[Sandbox, SandboxProvider]:
    """The agent's sandbox and its provider. Raises InfraError when the rollout has none."""
    if ctx.sandbox is None or ctx.sandboxes is None:
        raise InfraError("there is no sandbox to verify; score inside a rollout")
    return ctx.sandbox, ctx.sandboxes


@asynccontextmanager
async def fresh_sandbox(
    ctx: Context, package: TaskPackage, prepare: Prepare
) -> AsyncGenerator[Sandbox]:
    """A locked-down sandbox on the pristine image, at the task's start; torn down on exit."""
    sandbox, provider = agent_sandbox(ctx)
    spec = _verifier_spec(sandbox, provider, package)
    fresh = await provider.create(spec, ctx.image)
    try:
        await prepare(fresh, ctx)
        yield fresh
    finally:
        await _to_the_end(fresh.teardown())


@asynccontextmanager
async def frozen_sandbox(ctx: Context, package: TaskPackage) -> AsyncGenerator[Sandbox]:
    """A locked-down sandbox on the agent's frozen file system, with none of its processes.

    The agent's sandbox is spent afterwards. The frozen image is discarded on exit.

    Raises: UnsupportedError where the provider cannot freeze.
    """
    sandbox, provider = agent_sandbox(ctx)
    if not isinstance(sandbox, Freezable) or provider.capabilities().snapshot == "none":
        raise UnsupportedError(
            f"sandbox {provider.name!r} cannot freeze a file system, which verifying at level "
            "`filesystem` needs; choose another sandbox or another level"
        )
    spec = _verifier_spec(sandbox, provider, package)
    image = await sandbox.freeze()
    try:
        copy = await provider.create(spec, image)
        try:
            yield copy
        finally:
            await _to_the_end(copy.teardown())
    finally:
        await _to_the_end(provider.discard(image))


async def carry_outputs(
    ctx: Context, package: TaskPackage, target: Sandbox, *, workdir: bool
) -> Carried:
    """Copy the declared outputs, and with `workdir` the work directory, into `target`.

    Each replaces what stands at its path in `target`; a declared output that the agent's sandbox
    does not have is removed there too.

    Raises:
        InvalidRewardError: `no_evidence`, the agent's tree exceeds the limits on what may cross.
        SandboxError: either sandbox failed.
    """
    source, _ = agent_sandbox(ctx)
    root = posixpath.normpath(ctx.workdir)
    outputs = [posixpath.normpath(posixpath.join(root, path)) for path in package.outputs]
    if workdir:
        outputs = [root, *(path for path in outputs if not _is_below(path, root))]
    absent: list[str] = []
    dropped: list[str] = []
    async with host_folder() as folder:
        for index, path in enumerate(outputs):
            local = folder / str(index)
            limits = _WORKDIR_LIMITS if workdir and path == root else _OUTPUT_LIMITS
            try:
                report = await source.download(path, local, limits=limits)
            except FileNotFoundError:
                absent.append(path)
                await _remove(target, path)
                continue
            except TransferLimitError as error:
                raise InvalidRewardError("no_evidence", f"{path}: {error}") from error
            dropped += [f"{path}: {entry}" for entry in report.dropped]
            await target.upload(local, path, owner=package.verifier.user, clear=True)
    return Carried(tuple(absent), tuple(dropped))


@asynccontextmanager
async def host_folder() -> AsyncGenerator[Path]:
    """A temporary directory on the host, readable by us alone, removed on exit."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ramify-evidence-"))
    try:
        yield folder
    finally:
        await _to_the_end(asyncio.to_thread(shutil.rmtree, folder))


def _verifier_spec(
    sandbox: Sandbox, provider: SandboxProvider, package: TaskPackage
) -> SandboxSpec:
    """The agent's spec without what was the agent's: environment, user and network.

    A provider that does not isolate at all has no lockdown and no network of its own; that was
    settled for the agent's sandbox, and the result says so.
    """
    can = provider.capabilities()
    network = package.verifier.network or NetworkPolicy()
    return msgspec.structs.replace(
        sandbox.spec,
        user=None,
        env=package.sandbox.env,
        network=sandbox.spec.network if can.isolation == "none" else network,
        lockdown=can.lockdown,
    )


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root.rstrip('/')}/")


async def _remove(target: Sandbox, path: str) -> None:
    result = await target.exec(f"rm -rf -- {inside(path)}", user="root")
    if not result.ok:
        said = result.stderr[-500:].decode(errors="replace")
        raise InfraError(f"cannot remove {path} in the verifier's sandbox: {said}")


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Await clean-up to its end; a cancellation that comes meanwhile is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
