"""What a pipeline is, and what a run of one answers: the records that both halves share.

`Response` and everything below it is what `ramify verify --json` prints and `manifest.json` holds;
the fields that are not seed 003's own come after it in each record.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ramify.contracts.reports import CaseResult
from ramify.contracts.sandbox import MIB, Limits

SCHEMA_VERSION = 1
CONFIG_FILE = "agent.yaml"

NetworkWish = Literal["none", "packages", "full"]
"""`packages` reaches the package registries that are known, through the proxy of the engine."""

RepoWrite = Literal["guard", "deny", "discard"]

Reason = Literal[
    "ok",
    "step_failed",
    "timeout",
    "oom",
    "write_violation",
    "config_changed",
    "protected_changed",
    "moving_tree",
    "artifact_quota",
]
"""Why a run has its status. All but `ok` are FAIL; what is our own failure is raised instead."""

StepStatus = Literal["passed", "failed", "skipped"]

ViolationKind = Literal["write", "delete", "replace", "new", "mode", "git"]
"""What a step did to a path: wrote to it (or opened it for writing), removed it, put another
directory in its place, made it, changed the mode or owner of a directory, or touched `.git`."""


class StepSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step: a shell command.

    `command` is the last argument of `shell`. `cwd` is relative to the project. `timeout_sec`
    None: what is left of the pipeline's. `network` None: `full` for a step named `install`, else
    `none`. Exit code 0 and `allow_exit_codes` pass. Processes that a step leaves behind are killed
    at its end, unless `background`: then they live until the end of the run. `artifacts` are globs
    relative to the project, kept in `build/`; `junit` are globs of reports beside `$JUNIT_DIR`.
    """

    name: str
    command: str
    env: dict[str, str] = {}
    cwd: str = "."
    shell: tuple[str, ...] = ("/bin/sh", "-e", "-c")
    timeout_sec: float | None = None
    network: NetworkWish | None = None
    allow_exit_codes: tuple[int, ...] = ()
    background: bool = False
    artifacts: tuple[str, ...] = ()
    junit: tuple[str, ...] = ()


class CacheSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A build cache between runs, at /artifacts/cache.

    `key` names the files that it depends on (lock files), as `protected_paths` does. Seen
    copy-on-write; what a run adds is kept only after PASS.
    """

    key: tuple[str, ...]


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of old runs of a repository is kept: the newest, within both bounds."""

    runs: int = 20
    max_bytes: int = 10 * 1024 * MIB


class PipelineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pipeline as `agent.yaml` declares it.

    Paths are relative to the project: the directory of `agent.yaml`, which is the repository's own
    or one in it. `:/path` among `protected_paths` is relative to the repository.

    `timeout_sec` is of all steps together, `grace_sec` what a step has between SIGTERM and
    SIGKILL. `repo_write`: `guard` lets steps write into a copy-on-write view and fails one that
    changed what is not ignored by git; `deny` mounts the repository read-only; `discard` lets them
    write and forgets it. `image` None: the host's root, read-only (`local`), or the provider's
    default. `protected_paths` are pathspecs (files, directories, globs) that must be as the
    base commit has them: `protected` says whether a difference fails the run or is put back in the
    view of the steps. `secrets` and `pass_env` name variables of the host that steps get; values of
    `secrets` are masked everywhere. `max_artifact_bytes` bounds what a run may write into its
    directory. `limits` without `memory_mb`: four fifths of the machine's memory, which the manifest
    names. `snapshot` `copy` verifies a copy of the repository, so that it may be edited on.
    `writable` are directories of the project that steps may write to under `deny`.
    """

    steps: tuple[StepSpec, ...]
    timeout_sec: float = 3600.0
    grace_sec: float = 5.0
    repo_write: RepoWrite = "guard"
    image: str | None = None
    protected_paths: tuple[str, ...] = ()
    protected: Literal["fail", "restore"] = "fail"
    secrets: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    env: dict[str, str] = {}
    writable: tuple[str, ...] = ()
    cache: CacheSpec | None = None
    retention: Retention = Retention()
    snapshot: Literal["overlay", "copy"] = "overlay"
    limits: Limits = Limits()
    max_artifact_bytes: int = 10 * 1024 * MIB


class WriteViolation(msgspec.Struct, frozen=True):
    """A step changed something of the repository that it must not."""

    path: str
    kind: ViolationKind
    step: str


class CommandExecuted(msgspec.Struct, frozen=True):
    """A step that was started, exactly as seed 003 lists it."""

    name: str
    command: str
    exit_code: int
    duration_ms: int


class StepReport(msgspec.Struct, frozen=True):
    """All there is to know about a step; those after the first failure are `skipped`.

    `exit_code` is 124 after a timeout, 128+n after signal n; None where it did not run. `log` is
    relative to the run's directory. `leftover_processes` counts what was still alive at its end.
    `cpu_ms` is CPU time of all its processes, `peak_rss` what the largest of them held in memory at
    most, in bytes, as the kernel counted both; None with the reason in `not_measured`.
    """

    name: str
    command: str
    status: StepStatus
    started_at: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    oom_killed: bool = False
    duration_ms: int = 0
    network: NetworkWish = "none"
    log: str | None = None
    log_bytes: int = 0
    log_dropped_bytes: int = 0
    peak_rss: int | None = None
    cpu_ms: int | None = None
    not_measured: str | None = None
    leftover_processes: int = 0
    write_violations: tuple[WriteViolation, ...] = ()
    error: str | None = None


class Platform(msgspec.Struct, frozen=True):
    """What it ran on. `container_image` names the image, `host` where it was the host's root."""

    os: str
    arch: str
    container_image: str
    image_digest: str = ""
    sandbox: str = ""


class Artifact(msgspec.Struct, frozen=True):
    """A file of the run. `path` is relative to the run's directory."""

    path: str
    sha256: str
    bytes: int


class TestsReport(msgspec.Struct, frozen=True):
    """What test runners reported. `failed` counts errors too; `unreadable` names bad reports."""

    total: int
    passed: int
    failed: int
    skipped: int
    items: tuple[CaseResult, ...] = ()
    unreadable: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """What was verified, by what, and how it went.

    `commit_sha` is empty without git; then `tree_sha` is `sha256:...`. `patch_sha256` identifies
    the difference between the commit and the tree; empty when there is none (`dirty` is false).
    `unpinned`: there is no committed `agent.yaml`, so the working copy's was used.
    """

    timestamp_start: str
    timestamp_end: str
    commit_sha: str
    commands_executed: tuple[CommandExecuted, ...]
    platform: Platform
    run_id: str
    status: Literal["PASS", "FAIL"]
    reason: Reason
    schema_version: int
    tree_sha: str
    dirty: bool
    patch_sha256: str
    base_sha: str
    pipeline_sha256: str
    unpinned: bool
    repo_write: RepoWrite
    limits: Limits
    env_names: tuple[str, ...]
    verifier_version: str
    steps: tuple[StepReport, ...]
    restored: tuple[str, ...] = ()
    changed_config: tuple[str, ...] = ()


class Response(msgspec.Struct, frozen=True):
    """What a run answers. `artifact_paths` are absolute; `message` is one line for a person."""

    status: Literal["PASS", "FAIL"]
    run_id: str
    tail_log: str
    artifact_paths: tuple[str, ...]
    manifest: Manifest
    reason: Reason
    message: str
    schema_version: int
    unpinned: bool
    write_violations: tuple[WriteViolation, ...] = ()
    tests: TestsReport | None = None
    artifacts: tuple[Artifact, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the gate is open."""
        return self.status == "PASS"


class RunEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened, live: `--follow` prints these.

    `kind`: `run_started`, `step_started`, `output` (`text`, safe to show, secrets masked),
    `step_ended` (`status`, `exit_code`), `run_ended` (`status`).
    """

    kind: Literal["run_started", "step_started", "output", "step_ended", "run_ended"]
    run_id: str
    at: str = ""
    step: str = ""
    number: int = 0
    text: str = ""
    status: str = ""
    exit_code: int | None = None
    duration_ms: int = 0
