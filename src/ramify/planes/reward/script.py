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
from ramify.contracts.errors import (
    ConfigError,
    InfraError,
    InvalidRewardError,
    TransferLimitError,
    UnsupportedError,
)
from ramify.contracts.inside import TESTS_DIR, VERIFIER_LOGS_DIR, WORLD_FILE, shell_line
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import MIB, ExecResult, Sandbox, TransferLimits
from ramify.contracts.task import IsolationLevel, TaskPackage
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.rewardfile import MAX_REWARD_BYTES, ParsedReward, parse_reward
from ramify.planes.reward.stage import (
    Carried,
    Prepare,
    agent_sandbox,
    carry_outputs,
    fresh_sandbox,
    frozen_sandbox,
    has_own_image,
    keep_in_place,
    scratch_folder,
)
from ramify.planes.reward.testoutput import parse_test_output
from ramify.planes.reward.tests import small_files, tests_tree

_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM_FIRST = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_OUTPUT_LIMIT = 8 * MIB
_LOG_LIMITS = TransferLimits(max_bytes=64 * MIB, max_file_bytes=16 * MIB, max_entries=2000)
_REWARD_LIMITS = TransferLimits(
    max_bytes=MAX_REWARD_BYTES, max_file_bytes=MAX_REWARD_BYTES, max_entries=1
)
_REWARD_FILES = ("reward.json", "reward.txt")
_AGENT_FILES = (IsolationLevel.FILESYSTEM, IsolationLevel.LIVE)


class ScriptVerifier:
    """Runs a task's tests and reads the reward file they leave.

    What the tests run in is decided by `level`. At `outputs` and `workdir` it is a fresh sandbox
    on the pristine image, with a copy of the evidence; at `filesystem` the agent's frozen file
    system; at `live` the agent's sandbox as it stands. A task with a separate verifier gets that,
    which is the level `outputs`, whatever `level` says. In all of them /tests and /logs/verifier
    are emptied first, so what an agent planted there is gone, and the reward is parsed on our
    side. What the task's world answered at the end lies there as /tests/world.json. Everything said
    is kept below `verifier/` in the rollout's artifacts.

    An InvalidRewardError stands only if the tests work at all: they are run once per task on an
    untouched workspace, and where they are invalid there for the same reason the fault is the
    task's (InfraError).

    Args:
        level: what agent and verifier share.
        prepare: brings a fresh sandbox to the task's start.
    """

    def __init__(self, level: IsolationLevel, prepare: Prepare) -> None:
        self._level, self._prepare = level, prepare
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
        async with self._stage(ctx, package, level) as (sandbox, carried):
            run = _Run(sandbox, ctx, package, folder, distrusted=level in _AGENT_FILES)
            try:
                parsed, result = await run.to_reward()
            finally:
                if level is IsolationLevel.LIVE and package.at is not None:
                    await run.wipe()  # The agent goes on in here, and must not see the tests.
        details: dict[str, Any] = {
            "exit_code": result.exit_code,
            "duration_sec": result.duration_sec,
            "lockdown": sandbox.spec.lockdown,
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
    ) -> AsyncGenerator[tuple[Sandbox, Carried]]:
        match level:
            case IsolationLevel.LIVE:
                await keep_in_place(ctx, package)
                yield agent_sandbox(ctx)[0], Carried()
            case IsolationLevel.FILESYSTEM:
                await keep_in_place(ctx, package)
                async with frozen_sandbox(ctx, package) as sandbox:
                    yield sandbox, Carried()
            case IsolationLevel.OUTPUTS | IsolationLevel.WORKDIR:
                async with fresh_sandbox(ctx, package, self._prepare) as sandbox:
                    whole = level is IsolationLevel.WORKDIR
                    yield sandbox, await carry_outputs(ctx, package, sandbox, workdir=whole)

    async def _baseline(self, ctx: Context, package: TaskPackage, folder: Path) -> str | None:
        """Why the tests are invalid on an untouched workspace; None when they are not.

        Found out once per task; meanwhile others that ask wait.
        """
        async with self._baseline_turn:
            key = (package.digest, package.at)
            if key not in self._baselines:
                reason = None
                async with fresh_sandbox(ctx, package, self._prepare) as sandbox:
                    try:
                        await _Run(sandbox, ctx, package, folder, distrusted=False).to_reward()
                    except InvalidRewardError as error:
                        reason = error.reason
                self._baselines[key] = reason
            return self._baselines[key]


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the tests in one sandbox. Single-use.

    `distrusted`: the file system was an agent's.
    """

    sandbox: Sandbox
    ctx: Context
    package: TaskPackage
    folder: Path
    distrusted: bool

    async def to_reward(self) -> tuple[ParsedReward, ExecResult]:
        """Put the tests in place, run them and read the reward."""
        await asyncio.to_thread(_empty, self.folder)
        async with tests_tree(self.ctx, self.package) as tests:
            await self._put(tests)
            result = await self._run(tests)
            await asyncio.to_thread(_keep_output, self.folder, result)
            if result.timed_out:
                await self._fetch_logs()
                raise InvalidRewardError(
                    "missing", f"the tests did not finish within {self._timeout_sec():g} s"
                )
            if tests is not None:
                await self._check_tests(tests)
        return await self._read(result), result

    async def wipe(self) -> None:
        """Remove the tests and what they left."""
        async with scratch_folder(self.ctx) as empty:
            for place in (TESTS_DIR, VERIFIER_LOGS_DIR):
                await self.sandbox.upload(empty, place, clear=True)

    async def _put(self, tests: Path | None) -> None:
        async with scratch_folder(self.ctx) as empty:
            # Readable by the user that the tests run as, whatever our own umask is.
            empty.chmod(0o755)
            await self.sandbox.upload(
                empty, VERIFIER_LOGS_DIR, owner=self.package.verifier.user, clear=True
            )
        if tests is not None:
            await self.sandbox.upload(tests, TESTS_DIR, clear=True)
        state = self.ctx.artifacts / WORLD_FILE
        if state.is_file() and not (tests is not None and (tests / WORLD_FILE).exists()):
            await self.sandbox.upload(state, f"{TESTS_DIR}/{WORLD_FILE}")

    async def _run(self, tests: Path | None) -> ExecResult:
        settings = self.package.verifier
        command = settings.command
        if not command:
            if tests is not None and not (tests / "test.sh").is_file():
                raise ConfigError(
                    "there is no test.sh; add it or set verifier.command",
                    file=str(Path(self.package.path) / settings.tests),
                )
            command = ("bash", f"{TESTS_DIR}/test.sh")
        own = has_own_image(self.package)
        return await self.sandbox.exec(
            shell_line(command),
            user=settings.user or "root",
            cwd=None if own else self.ctx.workdir,
            env=settings.env if own else {"PATH": self._path(), **settings.env},
            timeout_sec=self._timeout_sec(),
            output_limit=_OUTPUT_LIMIT,
            kill_leftovers=True,
        )

    def _timeout_sec(self) -> float:
        return self.package.verifier.timeout_sec * self.ctx.config.timeout_multiplier

    def _path(self) -> str:
        """The image's own PATH; on an agent's file system, what is easily planted comes last."""
        image = self.ctx.image
        own = image.env.get("PATH", _USUAL_PATH) if image else _USUAL_PATH
        return _SYSTEM_FIRST if self.distrusted and own == _USUAL_PATH else own

    async def _check_tests(self, tests: Path) -> None:
        """Refuse a run in which the tests themselves were changed, by the code they tested."""
        files = await asyncio.to_thread(small_files, tests)
        async with scratch_folder(self.ctx) as folder:
            for index, (name, content) in enumerate(files):
                local = folder / str(index)
                limits = TransferLimits(max_bytes=len(content) + 1, max_file_bytes=len(content) + 1)
                try:
                    await self.sandbox.download(f"{TESTS_DIR}/{name}", local, limits=limits)
                except (FileNotFoundError, TransferLimitError):
                    same = False
                else:
                    same = await asyncio.to_thread(_holds, local, content)
                if not same:
                    raise InvalidRewardError("tampered", f"{name} of the tests was changed")

    async def _read(self, result: ExecResult) -> ParsedReward:
        dropped = await self._fetch_logs()
        if (parser := self.package.verifier.parser) is not None:
            return parse_test_output(parser, result.stdout + b"\n" + result.stderr)
        for name in _REWARD_FILES:
            if any(entry.removeprefix("./").startswith(f"{name}: ") for entry in dropped):
                raise InvalidRewardError("tampered", f"{name} is not a regular file")
        found = [await self._reward_file(name) for name in _REWARD_FILES]
        return parse_reward(found[0], found[1], self.package.verifier.reward_range)

    async def _fetch_logs(self) -> tuple[str, ...]:
        """Keep what the tests left in /logs/verifier; returns what was left out, and why."""
        logs = self.folder / "logs"
        try:
            report = await self.sandbox.download(VERIFIER_LOGS_DIR, logs, limits=_LOG_LIMITS)
        except FileNotFoundError:
            raise InvalidRewardError(
                "tampered", f"{VERIFIER_LOGS_DIR} was replaced by something else"
            ) from None
        except TransferLimitError as error:
            # Logs are a convenience: too large, they are not kept. The reward is read by itself.
            (self.folder / "logs-left-out.txt").write_text(f"{error}\n")
            return ()
        return report.dropped

    async def _reward_file(self, name: str) -> bytes | None:
        local = self.folder / name
        try:
            await self.sandbox.download(f"{VERIFIER_LOGS_DIR}/{name}", local, limits=_REWARD_LIMITS)
        except FileNotFoundError:
            return None
        except TransferLimitError:
            raise InvalidRewardError("malformed", f"{name} is too large") from None
        if not local.is_file():
            raise InvalidRewardError("tampered", f"{name} is a directory")
        return await asyncio.to_thread(local.read_bytes)


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


def _holds(local: Path, content: bytes) -> bool:
    return local.is_file() and local.read_bytes() == content


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _keep_output(folder: Path, result: ExecResult) -> None:
    (folder / "test-stdout.txt").write_bytes(result.stdout)
    if result.stderr:
        (folder / "test-stderr.txt").write_bytes(result.stderr)
