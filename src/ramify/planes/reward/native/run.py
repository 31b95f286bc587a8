"""One run of a task's tests by our own runner, in one sandbox."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InfraError, InvalidRewardError, UnsupportedError
from ramify.contracts.frozen import HandsOver
from ramify.contracts.inside import TESTS_DIR, WORLD_FILE
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    MIB,
    ExecResult,
    Mount,
    Sandbox,
)
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import TaskPackage, TestGrading
from ramify.planes.reward.native.canaries import Canaries, make_canaries
from ramify.planes.reward.native.events import Heard, read_events
from ramify.planes.reward.native.expected import expected_tests, files_of_tests
from ramify.planes.reward.native.harness import (
    CALLEE,
    CODE_UID,
    CODE_USER,
    HARNESS_DIR,
    SESSION,
    TESTS_OWNER,
    TESTS_UID,
    TESTS_USER,
    lay_harness,
    lay_tests,
)
from ramify.planes.reward.native.places import holds_tools, interpreters, program_path
from ramify.planes.reward.native.tools import OwnPython, prepared_python
from ramify.planes.reward.reports.grading import grade
from ramify.planes.reward.rewardfile import ParsedReward
from ramify.planes.reward.stage import agent_sandbox
from ramify.planes.reward.tests import tests_tree

_OUTPUT_LIMIT = 8 * MIB
_REPORT_LIMIT = 16 * MIB
_READY_SEC = 30.0
_LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the reward, how its process ended, and what held while it ran."""

    parsed: ParsedReward
    result: ExecResult
    process: str
    hardening: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NativeRun:
    """Runs the tests of a package in a sandbox that has the agent's work in it. Single-use.

    Attributes:
        sandbox: where; nothing of an agent runs in it, or its level says so.
        ctx: the rollout.
        package: the task's directory.
        grading: how its tests are run and graded.
        folder: where the output and the report are kept.
        carried: paths inside whose content is the agent's.
        distrusted: the whole file system is.
        beside_agent: processes of the agent go on there.
    """

    sandbox: Sandbox
    ctx: Context
    package: TaskPackage
    grading: TestGrading
    folder: Path
    carried: Sequence[str]
    distrusted: bool
    beside_agent: bool

    async def to_outcome(self) -> Outcome:
        """Put the tests in place, run and grade them.

        Raises:
            InvalidRewardError: the run did not come to its end, or was tampered with.
            ConfigError: no tests, or no runner in the sandbox.
            UnsupportedError: the sandbox does not isolate.
        """
        if self.sandbox.capabilities().isolation == "none":
            raise UnsupportedError(
                f'the tests of {self.ctx.task.task_id} run as a user of their own (runner = "'
                f'{self.grading.runner}"), which a sandbox without isolation cannot give; use '
                "--sandbox local or docker"
            )
        runner = str(self.grading.runner)
        async with tests_tree(self.ctx, self.package) as tests:
            if tests is None:
                raise ConfigError(
                    "the tests lie in the verifier's own image, where `runner` cannot run them",
                    file=self.package.path,
                    field="ramify.tests.runner",
                )
            expected = self.grading.expected or await asyncio.to_thread(
                expected_tests, tests, runner
            )
            files = await asyncio.to_thread(files_of_tests, tests, runner)
            canaries = make_canaries(runner, expected, files, [p.name for p in tests.iterdir()])
            calls = await self._put(tests, canaries)
        await self._set_modes()
        nonce = secrets.token_hex(16)
        async with self._own_python() as own, self._broker(calls, own) as address:
            result = await self._run(nonce, address, canaries.order, own)
        await asyncio.to_thread(_keep_output, self.folder, result)
        if result.timed_out:
            raise InvalidRewardError(
                "missing", f"the tests did not finish within {self._timeout_sec():g} s"
            )
        heard = read_events(result, nonce, runner)
        _check_user(heard)
        parsed = grade(heard.report, expected, canaries.cases, fraction=self.grading.fraction)
        await asyncio.to_thread(self._keep_report, heard, canaries)
        # Tools that the agent may have changed are code of its own, in the process of the tests.
        shared = heard.in_process or (self._tools_shared() and own is None)
        process = "separate_process" if calls and not shared else "in_process"
        return Outcome(parsed, result, process, self._hardening(heard, canaries, own is not None))

    async def wipe(self) -> None:
        """Remove the runner; the tests are the caller's to remove."""
        async with Scratch() as empty:
            await self.sandbox.upload(empty, HARNESS_DIR, clear=True)

    async def _put(self, tests: Path, canaries: Canaries) -> bool:
        world = self.ctx.artifacts / WORLD_FILE
        async with Scratch() as folder:
            harness, laid = folder / "harness", folder / "tests"
            harness.mkdir()
            laid.mkdir()
            await asyncio.to_thread(lay_harness, harness)
            calls = await asyncio.to_thread(
                lay_tests, tests, canaries.files, world if world.is_file() else None, laid
            )
            await self.sandbox.upload(harness, HARNESS_DIR, clear=True)
            await self.sandbox.upload(laid, TESTS_DIR, owner=TESTS_OWNER, clear=True)
        return calls

    async def _set_modes(self) -> None:
        """Close the tests' directory, and let the code under test write where the agent could.

        Not with an agent's own programs, which would see the tests with root's eyes.
        """
        if self.distrusted:
            return
        place = shlex.quote(self.ctx.workdir)
        command = f"chmod 550 {TESTS_DIR} && if test -O {place}; then chmod 1777 {place}; fi"
        done = await self.sandbox.exec(command, user="root", cwd="/", timeout_sec=30)
        if not done.ok:
            said = done.stderr[-300:].decode(errors="replace")
            raise InfraError(f"cannot set modes in the verifier's sandbox: {said}")

    @asynccontextmanager
    async def _broker(self, wanted: bool, own: OwnPython | None) -> AsyncGenerator[str]:
        """The process that runs isolated calls, as long as the tests run; gives its address."""
        if not wanted:
            yield ""
            return
        process = await self.sandbox.spawn(
            self._python(CALLEE, own), user=CODE_USER, cwd="/", env=own.env if own else None
        )
        try:
            setting = {
                "workdir": self.ctx.workdir,
                "tests_uid": TESTS_UID,
                "env": {"PATH": self._path(), "LANG": "C.UTF-8"},
            }
            try:
                await process.write(msgspec.json.encode(setting) + b"\n")
                async with asyncio.timeout(_READY_SEC):
                    address = await _first_line(process)
            except (TimeoutError, BrokenPipeError) as error:
                raise await self._no_broker(process) from error
            if not address.startswith("/"):
                raise await self._no_broker(process)
            yield address
        finally:
            await uninterrupted(process.aclose())

    async def _no_broker(self, process: Process) -> Exception:
        try:
            async with asyncio.timeout(1.0):
                said = (await process.read_err()).decode(errors="replace").strip()
        except TimeoutError:
            said = "it says nothing"
        message = f"the process for isolated calls did not start: {said[-300:]}"
        return InvalidRewardError("missing", message)

    async def _run(
        self, nonce: str, address: str, files: Sequence[str], own: OwnPython | None
    ) -> ExecResult:
        wanted = {
            "nonce": nonce,
            "runner": self.grading.runner,
            "tests": TESTS_DIR,
            "files": list(files),
            "workdir": self.ctx.workdir,
            "theirs": [self.ctx.workdir, *self.carried, *(own.packages if own else ())],
            "socket": address,
            "code_uid": CODE_UID,
            "site": self._tools_shared() and own is None,
            "packages": list(own.packages) if own else [],
            "env": {"PATH": self._path(), "LANG": "C.UTF-8", **self.package.verifier.env},
        }
        return await self.sandbox.exec(
            self._python(SESSION, own),
            user=TESTS_USER,
            cwd="/",
            env=own.env if own else None,
            stdin=msgspec.json.encode(wanted),
            timeout_sec=self._timeout_sec(),
            output_limit=max(_REPORT_LIMIT, _OUTPUT_LIMIT),
            kill_leftovers=True,
        )

    @asynccontextmanager
    async def _own_python(self) -> AsyncGenerator[OwnPython | None]:
        """A Python that the agent had no hand in; None where the image's will do.

        Processes of the agent would see it all the same; so not beside those.
        """
        if not self.distrusted or self.beside_agent or not _has_own_python(self.grading):
            yield None
            return
        wanted = interpreters(self.ctx, self.package, self.carried)
        async with prepared_python(self.ctx, self.package, wanted) as prepared:
            yield await prepared.bring(self.sandbox, self.ctx)

    def _python(self, program: str, own: OwnPython | None) -> list[str]:
        if own is not None:
            return [*own.argv, "-I", "-S", "-B", program]
        flags = ["-I", "-B", *(["-S"] if self._tools_shared() else [])]
        words = " ".join(shlex.quote(word) for word in [*flags, program])
        places = interpreters(self.ctx, self.package, self.carried)
        line = f'for p in {places}; do [ -x "$p" ] && exec "$p" {words}; done; '
        return ["/bin/sh", "-c", line + "echo 'there is no python3 here' >&2; exit 127"]

    def _path(self) -> str:
        return program_path(self.ctx, self.package, self.carried)

    def _tools_shared(self) -> bool:
        """Whether the agent may have changed the interpreter or its libraries."""
        return self.distrusted or holds_tools(self.carried, self.grading.python)

    def _timeout_sec(self) -> float:
        return self.package.verifier.timeout_sec * self.ctx.config.timeout_multiplier

    def _keep_report(self, heard: Heard, canaries: Canaries) -> None:
        cases = [case for case in heard.report.cases if case.id not in canaries.cases]
        (self.folder / "report.json").write_bytes(
            msgspec.json.format(msgspec.json.encode({"tests": cases}), indent=2)
        )

    def _hardening(self, heard: Heard, canaries: Canaries, own: bool) -> dict[str, Any]:
        facts = heard.facts
        found: dict[str, Any] = {
            "runner": f"{self.grading.runner} {facts.get('runner', facts.get('python', ''))}",
            "user": facts.get("uid"),
            "no_new_privileges": facts.get("NoNewPrivs") == "1",
            "system_call_filter": facts.get("Seccomp") == "2",
            "capabilities": facts.get("CapEff"),
            "network": str(self.sandbox.spec.network.mode),
            "report_channel": "closed" if facts.get("sealed") else "open to the same user",
            "tools": "pristine" if own or not self._tools_shared() else "shared with the agent",
            "canaries": len(canaries.cases),
        }
        if heard.in_process:
            found["in_process"] = heard.in_process
        return found


@asynccontextmanager
async def tools_to_mount(ctx: Context, package: TaskPackage) -> AsyncGenerator[tuple[Mount, ...]]:
    """What is to be mounted in a copy of the agent's file system, so that tests can run there.

    None where it would have to be uploaded: for a provider that cannot mount, and where the agent's
    sandbox goes on in place, whose mounts are settled.

    Raises: as `prepared_python`.
    """
    grading = package.verifier.grading
    sandbox, provider = agent_sandbox(ctx)
    able = "ro" in provider.capabilities().mounts and not isinstance(sandbox, HandsOver)
    if grading is None or not _has_own_python(grading) or not able:
        yield ()
        return
    async with prepared_python(ctx, package, interpreters(ctx, package, ())) as prepared:
        yield (prepared.mount,)


def _has_own_python(grading: TestGrading) -> bool:
    """pytest may lie beside packages of the agent's, which it would find; so not for pytest."""
    return grading.runner == "unittest"


def _check_user(heard: Heard) -> None:
    if heard.facts.get("uid") != TESTS_UID:
        raise InvalidRewardError("tampered", "the tests did not run as the user that they must")


async def _first_line(process: Process) -> str:
    data = b""
    while b"\n" not in data and len(data) < _LONGEST_PATH:
        part = await process.read()
        if not part:
            break
        data += part
    return data.partition(b"\n")[0].decode(errors="replace")


def _keep_output(folder: Path, result: ExecResult) -> None:
    (folder / "test-stdout.txt").write_bytes(result.stderr)
