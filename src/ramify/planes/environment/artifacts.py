"""What is kept of the agent's work: collect hooks, then copies of the task's artifacts."""

from __future__ import annotations

import asyncio
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import TransferLimitError
from ramify.contracts.events import LogEvent
from ramify.contracts.inside import ARTIFACTS_DIR
from ramify.contracts.sandbox import MIB, Sandbox, TransferLimits
from ramify.contracts.task import Artifact, CollectHook

_LIMITS = TransferLimits(max_bytes=256 * MIB, max_file_bytes=128 * MIB, max_entries=20_000)
_OUTPUT_LIMIT = MIB


async def collect_artifacts(ctx: Context) -> None:
    """Run a task's collect hooks, then copy its artifacts to `artifacts/` of the rollout.

    /logs/artifacts is kept too, whether it is declared or not. Links are left out; an artifact
    that is not there, that exceeds the limits or whose place is taken by an earlier one is left
    out whole. What was kept, and what not and why, stands in `artifacts.json`. Neither that nor a
    hook that fails changes the outcome: the verifier decides on what it finds.

    Raises:
        SandboxError: the sandbox failed.
    """
    package, sandbox = ctx.task.package, ctx.sandbox
    if package is None or sandbox is None:
        return
    for hook in package.verifier.collect:
        await _run(hook, sandbox, ctx)
    wanted = list(package.artifacts)
    if not any(posixpath.normpath(artifact.source) == ARTIFACTS_DIR for artifact in wanted):
        wanted.insert(0, Artifact(ARTIFACTS_DIR))
    folder = ctx.artifacts / "artifacts"
    await asyncio.to_thread(_empty, folder)
    entries: list[dict[str, Any]] = []
    taken: list[str] = []
    for artifact in wanted:
        entry = await _keep(artifact, sandbox, ctx, folder, taken)
        if entry is not None:
            entries.append(entry)
    await asyncio.to_thread(_report, ctx.artifacts, entries)


async def _run(hook: CollectHook, sandbox: Sandbox, ctx: Context) -> None:
    result = await sandbox.exec(
        hook.command,
        user=hook.user,
        cwd=ctx.workdir,
        timeout_sec=hook.timeout_sec,
        output_limit=_OUTPUT_LIMIT,
        kill_leftovers=True,
    )
    if not result.ok:
        said = (result.stderr or result.stdout)[-500:].decode(errors="replace")
        fields = {"command": hook.command, "exit_code": result.exit_code, "said": said}
        now = ctx.clock.now()
        ctx.observer.emit(LogEvent(ctx.rollout_id, now, "warning", "a collect hook failed", fields))


async def _keep(
    artifact: Artifact, sandbox: Sandbox, ctx: Context, folder: Path, taken: list[str]
) -> dict[str, Any] | None:
    """Copy one artifact; returns what is reported of it (None: the implicit one, not there)."""
    source = posixpath.join(ctx.workdir, artifact.source)
    place = artifact.destination or artifact.source.lstrip("/")
    entry: dict[str, Any] = {"source": artifact.source, "destination": place}
    if any(_overlap(place, other) for other in taken):
        return {**entry, "left_out": "an earlier artifact has its place"}
    local = folder / place
    await asyncio.to_thread(local.parent.mkdir, parents=True, exist_ok=True)
    try:
        report = await sandbox.download(source, local, limits=_LIMITS)
    except FileNotFoundError:
        implicit = artifact == Artifact(ARTIFACTS_DIR)
        return None if implicit else {**entry, "left_out": "it does not exist"}
    except TransferLimitError as error:
        await asyncio.to_thread(_remove, local)
        return {**entry, "left_out": str(error)}
    taken.append(place)
    excluded = await asyncio.to_thread(_exclude, local, artifact)
    if artifact == Artifact(ARTIFACTS_DIR) and not report.files:
        return None
    dropped = list(report.dropped)
    return {**entry, "files": report.files - excluded, "bytes": report.bytes, "dropped": dropped}


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _exclude(local: Path, artifact: Artifact) -> int:
    """Remove what an artifact's patterns leave out; returns how many files that were."""
    if not artifact.exclude or not local.is_dir():
        return 0
    count = 0
    for path in sorted(local.rglob("*"), reverse=True):
        if not artifact.leaves_out(path.relative_to(local).as_posix()):
            continue
        if path.is_dir():
            path.rmdir()  # Everything below it is left out too, and came first.
        else:
            path.unlink()
            count += 1
    return count


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _empty(folder: Path) -> None:
    """Remove what an earlier attempt kept."""
    _remove(folder)
    _remove(folder.with_suffix(".json"))


def _report(rollout: Path, entries: list[dict[str, Any]]) -> None:
    folder = rollout / "artifacts"
    for path, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(path):
            os.rmdir(path)
    if entries:
        rollout.mkdir(parents=True, exist_ok=True)
        (rollout / "artifacts.json").write_bytes(msgspec.json.encode(entries) + b"\n")
