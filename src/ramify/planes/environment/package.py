"""The world of a task directory: its files, its set-up script and its healthcheck."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramify.contracts.config import SkillMode
from ramify.contracts.context import Context
from ramify.contracts.environment import ReadinessProbe, WorldState
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Healthcheck, TaskPackage, TaskStep

LOG_DIRS = ("agent", "verifier", "artifacts")
"""Directories below /logs that a task may rely on (Harbor's layout)."""


async def provision_package(sandbox: Sandbox, ctx: Context) -> None:
    """Bring a fresh sandbox to a task's start: directories, files, set-up script.

    Used for the agent's sandbox and for every fresh sandbox that verifies. Where the task stands
    at a step, the files of its steps up to that one are there too. In no-skill mode the task's
    skills are removed.

    Raises:
        UnsupportedError: a program that the task needs is not there.
        EnvironmentFailed: a set-up script fails or does not end in time.
        SandboxError: the sandbox fails.
    """
    workdir = ctx.workdir
    logs = " ".join(f'"$RAMIFY_ROOT/logs/{name}"' for name in LOG_DIRS)
    # Root of a hardened sandbox has no power over a directory that the image gives to a user; an
    # empty one it can replace.
    opened = 'chmod 777 "$d" 2>/dev/null || { rmdir "$d" && mkdir "$d" && chmod 777 "$d"; }'
    made = await sandbox.exec(
        f'mkdir -p {logs} "$RAMIFY_ROOT"{shlex.quote(workdir)} && '
        f"for d in {logs}; do {opened} || exit; done",
        user="root",
        cwd="/",
    )
    if not made.ok:
        raise EnvironmentFailed(f"cannot make the task's directories: {_tail(made.stderr)}")
    package = ctx.task.package
    if package is None:
        return
    await _check_needs(sandbox, package)
    root = Path(package.path)
    if package.files is not None:
        await sandbox.upload(root / package.files, workdir)
    if package.setup is not None:
        await sandbox.upload(root / package.setup, "/tmp/ramify-setup", mode=0o755)
        done = await sandbox.exec(
            '"$RAMIFY_ROOT/tmp/ramify-setup"; code=$?; '
            'rm -f "$RAMIFY_ROOT/tmp/ramify-setup"; exit $code',
            user="root",
            cwd=workdir,
            timeout_sec=package.setup_timeout_sec,
        )
        if not done.ok:
            why = "did not end in time" if done.timed_out else f"exited {done.exit_code}"
            raise EnvironmentFailed(f"{package.setup} {why}: {_tail(done.stderr or done.stdout)}")
    if package.skills_dir is not None and ctx.config.skill_mode is SkillMode.NO_SKILL:
        hidden = await sandbox.exec(f"rm -rf -- {inside(package.skills_dir)}", user="root")
        if not hidden.ok:
            raise EnvironmentFailed(f"cannot hide the task's skills: {_tail(hidden.stderr)}")
    if package.at is not None:
        for step in package.steps[: package.at + 1]:
            await _provision_step(sandbox, ctx, package, step)


async def _provision_step(
    sandbox: Sandbox, ctx: Context, package: TaskPackage, step: TaskStep
) -> None:
    """Bring a sandbox to the start of a step: its files and its set-up script."""
    if step.files is not None:
        await sandbox.upload(Path(package.path) / step.files, ctx.workdir)
    if step.setup is None:
        return
    script = f"{ctx.workdir.rstrip('/')}/{step.setup}"
    done = await sandbox.exec(
        f"bash {inside(script)}",
        user=package.agent_user,
        cwd=ctx.workdir,
        timeout_sec=package.setup_timeout_sec,
    )
    if not done.ok:
        why = "did not end in time" if done.timed_out else f"exited {done.exit_code}"
        said = _tail(done.stderr or done.stdout)
        raise EnvironmentFailed(f"{step.setup} of step {step.name} {why}: {said}")


async def _check_needs(sandbox: Sandbox, package: TaskPackage) -> None:
    if not package.needs:
        return
    names = " ".join(shlex.quote(name) for name in package.needs)
    found = await sandbox.exec(
        f'for p in {names}; do command -v "$p" >/dev/null || echo "$p"; done'
    )
    if missing := found.stdout.decode(errors="replace").split():
        raise UnsupportedError(
            f"the task needs {', '.join(missing)}, which this sandbox does not have; use an image "
            "that has it (`docker_image` in task.toml) or install it on the host"
        )


class PackageEnvironment:
    """Implements `contracts.environment.Forkable` for a task directory.

    Its state is files in the sandbox, so it needs no snapshot of its own: freezing the sandbox is
    the same cut.
    """

    def __init__(self) -> None:
        self._sandbox: Sandbox | None = None
        self._ctx: Context | None = None
        self._failures = 0
        self._started = 0.0

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        """Put the task's files in place and run its set-up script; at a step, those of the step."""
        self._sandbox, self._ctx = sandbox, ctx
        self._failures = 0
        package = ctx.task.package
        if package is not None and package.at is not None:
            await _provision_step(sandbox, ctx, package, package.steps[package.at])
        else:
            await provision_package(sandbox, ctx)
        self._started = ctx.clock.monotonic()

    async def readiness(self) -> ReadinessProbe:
        """Run the healthcheck once; give up after its `retries` (start period aside)."""
        if self._sandbox is None or self._ctx is None:
            raise EnvironmentFailed("readiness was asked before provision")
        clock = self._ctx.clock
        check = self._ctx.task.package.healthcheck if self._ctx.task.package else None
        if check is None:
            return ReadinessProbe(True, clock.monotonic())
        result = await self._sandbox.exec(
            check.command, cwd=self._ctx.workdir, timeout_sec=check.timeout_sec
        )
        answered = clock.monotonic()
        if result.ok:
            return ReadinessProbe(True, answered)
        detail = _tail(result.stderr or result.stdout) or f"exit code {result.exit_code}"
        return ReadinessProbe(False, answered, detail, self._again(check, answered, detail))

    def _again(self, check: Healthcheck, now: float, detail: str) -> float:
        if now - self._started < check.start_period_sec:
            return check.start_interval_sec
        self._failures += 1
        if self._failures >= check.retries:
            raise EnvironmentFailed(
                f"the healthcheck failed {self._failures} times: {check.command!r}: {detail}"
            )
        return check.interval_sec

    async def query(self) -> dict[str, Any]:
        """Nothing beyond the files, which a verifier reads in the sandbox itself."""
        return {}

    async def quiesce(self, live: bool) -> Mapping[str, str]:
        """There are no services."""
        return {}

    async def resume(self) -> None:
        """There is nothing to undo."""

    async def fork(self, sandbox: Sandbox, ctx: Context) -> PackageEnvironment:
        """The same world over a copy of the sandbox."""
        child = PackageEnvironment()
        child._sandbox, child._ctx, child._started = sandbox, ctx, ctx.clock.monotonic()
        return child

    async def describe(self) -> WorldState:
        """The files of the work directory: path → size and SHA-256."""
        if self._sandbox is None or self._ctx is None:
            raise EnvironmentFailed("the world was described before provision")
        workdir = self._ctx.workdir
        async with Scratch() as folder:
            place = folder / "files"
            try:
                await self._sandbox.download(workdir, place)
            except FileNotFoundError:
                return WorldState({f"files {workdir}": {}})
            files = await asyncio.to_thread(_digests, place)
        return WorldState({f"files {workdir}": files})

    async def teardown(self) -> None:
        """Nothing lives outside the sandbox."""
        self._sandbox = None


def _digests(place: Path) -> dict[str, str]:
    """Path below `place` → size and SHA-256, in order."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(place))] = f"{path.stat().st_size} sha256:{digest}"
    return found


def _tail(data: bytes) -> str:
    return data[-2000:].decode(errors="replace").strip()
