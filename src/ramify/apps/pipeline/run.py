"""One run of a pipeline, from the repository as it stands to the answer.

The repository is read, never written: steps see it through a mount that keeps their writes apart,
or read-only. What fails on our side is raised; whatever a step does is PASS or FAIL.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify.apps.pipeline.cache import cache_entry, cache_key, keep_entry
from ramify.apps.pipeline.collect import keep_declared, list_artifacts, read_reports
from ramify.apps.pipeline.copying import copy_repository
from ramify.apps.pipeline.events import Teller
from ramify.apps.pipeline.git import find_git
from ramify.apps.pipeline.guard import Change, Guarded, find_changes
from ramify.apps.pipeline.layout import RunDirectory, new_run_id
from ramify.apps.pipeline.logs import CombinedLog
from ramify.apps.pipeline.masks import Masker
from ramify.apps.pipeline.memory import with_memory
from ramify.apps.pipeline.pins import Pin, globs, protected_changes, put_back, without_match
from ramify.apps.pipeline.place import (
    REPO,
    Ground,
    check_mounts,
    check_networks,
    owner_of,
    platform_name,
    root_of,
    sandbox_spec,
    spec_bytes,
    step_environment,
)
from ramify.apps.pipeline.records import PipelineSpec, Response, RunEvent
from ramify.apps.pipeline.report import (
    Facts,
    Kept,
    Verdict,
    listed,
    manifest_of,
    masked,
    names_of,
    response_of,
    sha256_of,
    this_platform,
    write_manifest,
)
from ramify.apps.pipeline.snapshot import Snapshot, changed_since, take_snapshot, with_files
from ramify.apps.pipeline.steps import Look, Stage, Steps
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, InfraError
from ramify.contracts.removal import in_use
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider, SandboxSpec

_FULL = (errno.ENOSPC, errno.EDQUOT)
_INDEX = ".git/index"
_LISTED = ("logs", "build", "junit", "snapshots", "files")


def _unheard(_event: RunEvent) -> None:
    return


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to verify, how, and where.

    Attributes:
        repo: the repository, as it stands.
        spec: the pipeline.
        provider: makes the sandbox.
        clock: time.
        artifacts: ARTIFACT_DIR.
        pin: where the pipeline comes from; None when it came from outside of the repository.
        host: variables of the host, of which steps get those that the pipeline names.
        base: the commit that protected paths are compared with, where there is no pin.
        inside: where steps see the repository; None: where it is.
        root: a spec whose root file system steps get where the pipeline names no image.
        fixtures: further directories that steps see read-only, by where they see them.
        read_git: whether its `.git` is to be read; what a hostile agent left there need not be.
        run_id: unique; made up when None.
        on_event: is told what happens, live.
    """

    repo: Path
    spec: PipelineSpec
    provider: SandboxProvider
    clock: Clock
    artifacts: Path
    pin: Pin | None = None
    host: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    base: str = ""
    inside: str | None = None
    root: SandboxSpec | None = None
    fixtures: Mapping[str, Path] = field(default_factory=dict[str, Path])
    read_git: bool = True
    run_id: str | None = None
    on_event: Callable[[RunEvent], None] = _unheard


async def run_pipeline(request: RunRequest) -> Response:
    """Verify a repository: a fresh sandbox, all steps in order, the answer.

    On whichever way it ends nothing runs or is mounted any more, and the repository is as it was.

    Raises:
        ConfigError: the pipeline, the repository or the artifact directory is not usable.
        UnsupportedError: the provider cannot do what the pipeline asks for.
        InfraError: our side failed, a full disk included; the run counts for nothing.
    """
    repo = request.repo.resolve()
    if not repo.is_dir():
        raise ConfigError("is not a directory", str(request.repo))
    if request.artifacts.resolve().is_relative_to(repo):
        raise ConfigError(
            "the artifact directory lies in the repository; set AGENT_ARTIFACT_DIR to another",
            str(request.artifacts),
        )
    spec = request.spec
    masker = Masker({name: request.host[name] for name in spec.secrets if request.host.get(name)})
    run_id = request.run_id or new_run_id(request.clock.now())
    directory = RunDirectory(request.artifacts, run_id, repo)
    try:
        with in_use(directory.path):
            run = _Run(request, repo, directory, masker)
            try:
                return await run.go()
            finally:
                await uninterrupted(asyncio.to_thread(directory.clear))
    except OSError as error:
        if error.errno in _FULL:
            raise InfraError(
                f"the disk of {directory.root} is full; make room, or set AGENT_ARTIFACT_DIR"
            ) from error
        raise InfraError(f"{error.filename or directory.root}: {error.strerror}") from error


class _Run:
    """State and control flow of one run; used once."""

    def __init__(
        self, request: RunRequest, repo: Path, directory: RunDirectory, masker: Masker
    ) -> None:
        self.request, self.spec, self.repo = request, request.spec, repo
        self.directory, self.masker, self.clock = directory, masker, request.clock
        self.started = request.clock.now()
        self.tell = Teller(directory.path.name, request.clock, request.on_event)
        self.combined = CombinedLog(directory.logs / "combined.log")
        self.steps = Steps(self.spec, directory, self.combined, masker, request.clock, self.tell)
        self.snapshot: Snapshot | None = None
        self.seen: Snapshot | None = None  # what steps see, where that is another one
        self.source = repo
        self.inside = Path(request.inside or repo)
        self.restored: tuple[str, ...] = ()
        self.platform = this_platform("", "", request.provider.name)
        self.env: dict[str, str] = {}

    async def go(self) -> Response:
        """1. what is verified  2. what runs  3. is it still the same  4. the answer."""
        try:
            self.tell.run_started()
            verdict = await self._verify()
            self.steps.skip_rest()
            return await self._answer(verdict)
        finally:
            self.combined.close()

    async def _verify(self) -> Verdict:
        provider = self.request.provider
        await provider.probe()
        check_mounts(self.spec, provider)
        limits = with_memory(self.spec.limits, provider.capabilities())
        self.spec = msgspec.structs.replace(self.spec, limits=limits)
        root = root_of(self.spec, self.request.root, provider.capabilities())
        self.platform = this_platform(platform_name(root), "", provider.name)
        shadow = self.directory.work / "git" if self.request.read_git else None
        reading = asyncio.create_task(take_snapshot(self.repo, shadow))
        try:
            refused = await self._before_steps(reading)
            if refused is not None:
                return refused
            verdict = await self._run_steps(reading, root)
            snapshot = await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # whoever waited for it has raised it; else another error was
        if verdict.passed and self.source == self.repo:  # else a copy was verified
            moved = await changed_since(self.repo, snapshot)
            if moved:
                self._note(f"the repository changed while it was verified: {listed(moved)}")
                return Verdict("moving_tree", f"changed meanwhile: {listed(moved)}; verify again")
        return verdict

    async def _before_steps(self, reading: asyncio.Task[Snapshot]) -> Verdict | None:
        """What must be known of the repository before there is a sandbox. None: go on.

        Where nothing must, it is read while the sandbox is made.
        """
        pin, spec = self.request.pin, self.spec
        if pin is not None and pin.changed:
            self.snapshot = await reading
            self._note(
                f"{pin.file} differs from the commit {pin.base[:12]} that it is pinned to; "
                "commit it, or undo the change"
            )
            return Verdict("config_changed", f"{pin.file} was changed and is not committed")
        if spec.protected_paths or spec.snapshot == "copy" or spec.cache is not None:
            self.snapshot = await reading
            return await self._pin_paths(self.snapshot)
        return None

    async def _pin_paths(self, snapshot: Snapshot) -> Verdict | None:
        """Hold protected paths against the base; make a copy where steps are to see one."""
        spec, pin = self.spec, self.request.pin
        base = (pin.base if pin is not None else self.request.base) or snapshot.commit
        idle = await asyncio.to_thread(without_match, snapshot, spec.protected_paths)
        if idle:
            self._note(f"no file is protected by {listed(idle)}; is it spelled right?")
        changed = await protected_changes(self.repo, snapshot, base, spec.protected_paths)
        if changed and spec.protected == "fail":
            paths = sorted(changed)
            self._note(f"protected paths are not as {base[:12]} has them: {listed(paths)}")
            return Verdict("protected_changed", f"protected paths changed: {listed(paths)}")
        if changed or spec.snapshot == "copy":
            self.source = self.directory.work / "source"
            await asyncio.to_thread(copy_repository, self.repo, self.source)
            moved = await changed_since(self.repo, snapshot)
            if moved:
                return Verdict("moving_tree", f"changed meanwhile: {listed(moved)}; verify again")
            if changed:
                await put_back(self.source, snapshot, changed)
                self.restored = tuple(sorted(changed))
                self.seen = with_files(snapshot, changed)
        return None

    async def _run_steps(self, reading: asyncio.Task[Snapshot], root: SandboxSpec) -> Verdict:
        spec, provider = self.spec, self.request.provider
        can = provider.capabilities()
        ground = Ground(
            repo=self.inside,
            source=self.source,
            run=self.directory,
            git=find_git(self.repo) if self.request.read_git else None,
            root=root,
            fixtures=self.request.fixtures,
        )
        host = self.request.host
        self.env = step_environment(spec, self.inside, host, host_root=root.host_root)
        known = {**self.request.host, **self.env}
        policies = check_networks(spec.steps, known, can, provider.name)
        await asyncio.to_thread(self.directory.furnish, owner_of(self.repo))
        with self._cache() as (cache, keep):
            made = sandbox_spec(spec, ground, provider, cache)
            image = await provider.prepare(made)
            self.platform = this_platform(platform_name(made), image.digest, provider.name)
            async with _sandbox(provider, made, image) as sandbox:
                self.snapshot = snapshot = await reading
                look = (
                    self._guard(self.seen or snapshot)
                    if spec.repo_write == "guard"
                    else _see_nothing
                )
                stage = Stage(sandbox, self.inside, self.env, policies, look, self._free_bytes)
                try:
                    verdict = await self.steps.run_all(stage)
                finally:
                    await uninterrupted(self.steps.aclose())
            if verdict.passed:
                await asyncio.to_thread(keep)
            return verdict

    @contextmanager
    def _cache(self) -> Generator[tuple[Path | None, Callable[[], None]]]:
        """The cache that steps find, and what keeps theirs when they pass."""
        wanted, spec, snapshot = self.spec.cache, self.spec, self.snapshot
        if wanted is None or snapshot is None:
            yield None, lambda: None
            return
        rules, root = globs(wanted.key), self.directory.root / "cache"
        files = {
            path: entry.oid
            for path, entry in snapshot.files.items()
            if rules.ignored(path, is_directory=False)
        }
        where = f"{self.request.provider.name} {spec.image or ''}"
        key = cache_key(self.repo, files, where, spec.steps)
        made = self.directory.source("cache")

        def keep() -> None:
            keep_entry(root, key, made)

        with cache_entry(root, key) as entry:
            yield entry, keep if entry is None else lambda: None

    def _guard(self, snapshot: Snapshot) -> Look:
        upper = self.directory.written_over(REPO)
        above, below = upper.stat(), self.source.stat()
        what = Guarded(
            repo=self.source,
            upper=upper,
            files=snapshot.files,
            directories=snapshot.directories,
            exclude=snapshot.exclude,
            writable=self.spec.writable,
            shift=(above.st_uid - below.st_uid, above.st_gid - below.st_gid),
        )

        async def look(lasting: bool) -> list[Change]:
            found = await asyncio.to_thread(find_changes, what, lasting=lasting)
            if any(change.path == _INDEX for change in found) and snapshot.git is not None:
                now = await snapshot.git.index_of(upper / ".git" / "index")
                if now == snapshot.staged:  # refreshed: what it names is what it named
                    found = [change for change in found if change.path != _INDEX]
            return found

        return look

    async def _answer(self, verdict: Verdict) -> Response:
        await asyncio.to_thread(self.combined.close)
        kept = await asyncio.to_thread(self._collect)
        facts = self._facts()
        reports = masked(tuple(self.steps.reports), self.masker)
        manifest = manifest_of(facts, verdict, reports)
        directory = self.directory
        await asyncio.to_thread(write_manifest, directory.path, directory.work, manifest)
        message = self.masker.text(verdict.message)
        self.tell.run_ended(manifest.status, message)
        return response_of(manifest, message, kept)

    def _collect(self) -> Kept:
        upper = self.directory.written_over(REPO)
        artifacts = tuple(p for step in self.spec.steps for p in step.artifacts)
        reports = tuple(p for step in self.spec.steps for p in step.junit)
        build, junit = self.directory.source("build"), self.directory.source("junit")
        if build.is_dir():
            keep_declared(upper, build, artifacts)
        return Kept(
            directory=self.directory.path,
            output=self.combined.recent,
            tests=read_reports(upper, junit, reports, self.masker),
            artifacts=list_artifacts(self.directory.path, _LISTED),
        )

    def _facts(self) -> Facts:
        pin, snapshot = self.request.pin, self.snapshot
        data = pin.data if pin is not None else spec_bytes(self.request.spec)
        base = pin.base if pin is not None else self.request.base
        given = {name: "" for step in self.spec.steps for name in step.env}
        return Facts(
            run_id=self.directory.path.name,
            started=self.started,
            ended=self.clock.now(),
            snapshot=snapshot,
            base=base,
            pipeline_sha256=sha256_of(data),
            unpinned=pin.unpinned if pin is not None else False,
            spec=self.spec,
            env_names=names_of(self.env, given),
            platform=self.platform,
            restored=self.restored,
            changed=(pin.file,) if pin is not None and pin.changed else (),
        )

    def _note(self, text: str) -> None:
        """A line of ours in the log of the run, where no step says it."""
        self.combined.end_line()
        self.combined.write(f"[ramify] {self.masker.text(text)}\n".encode("utf-8", "replace"))

    def _free_bytes(self) -> int:
        facts = os.statvfs(self.directory.path)
        return facts.f_bavail * facts.f_frsize


async def _see_nothing(_lasting: bool) -> list[Change]:
    return []


@asynccontextmanager
async def _sandbox(
    provider: SandboxProvider, spec: SandboxSpec, image: SandboxImage
) -> AsyncGenerator[Sandbox]:
    sandbox = await provider.create(spec, image)
    try:
        yield sandbox
    finally:
        await uninterrupted(sandbox.teardown())
