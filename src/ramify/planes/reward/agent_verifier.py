"""An agent as the verifier: it grades what another agent left, in a sandbox of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ramify.contracts.agent import Agent, Session, StopReason
from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.config import RolloutConfig, Sampling
from ramify.contracts.context import Context
from ramify.contracts.errors import (
    AgentError,
    ConfigError,
    InvalidRewardError,
    LimitExceededError,
    ModelError,
    RewardFailedError,
    TransferLimitError,
    UnsupportedError,
)
from ramify.contracts.inside import TESTS_DIR, VERIFIER_LOGS_DIR, WORLD_FILE
from ramify.contracts.messages import Usage
from ramify.contracts.metering import charge
from ramify.contracts.model import Model
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.sandbox import Sandbox, TransferLimits
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import IsolationLevel, McpServer, TaskPackage
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.agent_transcript import TranscriptRecorder
from ramify.planes.reward.agent_verdict import (
    AgentVerdict,
    UnusableAnswerError,
    grading_prompt,
    read_verdict,
    try_again,
)
from ramify.planes.reward.stage import (
    Carried,
    Prepare,
    carry_outputs,
    fresh_sandbox,
)
from ramify.planes.reward.tests import tests_tree
from ramify.planes.reward.transcript import final_answer

_VERDICT_FILE = f"{VERIFIER_LOGS_DIR}/verdict.json"
_VERDICT_LIMITS = TransferLimits(max_bytes=64 * 1024, max_file_bytes=64 * 1024, max_entries=1)
_REASKS = 2
_NO_SERVERS: tuple[McpServer, ...] = ()


class AgentVerifier:
    """Lets an agent grade in a fresh sandbox. Implements `Reward`.

    The sandbox is made from the pristine image and holds what the other agent left (its declared
    outputs, or its whole work directory), /tests with the task's tests and hidden fixtures, and
    what the world answered at the end as /tests/world.json; none of the other agent's processes,
    and no network unless the task's verifier has it. The grader is told to trust nothing that was
    left. Its verdict is read on our side, and carries a nonce that only it was told.

    A grader that fails, or gives no usable verdict, is asked again a few times, and is an error
    after that. It is the grader's (RewardFailedError) unless the same grader has no trouble with an
    untouched workspace: then what was left keeps it from grading (InvalidRewardError).

    Its conversation is kept in `verifier/grader.jsonl` among the rollout's artifacts.

    Args:
        agent: who grades.
        prepare: brings a fresh sandbox to the task's start.
        instruction: what to grade by; empty: what lies in /tests.
        level: `outputs` or `workdir`; what shares more counts as `workdir`.
        model: the grader's model; never the policy's by itself.
        verdict: `answer`, the last thing that the grader says, which nothing inside can touch; or
            `file`, for agents whose words are not seen.
        config: limits of the grader's work. Its time is that of the task's verifier.
    """

    def __init__(
        self,
        agent: Agent,
        prepare: Prepare,
        instruction: str = "",
        *,
        level: IsolationLevel = IsolationLevel.WORKDIR,
        model: Model | None = None,
        verdict: Literal["answer", "file"] = "answer",
        config: RolloutConfig | None = None,
    ) -> None:
        self._agent, self._prepare, self._instruction = agent, prepare, instruction
        self._level = level if level is IsolationLevel.OUTPUTS else IsolationLevel.WORKDIR
        self._model = model
        self._place: Literal["answer", "file"] = verdict
        self._config = config or RolloutConfig(max_turns=60, sampling=Sampling(temperature=0.0))
        self._baselines: dict[tuple[str, int | None], bool] = {}
        self._baseline_turn = asyncio.Lock()

    @property
    def name(self) -> str:
        """Who grades."""
        return f"agent:{self._agent.name}"

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Let the agent grade what was left.

        Raises: InvalidRewardError (what was left cannot be graded), RewardFailedError (the grader
        failed), UnsupportedError (no task directory), ConfigError (no declared outputs at level
        `outputs`), InfraError, SandboxError.
        """
        package = ctx.task.package
        if package is None:
            raise UnsupportedError(
                f"task {ctx.task.task_id} comes without a directory, so an agent that grades has "
                "nothing to start from; score it with a reward function or a judge"
            )
        settled = package.outputs or package.verifier.separate
        if self._level is IsolationLevel.OUTPUTS and not settled:
            raise ConfigError(
                "the task declares no outputs, which grading at level `outputs` needs; declare "
                "them or choose level `workdir`",
                file=package.path,
                field="outputs",
            )
        folder = ctx.artifacts / "verifier"
        try:
            async with self._stage(ctx, package) as (sandbox, carried):
                graded = await self._grade(ctx, package, sandbox, folder)
        except UnusableAnswerError as error:
            if await self._works(ctx, package, folder / "baseline"):
                raise InvalidRewardError(
                    "malformed",
                    f"the grader {self._agent.name} gives no usable verdict on what was left "
                    f"({error}), while it does on an untouched workspace; see {folder}",
                ) from error
            raise RewardFailedError(
                f"the grader {self._agent.name} gives no usable verdict: {error}; see {folder}"
            ) from error
        return _result(graded, carried, self._level, self.name)

    @asynccontextmanager
    async def _stage(
        self, ctx: Context, package: TaskPackage
    ) -> AsyncGenerator[tuple[Sandbox, Carried]]:
        whole = self._level is IsolationLevel.WORKDIR and not package.verifier.separate
        async with fresh_sandbox(ctx, package, self._prepare) as sandbox:
            yield sandbox, await carry_outputs(ctx, package, sandbox, workdir=whole)

    async def _works(self, ctx: Context, package: TaskPackage, folder: Path) -> bool:
        """Whether the grader gives a verdict on an untouched workspace. Found out once a task."""
        async with self._baseline_turn:
            key = (package.digest, package.at)
            if key not in self._baselines:
                async with fresh_sandbox(ctx, package, self._prepare) as sandbox:
                    try:
                        await self._grade(ctx, package, sandbox, folder)
                        self._baselines[key] = True
                    except UnusableAnswerError:
                        self._baselines[key] = False
            return self._baselines[key]

    async def _grade(
        self, ctx: Context, package: TaskPackage, sandbox: Sandbox, folder: Path
    ) -> _Graded:
        await _furnish(ctx, package, sandbox)
        recorder = TranscriptRecorder(folder / "grader.jsonl")
        nonce = secrets.token_hex(12)
        inside = self._context(ctx, package, sandbox, recorder, folder)
        seconds = package.verifier.timeout_sec * ctx.config.timeout_multiplier
        grading = _Grading(self._agent, inside, sandbox, nonce, package, self._place)
        try:
            async with asyncio.timeout(seconds):
                verdict = await grading.verdict()
        except TimeoutError as error:  # its own, or an agent's that says so
            raise UnusableAnswerError(f"it did not finish within {seconds:g} s") from error
        except (AgentError, LimitExceededError) as error:
            raise UnusableAnswerError(f"it failed: {error}") from error
        except ModelError as error:
            raise RewardFailedError(f"the grader {self._agent.name} failed: {error}") from error
        finally:
            charge(recorder.used)
            await uninterrupted(recorder.aclose())
        return _Graded(verdict, recorder.used, recorder.count)

    def _context(
        self,
        ctx: Context,
        package: TaskPackage,
        sandbox: Sandbox,
        recorder: TranscriptRecorder,
        folder: Path,
    ) -> Context:
        """What the grader has in place of the other agent's: nothing of its task but the files."""
        bare = msgspec.structs.replace(
            package, mcp_servers=_NO_SERVERS, skills_dir=None, agent_user=package.verifier.user
        )
        prompt = grading_prompt(
            self._instruction, ctx.task.instruction, package.verifier.reward_range
        )
        task = msgspec.structs.replace(ctx.task, input=prompt, target=None, package=bare)
        return dataclasses.replace(
            ctx,
            task=task,
            config=self._config,
            recorder=recorder,
            artifacts=folder,
            model=self._model,
            sandbox=sandbox,
        )


@dataclass(frozen=True, slots=True)
class _Graded:
    verdict: AgentVerdict
    used: Usage
    steps: int


@dataclass(frozen=True, slots=True)
class _Grading:
    """One session of the grader. Single-use."""

    agent: Agent
    ctx: Context
    sandbox: Sandbox
    nonce: str
    package: TaskPackage
    place: Literal["answer", "file"]

    async def verdict(self) -> AgentVerdict:
        """Let it grade; ask again for a verdict that can be read, where it can be asked again."""
        bounds = self.package.verifier.reward_range
        target = _VERDICT_FILE if self.place == "file" else None
        text = f"{self.ctx.task.instruction}\n\n{try_again('', self.nonce, bounds, target)}"
        session = await self.agent.connect(self.sandbox, self.ctx, "verifier")
        try:
            failure = UnusableAnswerError("it was not asked")
            tries = 1 + (_REASKS if self.agent.capabilities().multi_prompt else 0)
            for _ in range(tries):
                reason = await session.prompt(text)
                if reason is not StopReason.END_TURN:
                    raise UnusableAnswerError(f"its turn ended by `{reason}`")
                try:
                    return read_verdict(await self._said(session), self.nonce, bounds)
                except UnusableAnswerError as error:
                    failure = error
                text = try_again(str(failure), self.nonce, bounds, target)
            raise failure
        finally:
            await uninterrupted(session.aclose())

    async def _said(self, session: Session) -> str:
        if self.place == "answer":
            said = [message for step in session.steps[-1:] for message in step.messages]
            return final_answer(said)
        async with Scratch() as folder:
            local = folder / "verdict.json"
            try:
                await self.sandbox.download(_VERDICT_FILE, local, limits=_VERDICT_LIMITS)
            except (FileNotFoundError, TransferLimitError):
                raise UnusableAnswerError(f"{_VERDICT_FILE} is missing or too large") from None
            if not local.is_file():
                raise UnusableAnswerError(f"{_VERDICT_FILE} is no file")
            data = await asyncio.to_thread(local.read_bytes)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise UnusableAnswerError(f"{_VERDICT_FILE} is not UTF-8") from None


async def _furnish(ctx: Context, package: TaskPackage, sandbox: Sandbox) -> None:
    """Put tests, hidden fixtures and the world's answer in place; nobody else's are left there."""
    async with Scratch() as empty:
        empty.chmod(0o755)  # readable by the grader's user, whatever our own umask is
        for place in (VERIFIER_LOGS_DIR, TESTS_DIR):
            await sandbox.upload(empty, place, owner=package.verifier.user, clear=True)
    async with tests_tree(ctx, package) as tests:
        if tests is not None:
            await sandbox.upload(tests, TESTS_DIR, clear=True)
        state = ctx.artifacts / WORLD_FILE
        if state.is_file() and not (tests is not None and (tests / WORLD_FILE).exists()):
            await sandbox.upload(state, f"{TESTS_DIR}/{WORLD_FILE}")


def _result(graded: _Graded, carried: Carried, level: IsolationLevel, name: str) -> VerifyResult:
    verdict, used = graded.verdict, graded.used
    details: dict[str, Any] = {
        "grader": name,
        "reason": verdict.reason,
        "steps": graded.steps,
        "usage": msgspec.to_builtins(used),
    }
    if carried.absent:
        details["outputs_absent"] = list(carried.absent)
    if carried.dropped:
        details["outputs_dropped"] = list(carried.dropped)
    return VerifyResult(
        reward=verdict.reward,
        items=verdict.items,
        events=(RewardEvent("reward", verdict.reward),),
        grader_isolation=level.value,
        details=details,
    )
