"""The conformance suite of the Reward contract.

What a reward thinks of a node cannot be known in general, so the caller brings scenes: each opens
a fresh reward, node and context (with the agent's sandbox as the agent left it).

    bench = RewardBench({"right": right, "wrong": wrong, "broken": broken})
    await check.run(bench)   # for each check of REWARD_CHECKS

Scenes: `right` (the task is solved), `wrong` (it is not), `broken` (the evidence is missing,
malformed, out of range or tampered with). A check whose scene is not brought is skipped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import InfraError, InvalidRewardError, SandboxError
from ramify.contracts.reward import Reward, VerifyResult
from ramify.contracts.sandbox import (
    Capabilities,
    ProbeReport,
    Sandbox,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
    TransferLimits,
)
from ramify.contracts.task import IsolationLevel
from ramify.contracts.tree import RolloutNode
from ramify.testing.check import (
    Check,
    CheckSkipped,
    ConformanceError,
    check,
    equal,
    raises,
    require,
    within,
)

RewardScene = Callable[[], AbstractAsyncContextManager[tuple[Reward, RolloutNode, Context]]]

INVALID_REASONS = frozenset({"tampered", "missing", "malformed", "range", "no_evidence"})
STRICT = frozenset({IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR})


@dataclass(frozen=True, slots=True)
class RewardBench:
    """A reward under test.

    Attributes:
        scenes: by name: `right`, `wrong`, `broken`.
        expected: what `right` and `wrong` are worth, where that is known.
        uses_sandbox: whether scoring needs the agent's sandbox.
        scratch: an empty host directory.
    """

    scenes: Mapping[str, RewardScene]
    scratch: Path
    expected: Mapping[str, float] = field(default_factory=dict[str, float])
    uses_sandbox: bool = True

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`. Needs: the names of scenes, and `sandbox`."""
        if need == "sandbox":
            return None if self.uses_sandbox else "this reward does not use a sandbox"
        if need not in ("right", "wrong", "broken"):
            raise ValueError(f"unknown scene {need!r}; known: right, wrong, broken")
        return None if need in self.scenes else f"there is no scene {need!r} for this reward"

    async def score(self, scene: str) -> VerifyResult:
        """The score of a scene, opened afresh."""
        async with self.scenes[scene]() as (reward, node, ctx):
            return await reward.score(node, ctx)


class _WatchedProvider:
    """Passes everything on to a provider, and notes what was made and not yet ended."""

    def __init__(self, inner: SandboxProvider) -> None:
        self._inner = inner
        self.made: list[Sandbox] = []

    @property
    def name(self) -> str:
        return self._inner.name

    async def probe(self) -> ProbeReport:
        return await self._inner.probe()

    def capabilities(self) -> Capabilities:
        return self._inner.capabilities()

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        return await self._inner.prepare(spec)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        sandbox = await self._inner.create(spec, image)
        self.made.append(sandbox)
        return sandbox

    async def discard(self, image: SandboxImage) -> None:
        await self._inner.discard(image)

    async def sweep(self) -> int:
        return await self._inner.sweep()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def alive(self) -> list[str]:
        """Ids of the sandboxes made here that still run."""
        found: list[str] = []
        for sandbox in self.made:
            with suppress(SandboxError):
                await sandbox.exec("true", timeout_sec=5)
                found.append(sandbox.id)
        return found


def _watched(ctx: Context) -> tuple[Context, _WatchedProvider]:
    if ctx.sandboxes is None:
        raise CheckSkipped("the scene's context has no sandbox provider")
    watched = _WatchedProvider(ctx.sandboxes)
    return dataclasses.replace(ctx, sandboxes=watched), watched


@check("right")
async def _right_is_a_finite_number(bench: RewardBench) -> None:
    """score returns a VerifyResult with a finite reward."""
    result = await bench.score("right")
    if result.reward is None or not math.isfinite(result.reward):
        raise ConformanceError(f"a solved task must have a finite reward, not {result.reward}")
    if "right" in bench.expected:
        equal(result.reward, bench.expected["right"], "reward of the solved task")


@check("right", "wrong")
async def _none_is_not_zero(bench: RewardBench) -> None:
    """A task that is not solved is scored: None means "not scored" and is never the same as 0."""
    right, wrong = await bench.score("right"), await bench.score("wrong")
    if right.reward is None or wrong.reward is None:
        raise ConformanceError("None means that scoring failed; both scenes can be scored")
    require(right.reward > wrong.reward, f"solved {right.reward}, not solved {wrong.reward}")
    if "wrong" in bench.expected:
        equal(wrong.reward, bench.expected["wrong"], "reward of the task that is not solved")


@check("broken")
async def _broken_evidence_is_invalid(bench: RewardBench) -> None:
    """Evidence that cannot be trusted or read raises InvalidRewardError with one of its reasons."""
    try:
        result = await bench.score("broken")
    except InvalidRewardError as error:
        require(error.reason in INVALID_REASONS, f"{error.reason!r} is none of the reasons")
        require(bool(error.message), "the error must say what is wrong")
    else:
        raise ConformanceError(f"broken evidence became a reward of {result.reward}")


@check("right", "sandbox")
async def _lost_sandbox_is_infrastructure(bench: RewardBench) -> None:
    """InfraError: scoring itself failed. A failure never becomes a number."""
    async with bench.scenes["right"]() as (reward, node, ctx):
        if ctx.sandbox is None:
            raise CheckSkipped("the scene's context has no sandbox")
        await ctx.sandbox.teardown()
        with raises(InfraError, doing="scoring when the agent's sandbox is gone"):
            result = await reward.score(node, ctx)
            if result.reward is None:
                raise InfraError("not scored, which is the other right answer")


@check("right", "wrong")
async def _same_evidence_same_score(bench: RewardBench) -> None:
    """The same evidence has the same score, items and events."""
    for scene in ("right", "wrong"):
        one, two = await bench.score(scene), await bench.score(scene)
        equal((one.reward, one.items), (two.reward, two.items), f"second score of {scene!r}")
        equal(one.events, two.events, f"events of the second score of {scene!r}")


@check("right")
async def _result_can_be_stored(bench: RewardBench) -> None:
    """A result says what agent and verifier shared, and survives being written and read."""
    result = await bench.score("right")
    require(bool(result.grader_isolation), "grader_isolation must be recorded")
    again = msgspec.json.decode(msgspec.json.encode(result), type=VerifyResult)
    equal(again, result, "the result, written and read again")


async def _look(ctx: Context, scratch: Path, name: str) -> str:
    """Digest of what a download of the work directory shows, and whether tests are planted."""
    if ctx.sandbox is None:
        raise CheckSkipped("the scene's context has no sandbox")
    local = scratch / name
    digest = hashlib.sha256()
    for remote in (ctx.workdir, "/tests", "/logs/verifier"):
        target = local / remote.strip("/")
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        try:
            await ctx.sandbox.download(remote, target, limits=TransferLimits(links="inside"))
        except FileNotFoundError:
            digest.update(f"no {remote}\n".encode())
    await asyncio.to_thread(_add_tree, digest.update, local)
    return digest.hexdigest()


def _add_tree(add: Callable[[bytes], object], top: Path) -> None:
    for path in sorted(top.rglob("*")):
        add(
            f"{path.relative_to(top)} {path.lstat().st_mode:o}\n".encode("utf-8", "surrogateescape")
        )
        if path.is_file() and not path.is_symlink():
            add(path.read_bytes())


@check("right", "sandbox")
async def _agents_sandbox_is_left_alone(bench: RewardBench) -> None:
    """At strict levels the verifier changes nothing that a later download would show."""
    async with bench.scenes["right"]() as (reward, node, ctx):
        before = await _look(ctx, bench.scratch, "before")
        result = await reward.score(node, ctx)
        if result.grader_isolation not in STRICT:
            raise CheckSkipped(f"the level is {result.grader_isolation}, which is not strict")
        equal(await _look(ctx, bench.scratch, "after"), before, "digest of the agent's files")


@check("right", "sandbox")
async def _resources_are_freed(bench: RewardBench) -> None:
    """Whatever was made for scoring is gone afterwards."""
    async with bench.scenes["right"]() as (reward, node, ctx):
        ctx, watched = _watched(ctx)
        await reward.score(node, ctx)
        equal(await watched.alive(), [], "sandboxes left running")


@check("broken", "sandbox")
async def _resources_are_freed_on_failure(bench: RewardBench) -> None:
    """Whatever was made for scoring is gone afterwards, also when scoring raises."""
    async with bench.scenes["broken"]() as (reward, node, ctx):
        ctx, watched = _watched(ctx)
        with raises(InvalidRewardError, doing="scoring broken evidence"):
            await reward.score(node, ctx)
        equal(await watched.alive(), [], "sandboxes left running")


@check("right", "sandbox")
async def _resources_are_freed_when_cancelled(bench: RewardBench) -> None:
    """Cancelling scoring ends it soon and leaves nothing running."""
    for delay in (0.02, 0.15):
        async with bench.scenes["right"]() as (reward, node, ctx):
            ctx, watched = _watched(ctx)
            task = asyncio.create_task(reward.score(node, ctx))
            await asyncio.sleep(delay)
            with within(10, "cancelling a score"):
                task.cancel()
                await asyncio.wait({task})
            equal(await watched.alive(), [], "sandboxes left running")


REWARD_CHECKS: tuple[Check[RewardBench], ...] = (
    _right_is_a_finite_number,
    _none_is_not_zero,
    _broken_evidence_is_invalid,
    _lost_sandbox_is_infrastructure,
    _same_evidence_same_score,
    _result_can_be_stored,
    _agents_sandbox_is_left_alone,
    _resources_are_freed,
    _resources_are_freed_on_failure,
    _resources_are_freed_when_cancelled,
)
"""Every check of the Reward contract."""
