"""Where a verifier runs, and how the agent's work gets there: only bytes, and only as evidence."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.errors import (
    InfraError,
    InvalidRewardError,
    TransferLimitError,
    UnsupportedError,
)
from ramify.contracts.frozen import Freezable, HandsOver
from ramify.contracts.inside import ARTIFACTS_DIR, inside
from ramify.contracts.result import KeptPath
from ramify.contracts.sandbox import (
    Mount,
    NetworkPolicy,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    TransferLimits,
)
from ramify.contracts.task import Artifact, TaskPackage
from ramify.planes.reward.disarm import disarmed_in
from ramify.planes.reward.final import keep_final, new_final, write_manifest

Prepare = Callable[[Sandbox, Context], Awaitable[None]]
"""Brings a fresh sandbox to the task's start, as the world's `provision` did for the agent's."""

_MAX_NOTES = 20
_OUTPUT_LIMITS = TransferLimits(links="drop")
_WORKDIR_LIMITS = TransferLimits(links="inside")


@dataclass(frozen=True, slots=True)
class Carried:
    """What crossed from the agent's sandbox: paths that did not exist, and entries left out.

    `paths` are all that were to cross: whatever stands there is the agent's. `disarmed` says what
    was taken out of its git repositories.
    """

    absent: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    disarmed: tuple[str, ...] = ()


def agent_sandbox(ctx: Context) -> tuple[Sandbox, SandboxProvider]:
    """The agent's sandbox and its provider. Raises InfraError when the rollout has none."""
    if ctx.sandbox is None or ctx.sandboxes is None:
        raise InfraError("there is no sandbox to verify; score inside a rollout")
    return ctx.sandbox, ctx.sandboxes


@asynccontextmanager
async def fresh_sandbox(
    ctx: Context, package: TaskPackage, prepare: Prepare, mounts: tuple[Mount, ...] = ()
) -> AsyncGenerator[Sandbox]:
    """A locked-down sandbox on the pristine image, at the task's start; torn down on exit.

    A separate verifier with an image of its own gets that, as it is. `mounts` are laid over it.
    """
    sandbox, provider = agent_sandbox(ctx)
    spec = _verifier_spec(sandbox, provider, package)
    spec = msgspec.structs.replace(spec, mounts=(*spec.mounts, *mounts))
    if has_own_image(package):
        image = await provider.prepare(spec)
    else:
        image = ctx.image
    fresh = await provider.create(spec, image)
    try:
        if not has_own_image(package):
            await prepare(fresh, ctx)
        yield fresh
    finally:
        await uninterrupted(fresh.teardown())


@asynccontextmanager
async def frozen_sandbox(
    ctx: Context, package: TaskPackage, mounts: tuple[Mount, ...] = ()
) -> AsyncGenerator[Sandbox]:
    """A locked-down sandbox on the agent's frozen file system, with none of its processes.

    `mounts` are laid over it; only where the provider can, and the sandbox is not handed over.
    The agent's sandbox is spent afterwards. Where it can be handed over, it goes on in place, with
    the verifier's privileges; else a frozen image carries the files, and is discarded on exit.

    Raises: UnsupportedError where the provider cannot freeze.
    """
    sandbox, provider = agent_sandbox(ctx)
    if not isinstance(sandbox, Freezable) or provider.capabilities().snapshot == "none":
        raise UnsupportedError(
            f"sandbox {provider.name!r} cannot freeze a file system, which verifying at level "
            "`filesystem` needs; choose another sandbox or another level"
        )
    spec = _verifier_spec(sandbox, provider, package)
    spec = msgspec.structs.replace(spec, mounts=(*spec.mounts, *mounts))
    if isinstance(sandbox, HandsOver):
        try:
            copy = await sandbox.hand_over(spec)
        except UnsupportedError:
            pass  # Not in place: then the long way, below.
        else:
            try:
                yield copy
            finally:
                await uninterrupted(copy.teardown())
            return
    image = await sandbox.freeze()
    try:
        copy = await provider.create(spec, image)
        try:
            yield copy
        finally:
            await uninterrupted(copy.teardown())
    finally:
        await uninterrupted(provider.discard(image))


def has_own_image(package: TaskPackage) -> bool:
    """Whether the verifier's image is another than the agent's."""
    own, task = package.verifier.sandbox, package.sandbox
    if own is None:
        return False
    return (own.image, own.build, own.compose) != (task.image, task.build, task.compose)


async def carry_outputs(
    ctx: Context,
    package: TaskPackage,
    target: Sandbox,
    *,
    workdir: bool,
    owner: str | None = None,
    disarm: bool = False,
) -> Carried:
    """Copy the declared outputs, and with `workdir` the work directory, into `target`.

    For a separate verifier the declared artifacts and /logs/artifacts are outputs too. Each
    replaces what stands at its path in `target`; one that the agent's sandbox does not have is
    removed there too. With `owner` it is that user's, and open to every user there. With `disarm`
    git repositories cross without what would run programs.

    Raises:
        InvalidRewardError: `no_evidence`, the agent's tree exceeds the limits on what may cross.
        SandboxError: either sandbox failed.
    """
    source, _ = agent_sandbox(ctx)
    root = posixpath.normpath(ctx.workdir)
    outputs = _crossing(root, package, workdir)
    kept: list[KeptPath] = []
    dropped: list[str] = []
    disarmed: list[str] = []
    folder = await new_final(ctx.artifacts)
    for index, output in enumerate(outputs):
        path = output.source
        entry = KeptPath(path, str(index))
        local = folder / entry.place
        # The work directory keeps the links within it, as programs installed there need them.
        whole = _is_below(root, path) and (workdir or package.verifier.separate)
        limits = _WORKDIR_LIMITS if whole else _OUTPUT_LIMITS
        try:
            report = await source.download(path, local, limits=limits)
        except FileNotFoundError:
            kept.append(KeptPath(path, ""))
            await _remove(target, path)
            continue
        except TransferLimitError as error:
            raise InvalidRewardError("no_evidence", f"{path}: {error}") from error
        dropped += [f"{path}: {line}" for line in report.dropped]
        await asyncio.to_thread(_exclude, local, output)
        if disarm:
            name = posixpath.basename(path)
            notes = await asyncio.to_thread(disarmed_in, local, name)
            disarmed += [f"{path}: {note}" for note in notes]
        if owner is not None:
            await asyncio.to_thread(_open, local)
        await target.upload(local, path, owner=owner or package.verifier.user, clear=True)
        kept.append(entry)
    await write_manifest(ctx.artifacts, root, kept)
    absent = tuple(entry.path for entry in kept if not entry.place)
    return Carried(
        absent, tuple(dropped), tuple(entry.path for entry in kept), tuple(disarmed[:_MAX_NOTES])
    )


def crossing_paths(ctx: Context, package: TaskPackage, *, workdir: bool) -> list[str]:
    """Paths inside that `carry_outputs` will replace."""
    root = posixpath.normpath(ctx.workdir)
    return [output.source for output in _crossing(root, package, workdir)]


def _crossing(root: str, package: TaskPackage, workdir: bool) -> list[Artifact]:
    outputs = _outputs(root, package)
    if not workdir:
        return outputs
    return [Artifact(root), *(o for o in outputs if not _is_below(o.source, root))]


async def keep_in_place(ctx: Context, package: TaskPackage) -> None:
    """Keep the final state of a sandbox that is verified as it stands, for scoring it again."""
    source, _ = agent_sandbox(ctx)
    root = posixpath.normpath(ctx.workdir)
    outside = [o.source for o in _outputs(root, package) if not _is_below(o.source, root)]
    await keep_final(source, ctx.artifacts, root, [root, *outside])


def _outputs(root: str, package: TaskPackage) -> list[Artifact]:
    """What crosses besides the work directory: absolute paths, none twice, none in another."""
    wanted = [Artifact(path) for path in package.outputs]
    if package.verifier.separate:
        wanted += [*package.artifacts, Artifact(ARTIFACTS_DIR)]
    found: list[Artifact] = []
    for artifact in wanted:
        path = posixpath.normpath(posixpath.join(root, artifact.source))
        if not any(_is_below(path, other.source) for other in found):
            found.append(msgspec.structs.replace(artifact, source=path))
    return found


def _exclude(local: Path, artifact: Artifact) -> None:
    if not artifact.exclude or not local.is_dir():
        return
    for path in sorted(local.rglob("*"), reverse=True):
        if artifact.leaves_out(path.relative_to(local).as_posix()):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()  # Everything below it is left out too, and came first.
            else:
                path.unlink()


def _open(local: Path) -> None:
    """Let every user of the verifier's sandbox read it, and make files in its directories."""
    for path in (local, *(local.rglob("*") if local.is_dir() else ())):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o444))


def _verifier_spec(
    sandbox: Sandbox, provider: SandboxProvider, package: TaskPackage
) -> SandboxSpec:
    """The agent's spec without what was the agent's: environment, user and network.

    A provider that does not isolate at all has no lockdown and no network of its own; that was
    settled for the agent's sandbox, and the result says so.
    """
    can = provider.capabilities()
    network = package.verifier.network or NetworkPolicy()
    own = package.verifier.sandbox
    base = sandbox.spec
    if own is not None and has_own_image(package):
        base = own
    elif own is not None:
        base = msgspec.structs.replace(base, limits=own.limits, workdir=own.workdir)
    lacking = [
        name
        for name in base.limits.__struct_fields__
        if getattr(base.limits, name) is not None and name not in can.limits
    ]
    return msgspec.structs.replace(
        base,
        user=None,
        env=package.sandbox.env if own is None else own.env,
        limits=msgspec.structs.replace(base.limits, **dict.fromkeys(lacking)),
        network=sandbox.spec.network if can.isolation == "none" else network,
        lockdown=can.lockdown,
        live=False,
        labels=sandbox.spec.labels,
    )


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root.rstrip('/')}/")


async def _remove(target: Sandbox, path: str) -> None:
    result = await target.exec(f"rm -rf -- {inside(path)}", user="root")
    if not result.ok:
        said = result.stderr[-500:].decode(errors="replace")
        raise InfraError(f"cannot remove {path} in the verifier's sandbox: {said}")
