"""One run of a task's own test script, and the reward it leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.context import Context
from ramify.contracts.errors import (
    ConfigError,
    InvalidRewardError,
    SandboxError,
    SandboxLostError,
    TransferLimitError,
)
from ramify.contracts.inside import TESTS_DIR, VERIFIER_LOGS_DIR, WORLD_FILE, shell_line
from ramify.contracts.sandbox import MIB, ExecResult, Sandbox, TransferLimits
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Hardening, TaskPackage
from ramify.planes.reward.profile import HOME_DIR, isolated_env, isolated_line
from ramify.planes.reward.reports.cases import MAX_REPORT_BYTES
from ramify.planes.reward.reports.grading import grade
from ramify.planes.reward.reports.parse import parse_report
from ramify.planes.reward.rewardfile import MAX_REWARD_BYTES, ParsedReward, parse_reward
from ramify.planes.reward.stage import has_own_image
from ramify.planes.reward.testmount import lie_read_only
from ramify.planes.reward.testoutput import parse_test_output
from ramify.planes.reward.tests import small_files, tests_tree

_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM_FIRST = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_OUTPUT_LIMIT = 8 * MIB
_LOG_LIMITS = TransferLimits(max_bytes=64 * MIB, max_file_bytes=16 * MIB, max_entries=2000)
_REWARD_LIMITS = TransferLimits(
    max_bytes=MAX_REWARD_BYTES, max_file_bytes=MAX_REWARD_BYTES, max_entries=1
)
_REPORT_LIMITS = TransferLimits(
    max_bytes=MAX_REPORT_BYTES, max_file_bytes=MAX_REPORT_BYTES, max_entries=1
)
_WATCH_SEC = 0.3
_KILLED = range(129, 193)
"""Exit codes that tell of a signal."""
_REWARD_FILES = ("reward.json", "reward.txt")


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """One run of a task's own test script in one sandbox. Single-use.

    Attributes:
        sandbox: where.
        ctx: the rollout.
        package: the task's directory.
        folder: where what it says is kept.
        distrusted: the file system was an agent's.
        live: processes of an agent go on in it.
        hardening: what the script is kept from.
    """

    sandbox: Sandbox
    ctx: Context
    package: TaskPackage
    folder: Path
    distrusted: bool
    live: bool = False
    hardening: Hardening = Hardening.PLAIN

    async def to_reward(self) -> tuple[ParsedReward, ExecResult]:
        """Put the tests in place, run them and read the reward.

        Raises: InvalidRewardError, ConfigError, SandboxError.
        """
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
        parsed = await self._read(result)
        lowest = self.package.verifier.reward_range[0]
        if result.exit_code in _KILLED and parsed.reward > lowest:
            # What they had to say came from somebody else, or was not all of it.
            raise InvalidRewardError(
                "tampered", f"a reward was left, and the tests were killed ({result.exit_code})"
            )
        if self.live and parsed.reward > lowest:
            await self._check_writers()
        return parsed, result

    async def wipe(self) -> None:
        """Remove the tests and what they left."""
        async with Scratch() as empty:
            homes = (HOME_DIR,) if self.hardening is Hardening.ISOLATED else ()
            for place in (TESTS_DIR, VERIFIER_LOGS_DIR, *homes):
                await self.sandbox.upload(empty, place, clear=True)

    async def _empty_logs(self) -> None:
        async with Scratch() as empty:
            # Readable by the user that the tests run as, whatever our own umask is.
            empty.chmod(0o755)
            owner = self.package.verifier.user
            try:
                await self.sandbox.upload(empty, VERIFIER_LOGS_DIR, owner=owner, clear=True)
            except SandboxError as error:
                if not self.live or isinstance(error, SandboxLostError):
                    raise
                # No fault of the sandbox: an attempt that is spoilt by the agent counts.
                raise InvalidRewardError(
                    "tampered", f"{VERIFIER_LOGS_DIR} cannot be emptied ({error})"
                ) from error

    async def _put(self, tests: Path | None) -> None:
        await self._empty_logs()
        if self.hardening is Hardening.ISOLATED:
            async with Scratch() as empty:
                empty.chmod(0o755)
                owner = self.package.verifier.user
                await self.sandbox.upload(empty, HOME_DIR, owner=owner, clear=True)
        if lie_read_only(self.sandbox):
            return  # All of them came with the sandbox.
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
        line, env = shell_line(command), settings.env if own else {"PATH": self._path()}
        if self.hardening is Hardening.ISOLATED:
            line = isolated_line(line, settings.env)
            image = self.ctx.image
            given = {**(image.env if image and not own else {}), **self.sandbox.spec.env}
            env = {**env, **isolated_env(given, self.ctx.workdir)}
        return await self.sandbox.exec(
            line,
            user=settings.user or "root",
            cwd=None if own else self.ctx.workdir,
            env={**env, **settings.env},
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
        async with Scratch() as folder:
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

    async def _check_writers(self) -> None:
        """Refuse a reward that somebody goes on writing, now that all that the tests began is dead.

        Who writes once and waits for the right moment is not seen: the price of this level.
        """
        await self._empty_logs()
        await asyncio.sleep(_WATCH_SEC)
        for name in _REWARD_FILES:
            if await self._left_file(name, _REWARD_LIMITS) is not None:
                raise InvalidRewardError("tampered", f"a process of the agent writes {name}")

    async def _read(self, result: ExecResult) -> ParsedReward:
        dropped = await self._fetch_logs()
        if (parser := self.package.verifier.parser) is not None:
            return parse_test_output(parser, result.stdout + b"\n" + result.stderr)
        if (grading := self.package.verifier.grading) is not None and grading.report is not None:
            data = await self._left_file(grading.report_path, _REPORT_LIMITS)
            if data is None:
                raise InvalidRewardError("missing", f"the tests left no {grading.report_path}")
            report = parse_report(grading.report, data)
            return grade(report, grading.expected, fraction=grading.fraction)
        for name in _REWARD_FILES:
            if any(entry.removeprefix("./").startswith(f"{name}: ") for entry in dropped):
                raise InvalidRewardError("tampered", f"{name} is not a regular file")
        found = [await self._left_file(name, _REWARD_LIMITS) for name in _REWARD_FILES]
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

    async def _left_file(self, name: str, limits: TransferLimits) -> bytes | None:
        """Content of a file below /logs/verifier; None where there is none."""
        local = self.folder / name
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            await self.sandbox.download(f"{VERIFIER_LOGS_DIR}/{name}", local, limits=limits)
        except FileNotFoundError:
            return None
        except TransferLimitError:
            raise InvalidRewardError("malformed", f"{name} is too large") from None
        if not local.is_file():
            raise InvalidRewardError("tampered", f"{name} is a directory")
        return await asyncio.to_thread(local.read_bytes)


def _holds(local: Path, content: bytes) -> bool:
    return local.is_file() and local.read_bytes() == content


def _keep_output(folder: Path, result: ExecResult) -> None:
    (folder / "test-stdout.txt").write_bytes(result.stdout)
    if result.stderr:
        (folder / "test-stderr.txt").write_bytes(result.stderr)
