"""The script verifier: a task's tests decide, in a sandbox that shares as little as it may."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InfraError, InvalidRewardError, UnsupportedError
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import Hardening, IsolationLevel, ScriptProfile, TaskPackage
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.native.harness import CODE_USER
from ramify.planes.reward.native.run import NativeRun, Outcome, tools_to_mount
from ramify.planes.reward.profile import python_gap
from ramify.planes.reward.scriptrun import ScriptRun
from ramify.planes.reward.stage import (
    Carried,
    Prepare,
    agent_sandbox,
    carry_outputs,
    frozen_sandbox,
    keep_in_place,
)
from ramify.planes.reward.testmount import Place, tests_sandbox

_AGENT_FILES = (IsolationLevel.FILESYSTEM, IsolationLevel.LIVE)
_NOT_FRESH = "writable: the file system is the agent's"


class ScriptVerifier:
    """Runs a task's tests, and reads the reward file they leave or grades their report.

    What the tests run in is decided by `level`. At `outputs` and `workdir` it is a fresh sandbox
    on the pristine image, with a copy of the evidence; at `filesystem` the agent's frozen file
    system; at `live` the agent's sandbox as it stands. A task with a separate verifier gets that,
    which is the level `outputs`, whatever `level` says. In all of them /tests and /logs/verifier
    are emptied first, so what an agent planted there is gone, and the reward is parsed on our
    side. What the task's world answered at the end lies there as /tests/world.json. Everything said
    is kept below `verifier/` in the rollout's artifacts.

    Where the task names a `runner`, that of ours runs the tests (planes/reward/native). Of each
    result the details say what held while they ran: `process` (`separate_process`, or `in_process`
    where code of the agent ran in the process of the tests) and `hardening`.

    An InvalidRewardError stands only if the tests work at all: they are run once per task on an
    untouched workspace, and where they are invalid there for the same reason the fault is the
    task's (InfraError).

    Args:
        level: what agent and verifier share.
        prepare: brings a fresh sandbox to the task's start.
        profile: what a script is kept from, where no runner of ours runs the tests.
    """

    def __init__(
        self, level: IsolationLevel, prepare: Prepare, profile: ScriptProfile | None = None
    ) -> None:
        self._level, self._prepare = level, prepare
        self._profile = profile or ScriptProfile()
        self._baselines: dict[tuple[str, int | None], str | None] = {}
        self._baseline_turn = asyncio.Lock()

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Run the tests of `ctx.task` on what the agent left.

        Raises: InvalidRewardError, InfraError, UnsupportedError (no package, or this level
        cannot be had), ConfigError (the package lacks tests or outputs).
        """
        package = _package(ctx, self._level)
        folder = ctx.artifacts / "verifier"
        try:
            return await self._verify(ctx, package, folder)
        except InvalidRewardError as error:
            if error.reason == "no_evidence":
                raise  # An untouched workspace carries no evidence that could be too large.
            if await self._baseline(ctx, package, folder / "baseline") == error.reason:
                raise InfraError(
                    f"the verifier of {ctx.task.task_id} is broken: on an untouched workspace it "
                    f"fails in the same way ({error}); see {folder}"
                ) from error
            raise

    async def _verify(self, ctx: Context, package: TaskPackage, folder: Path) -> VerifyResult:
        level = _level(package, self._level)
        async with self._stage(ctx, package, level) as (place, carried):
            sandbox = place.sandbox
            runs = _Runs(ctx, package, folder, carried, level, self._profile, place.tests)
            try:
                tested = await runs.test(sandbox)
            finally:
                if level is IsolationLevel.LIVE and package.at is not None:
                    await runs.wipe(sandbox)  # The agent goes on, and must not see the tests.
        parsed, result = tested.parsed, tested.result
        details: dict[str, Any] = {
            "exit_code": result.exit_code,
            "duration_sec": result.duration_sec,
            "lockdown": sandbox.spec.lockdown,
            "process": tested.process,
            "hardening": tested.hardening,
        }
        if carried.absent:
            details["outputs_absent"] = list(carried.absent)
        if carried.dropped:
            details["outputs_dropped"] = list(carried.dropped)
        if parsed.details:
            details["reported"] = parsed.details
        return VerifyResult(
            reward=parsed.reward,
            items=parsed.items,
            events=(RewardEvent("reward", parsed.reward),),
            grader_isolation=level.value,
            details=details,
        )

    @asynccontextmanager
    async def _stage(
        self, ctx: Context, package: TaskPackage, level: IsolationLevel
    ) -> AsyncGenerator[tuple[Place, Carried]]:
        match level:
            case IsolationLevel.LIVE:
                await keep_in_place(ctx, package)
                yield Place(agent_sandbox(ctx)[0], _NOT_FRESH), Carried()
            case IsolationLevel.FILESYSTEM:
                async with tools_to_mount(ctx, package) as mounts:
                    await keep_in_place(ctx, package)
                    async with frozen_sandbox(ctx, package, mounts) as sandbox:
                        yield Place(sandbox, _NOT_FRESH), Carried()
            case IsolationLevel.OUTPUTS | IsolationLevel.WORKDIR:
                whole, hardening = level is IsolationLevel.WORKDIR, self._hardening(package)
                async with tests_sandbox(
                    ctx, package, self._prepare, hardening, workdir=whole
                ) as place:
                    carried = await carry_outputs(
                        ctx,
                        package,
                        place.sandbox,
                        workdir=whole,
                        owner=CODE_USER if _has_runner(package) else None,
                        disarm=hardening is Hardening.ISOLATED,
                    )
                    yield place, carried

    def _hardening(self, package: TaskPackage) -> Hardening:
        """That of the test script; our own runner has ways of its own."""
        return Hardening.PLAIN if _has_runner(package) else self._profile.hardening

    async def _baseline(self, ctx: Context, package: TaskPackage, folder: Path) -> str | None:
        """Why the tests are invalid on an untouched workspace; None when they are not.

        Found out once per task; meanwhile others that ask wait.
        """
        async with self._baseline_turn:
            key = (package.digest, package.at)
            if key not in self._baselines:
                reason = None
                hardening = self._hardening(package)
                async with tests_sandbox(
                    ctx, package, self._prepare, hardening, workdir=False
                ) as place:
                    level, profile = IsolationLevel.OUTPUTS, self._profile
                    runs = _Runs(ctx, package, folder, Carried(), level, profile, place.tests)
                    try:
                        await runs.test(place.sandbox)
                    except InvalidRewardError as error:
                        reason = error.reason
                self._baselines[key] = reason
            return self._baselines[key]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs the tests in a sandbox, in the way that the package asks for.

    `tests` says how they lie there.
    """

    ctx: Context
    package: TaskPackage
    folder: Path
    carried: Carried
    level: IsolationLevel
    profile: ScriptProfile
    tests: str

    @property
    def distrusted(self) -> bool:
        return self.level in _AGENT_FILES

    async def test(self, sandbox: Sandbox) -> Outcome:
        await asyncio.to_thread(_empty, self.folder)
        native = self._native(sandbox)
        if native is not None:
            return await native.to_outcome()
        isolated = self.profile.hardening is Hardening.ISOLATED
        gap = await python_gap(sandbox) if isolated else ""
        parsed, result = await self._script(sandbox).to_reward()
        # What a script does with the code that it tests is not known, so the worst is said.
        hardening: dict[str, Any] = {
            "runner": None,
            "user": self.package.verifier.user or "root",
            "network": str(sandbox.spec.network.mode),
            "tools": "shared with the agent" if self.distrusted else "pristine",
            "report_channel": "open to the code under test",
            "profile": self.profile.hardening.value,
            "tests": self.tests,
        }
        if self.carried.disarmed:
            hardening["taken_out_of_git"] = list(self.carried.disarmed)
        if gap:
            hardening["python"] = gap
        if self.profile.why:
            hardening["why"] = self.profile.why
        return Outcome(parsed, result, "in_process", hardening)

    async def wipe(self, sandbox: Sandbox) -> None:
        await self._script(sandbox).wipe()
        if (native := self._native(sandbox)) is not None:
            await native.wipe()

    def _native(self, sandbox: Sandbox) -> NativeRun | None:
        grading = self.package.verifier.grading
        if grading is None or grading.runner is None:
            return None
        return NativeRun(
            sandbox,
            self.ctx,
            self.package,
            grading,
            self.folder,
            self.carried.paths,
            distrusted=self.distrusted,
            beside_agent=self.level is IsolationLevel.LIVE,
        )

    def _script(self, sandbox: Sandbox) -> ScriptRun:
        live = self.level is IsolationLevel.LIVE
        hardening = self.profile.hardening
        return ScriptRun(
            sandbox, self.ctx, self.package, self.folder, self.distrusted, live, hardening
        )


def _has_runner(package: TaskPackage) -> bool:
    grading = package.verifier.grading
    return grading is not None and grading.runner is not None


def _package(ctx: Context, level: IsolationLevel) -> TaskPackage:
    package = ctx.task.package
    if package is None:
        raise UnsupportedError(
            f"task {ctx.task.task_id} comes without a directory, so there are no tests to run; "
            "score it with a reward function"
        )
    separate = package.verifier.separate
    if level is IsolationLevel.OUTPUTS and not package.outputs and not separate:
        raise ConfigError(
            "the task declares no outputs, which verifying at level `outputs` needs; declare "
            "them or choose level `workdir`",
            file=package.path,
            field="outputs",
        )
    return package


def _level(package: TaskPackage, chosen: IsolationLevel) -> IsolationLevel:
    return IsolationLevel.OUTPUTS if package.verifier.separate else chosen


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
