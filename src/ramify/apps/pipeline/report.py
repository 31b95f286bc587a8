"""From what happened to the answer: verdict, manifest, response."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from ramify import compose
from ramify.apps.pipeline.masks import Masker
from ramify.apps.pipeline.records import (
    SCHEMA_VERSION,
    Artifact,
    CommandExecuted,
    Manifest,
    PipelineSpec,
    Platform,
    Reason,
    Response,
    StepReport,
    TestsReport,
)
from ramify.apps.pipeline.snapshot import Snapshot

MANIFEST = "manifest.json"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended, and why, in one line for a person."""

    reason: Reason
    message: str

    @property
    def passed(self) -> bool:
        """Whether it is PASS."""
        return self.reason == "ok"


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a manifest tells besides how the steps went."""

    run_id: str
    started: float
    ended: float
    snapshot: Snapshot | None
    base: str
    pipeline_sha256: str
    unpinned: bool
    spec: PipelineSpec
    env_names: tuple[str, ...]
    platform: Platform
    restored: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def stamp(seconds: float) -> str:
    """UTC seconds since the epoch as ISO 8601."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def this_platform(image: str, digest: str, sandbox: str) -> Platform:
    """What steps ran on."""
    return Platform(platform.system().lower(), platform.machine(), image, digest, sandbox)


def listed(paths: tuple[str, ...] | list[str]) -> str:
    """A few paths, for a message; they may hold anything."""
    shown = [repr(path)[1:-1] for path in paths[:_SHOWN]]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def manifest_of(facts: Facts, verdict: Verdict, steps: tuple[StepReport, ...]) -> Manifest:
    """The manifest of a run."""
    snapshot = facts.snapshot
    return Manifest(
        timestamp_start=stamp(facts.started),
        timestamp_end=stamp(facts.ended),
        commit_sha=snapshot.commit if snapshot else "",
        commands_executed=tuple(
            CommandExecuted(step.name, step.command, step.exit_code, step.duration_ms)
            for step in steps
            if step.exit_code is not None
        ),
        platform=facts.platform,
        run_id=facts.run_id,
        status="PASS" if verdict.passed else "FAIL",
        reason=verdict.reason,
        schema_version=SCHEMA_VERSION,
        tree_sha=snapshot.tree if snapshot else "",
        dirty=snapshot.dirty if snapshot else False,
        patch_sha256=snapshot.patch_sha256 if snapshot else "",
        base_sha=facts.base,
        pipeline_sha256=facts.pipeline_sha256,
        unpinned=facts.unpinned,
        repo_write=facts.spec.repo_write,
        limits=facts.spec.limits,
        env_names=facts.env_names,
        verifier_version=version("ramify"),
        steps=steps,
        restored=facts.restored,
        changed_config=facts.changed,
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is to look at after a run."""

    directory: Path
    output: bytes
    tests: TestsReport | None
    artifacts: tuple[Artifact, ...]


def response_of(manifest: Manifest, message: str, kept: Kept) -> Response:
    """The answer of a run."""
    names = [MANIFEST, *(artifact.path for artifact in kept.artifacts)]
    return Response(
        status=manifest.status,
        run_id=manifest.run_id,
        tail_log=compose.tail_text(kept.output),
        artifact_paths=tuple(str(kept.directory / name) for name in names),
        manifest=manifest,
        reason=manifest.reason,
        message=message,
        schema_version=SCHEMA_VERSION,
        unpinned=manifest.unpinned,
        write_violations=tuple(v for step in manifest.steps for v in step.write_violations),
        tests=kept.tests,
        artifacts=kept.artifacts,
    )


def masked(reports: tuple[StepReport, ...], masker: Masker) -> tuple[StepReport, ...]:
    """Reports whose commands show no secret."""
    return tuple(
        msgspec.structs.replace(
            each, command=masker.text(each.command), error=masker.text(each.error or "") or None
        )
        for each in reports
    )


def write_manifest(directory: Path, work: Path, manifest: Manifest) -> None:
    """Write manifest.json: whole or not at all, and on the disk. Blocks; raises OSError.

    The draft lies in `work`, on the same file system: what is killed meanwhile leaves nothing that
    looks like a manifest, and `work` goes with the rest of it.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    fresh = work / MANIFEST
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(fresh, flags, 0o644), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(directory / MANIFEST)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def sha256_of(data: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def names_of(env: Mapping[str, str], steps: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that steps had, sorted."""
    return tuple(sorted({*env, *steps}))
