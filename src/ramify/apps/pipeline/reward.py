"""A pipeline as a `Reward`: 1 when the agent's work passes it, else 0."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from ramify.apps.pipeline.config import read_pipeline
from ramify.apps.pipeline.layout import SCRATCH
from ramify.apps.pipeline.records import CONFIG_FILE, PipelineSpec, Response
from ramify.apps.pipeline.retention import sweep
from ramify.apps.pipeline.run import RunRequest, run_pipeline
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InfraError, InvalidRewardError
from ramify.contracts.inside import TESTS_DIR, WORLD_FILE
from ramify.contracts.removal import remove_tree
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import TransferLimits
from ramify.contracts.tree import RolloutNode

NAME = "pipeline"
_NOBODY = 65534
_LIMITS = TransferLimits(links="inside")


class PipelineReward:
    """Verifies the agent's work directory with a pipeline that comes from the task.

    The directory crosses as bytes, into a fresh sandbox without network where none of the agent's
    processes ever was; its `.git` is never read on this side. Steps run as an unprivileged user
    where the engine is root, see the task's tests read-only at /tests, and get no variable of this
    machine, whatever the pipeline passes on. Of a run the manifest, logs, reports and build outputs
    are kept, and as many runs of a rollout as the pipeline's `retention` says.

    Args:
        config: the file that declares the pipeline; None: `agent.yaml` in the task's tests.
        pipeline: the pipeline itself, in place of a file.

    Raises:
        ConfigError: the file is not usable, or the pipeline asks for what only `ramify verify` has:
            protected paths (there is no commit to trust), a cache (rollouts could poison it) or
            secrets.
    """

    def __init__(self, config: Path | None = None, pipeline: PipelineSpec | None = None) -> None:
        self._spec = pipeline or (read_pipeline(config) if config is not None else None)
        if self._spec is not None:
            _check(self._spec)

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """1 for PASS, 0 for FAIL; `details` has run_id, reason and the last lines.

        Raises:
            InvalidRewardError: there is no work directory.
            TransferLimitError: it is larger than what may cross.
            ConfigError, UnsupportedError, InfraError: our side; the rollout is not scored.
        """
        if ctx.sandbox is None or ctx.sandboxes is None:
            raise InfraError("there is no sandbox to verify; score inside a rollout")
        place = ctx.artifacts / NAME
        work, tests = place / f"work-{node.id}", place / f"tests-{node.id}"
        try:
            await asyncio.to_thread(_make, work, tests, ctx)
            spec = self._spec
            if spec is None:
                spec = await asyncio.to_thread(read_pipeline, tests / CONFIG_FILE)
                _check(spec)
            try:
                await ctx.sandbox.download(ctx.workdir, work, limits=_LIMITS)
            except FileNotFoundError as error:
                raise InvalidRewardError("missing", f"there is no {ctx.workdir}") from error
            await asyncio.to_thread(_give_away, work)
            response = await run_pipeline(
                RunRequest(
                    repo=work,
                    spec=spec,
                    provider=ctx.sandboxes,
                    clock=ctx.clock,
                    artifacts=place,
                    host={"PATH": os.environ.get("PATH", os.defpath)},
                    inside=ctx.workdir,
                    root=ctx.sandbox.spec,
                    fixtures={TESTS_DIR: tests},
                    read_git=False,
                )
            )
            await asyncio.to_thread(_keep_little, place, response.run_id, spec, ctx.clock.now())
        finally:
            await asyncio.to_thread(_remove, work, tests)
        return result_of(response)


def result_of(response: Response) -> VerifyResult:
    """A response as a score."""
    value = 1.0 if response.passed else 0.0
    steps = response.manifest.steps
    items = {"pipeline.steps_passed": float(sum(step.status == "passed" for step in steps))}
    if response.tests is not None and response.tests.total:
        items["pipeline.tests_passed"] = response.tests.passed / response.tests.total
    details = {
        "run_id": response.run_id,
        "status": response.status,
        "reason": response.reason,
        "message": response.message,
        "tail_log": response.tail_log,
        "steps": [msgspec.to_builtins(step) for step in steps],
    }
    return VerifyResult(
        reward=value,
        items=items,
        events=(RewardEvent(NAME, value),),
        grader_isolation=NAME,
        details=details,
    )


def _check(spec: PipelineSpec) -> None:
    for field, given in (
        ("protected_paths", spec.protected_paths),
        ("cache", spec.cache),
        ("secrets", spec.secrets),
    ):
        if given:
            raise ConfigError("has no meaning for a pipeline that is a reward", field=field)


def _make(work: Path, tests: Path, ctx: Context) -> None:
    """Fresh directories: one for the agent's work, one with the task's tests and the world."""
    _remove(work, tests)
    work.mkdir(parents=True)
    tests.mkdir()
    package = ctx.task.package
    if package is not None:
        for name in (package.verifier.tests, *package.verifier.more_tests):
            place = Path(package.path) / name
            if name and place.is_dir():
                shutil.copytree(place, tests, symlinks=True, dirs_exist_ok=True)
    world = ctx.artifacts / WORLD_FILE
    if world.is_file() and not (tests / WORLD_FILE).exists():
        shutil.copyfile(world, tests / WORLD_FILE)
    _give_away(tests)


def _keep_little(place: Path, run_id: str, spec: PipelineSpec, now: float) -> None:
    """Of a run what it answers with, of a rollout's runs what the pipeline's `retention` says.

    A job has thousands of rollouts, and what steps left in /tmp can be whole environments.
    """
    with suppress(OSError):  # the score counts; what cannot be removed goes with the rollout
        _remove(*(place / "runs" / run_id / name for name in SCRATCH))
        sweep(place, None, spec.retention, now)


def _remove(*places: Path) -> None:
    for place in places:
        if place.exists():
            remove_tree(place)


def _give_away(work: Path) -> None:
    """Let the steps' user own a tree, and read all of it. Links are not followed."""
    for place, directories, files in os.walk(work):
        for name in (".", *directories, *files):
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, os.lstat(path).st_mode & 0o777 | (0o700 if name == "." else 0o600))
            if os.geteuid() == 0:
                os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
