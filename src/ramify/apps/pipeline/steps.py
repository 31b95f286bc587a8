"""The steps of a run, one after the other, in one sandbox, until the first that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ramify.apps.pipeline.collect import used_bytes
from ramify.apps.pipeline.command import Bounds, CommandLine, Ended, Running
from ramify.apps.pipeline.events import Teller
from ramify.apps.pipeline.guard import Change
from ramify.apps.pipeline.layout import RunDirectory, log_names
from ramify.apps.pipeline.logs import BoundedLog, CombinedLog, StepLog
from ramify.apps.pipeline.masks import Masker
from ramify.apps.pipeline.place import connect, network_wish
from ramify.apps.pipeline.records import (
    NetworkWish,
    PipelineSpec,
    Reason,
    StepReport,
    StepSpec,
    WriteViolation,
)
from ramify.apps.pipeline.report import Verdict, listed, stamp
from ramify.contracts.context import Clock
from ramify.contracts.errors import InfraError
from ramify.contracts.sandbox import NetworkPolicy, Sandbox

_WATCH_SEC = 0.5
_QUOTA_EVERY = 4
_ROOM_BYTES = 1 << 20

Look = Callable[[bool], Awaitable[list[Change]]]
"""What was done to the repository so far; True: only what cannot be undone."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What steps run on and in.

    Attributes:
        sandbox: theirs.
        repo: where they see the repository.
        env: variables of all of them.
        policies: what each network wish stands for; at first there is none.
        look: asks the write guard.
        free_bytes: room on the disk of the run's directory.
    """

    sandbox: Sandbox
    repo: Path
    env: Mapping[str, str]
    policies: Mapping[NetworkWish, NetworkPolicy]
    look: Look
    free_bytes: Callable[[], int]


@dataclass(slots=True)
class Steps:
    """Runs the steps of a pipeline; close it with `aclose`.

    Attributes:
        spec: the pipeline.
        run: its directory.
        combined: the log of all steps.
        reports: one for each step, once `run_all` has returned.
    """

    spec: PipelineSpec
    run: RunDirectory
    combined: CombinedLog
    masker: Masker
    clock: Clock
    tell: Teller
    reports: list[StepReport] = field(default_factory=list[StepReport])
    _background: list[tuple[int, Running, StepLog]] = field(
        default_factory=list[tuple[int, Running, StepLog]]
    )
    _kept: set[int] = field(default_factory=set[int])

    async def run_all(self, stage: Stage) -> Verdict:
        """Run them, then end what was left in the background. Raises: InfraError, OSError."""
        deadline = self.clock.monotonic() + self.spec.timeout_sec
        verdict = Verdict("ok", f"{len(self.spec.steps)} steps passed")
        connected: NetworkWish = "none"
        names = log_names([step.name for step in self.spec.steps])
        for number, step in enumerate(self.spec.steps):
            wish = network_wish(step)
            if wish != connected:
                await connect(stage.sandbox, stage.policies[wish])
                connected = wish
            verdict = await self._step(stage, number, names[number], deadline)
            if not verdict.passed:
                break
        await self.aclose()
        if verdict.passed and self.reports and any(s.background for s in self.spec.steps):
            verdict = await self._last_look(stage)
        self.skip_rest()
        return verdict if not verdict.passed else Verdict("ok", f"{len(self.reports)} steps passed")

    def skip_rest(self) -> None:
        """Report every step that was not started as skipped."""
        for step in self.spec.steps[len(self.reports) :]:
            wish = network_wish(step)
            self.reports.append(StepReport(step.name, step.command, "skipped", network=wish))

    async def aclose(self) -> None:
        """End what steps left in the background. Idempotent."""
        while self._background:
            number, running, log = self._background.pop()
            try:
                await running.aclose()
                self.reports[number] = _measured(self.reports[number], running)
            finally:
                await log.aclose()

    async def _step(self, stage: Stage, number: int, name: str, deadline: float) -> Verdict:
        step = self.spec.steps[number]
        path = self.run.logs / name
        log = StepLog(
            BoundedLog(path), self.combined, self.masker.stream(), self.tell.output(step, number)
        )
        self.tell.step_started(step, number)
        began, started = self.clock.monotonic(), self.clock.now()
        left = deadline - began
        timeout = left if step.timeout_sec is None else min(step.timeout_sec, left)
        bounds = Bounds(timeout, self.spec.grace_sec, lambda: self._watch(stage))
        line = CommandLine(
            (*step.shell, step.command), str(stage.repo / step.cwd), {**stage.env, **step.env}
        )
        running = await Running.start(stage.sandbox, line, log.feed)
        kept = False
        try:
            ended = await running.wait(bounds)
            duration = self.clock.monotonic() - began
            leftovers = await self._leftovers(running, step)
            alone = not (leftovers or step.background or self._background)
            await running.settle(alone=alone)
            kept = step.background and ended.exit_code == 0
            if not kept:
                await running.aclose()
            violations = [
                WriteViolation(change.path, change.kind, step.name)
                for change in await stage.look(False)
            ]
            if not ended.stopped and await self._over_quota():
                ended = replace(ended, stopped="artifact_quota")
            verdict = self._judge(stage, step, ended, violations, timeout)
            if leftovers and not kept:
                log.note(f"killed what the step left behind: {', '.join(leftovers[:10])}")
            if not verdict.passed:
                log.note(verdict.message)
        except BaseException:
            await running.aclose()
            await log.aclose()
            raise
        if kept:
            self._background.append((number, running, log))
        else:
            await log.aclose()
        report = StepReport(
            name=step.name,
            command=step.command,
            status="passed" if verdict.passed else "failed",
            started_at=stamp(started),
            exit_code=ended.exit_code,
            signal=ended.signal,
            timed_out=ended.timed_out,
            oom_killed=ended.oom_killed,
            duration_ms=round(duration * 1000),
            network=network_wish(step),
            log=f"logs/{name}",
            log_bytes=log.log.total,
            log_dropped_bytes=log.log.dropped,
            leftover_processes=len(leftovers),
            write_violations=tuple(violations),
            error=None if verdict.passed else verdict.message,
        )
        if not kept:
            report = _measured(report, running)
        self.reports.append(report)
        self.tell.step_ended(report, number)
        return verdict

    async def _leftovers(self, running: Running, step: StepSpec) -> tuple[str, ...]:
        """What is alive that was not before; it is meant to be where a step says so."""
        alive = await running.left_behind()
        if step.background:
            self._kept.update(one.root for one in alive)
            return ()
        return tuple(one.name for one in alive if one.root not in self._kept)

    async def _watch(self, stage: Stage) -> str:
        """Returns when a step must be stopped at once."""
        turn = 0
        while True:
            await self.clock.sleep(_WATCH_SEC)
            turn += 1
            if await stage.look(True):
                return "write_violation"
            if turn % _QUOTA_EVERY == 0 and await self._over_quota():
                return "artifact_quota"

    async def _over_quota(self) -> bool:
        used = await asyncio.to_thread(used_bytes, self.run.path)
        return used > self.spec.max_artifact_bytes

    def _judge(
        self,
        stage: Stage,
        step: StepSpec,
        ended: Ended,
        violations: list[WriteViolation],
        timeout: float,
    ) -> Verdict:
        name = f"step {step.name!r}"
        if violations:
            paths = [f"{v.path} ({v.kind})" for v in violations]
            return Verdict("write_violation", f"{name} changed the repository: {listed(paths)}")
        if ended.stopped == "artifact_quota":
            limit = self.spec.max_artifact_bytes
            return Verdict("artifact_quota", f"{name} wrote more than {limit} bytes")
        if ended.timed_out:
            return Verdict("timeout", f"{name} did not end within {timeout:g} s and was killed")
        if ended.exit_code == 0 or ended.exit_code in step.allow_exit_codes:
            return Verdict("ok", "")
        if stage.free_bytes() < _ROOM_BYTES:
            raise InfraError(
                f"the disk of {self.run.root} is full, so {name} could not run to its end; "
                "make room, or set AGENT_ARTIFACT_DIR"
            )
        reason: Reason = "oom" if ended.oom_killed else "step_failed"
        why = " and was killed for memory" if ended.oom_killed else ""
        return Verdict(reason, f"{name} exited with {ended.exit_code}{why}")

    async def _last_look(self, stage: Stage) -> Verdict:
        """What the background did after the last step's end counts against who started it."""
        changes = await stage.look(False)
        if not changes:
            return Verdict("ok", "")
        index = max(i for i, step in enumerate(self.spec.steps) if step.background)
        report = self.reports[index]
        paths = [f"{change.path} ({change.kind})" for change in changes]
        message = f"step {report.name!r} changed the repository: {listed(paths)}"
        violations = tuple(WriteViolation(c.path, c.kind, report.name) for c in changes)
        self.reports[index] = _failed(report, violations, message)
        return Verdict("write_violation", message)


def _measured(report: StepReport, running: Running) -> StepReport:
    """With what a step used, all of which has ended."""
    usage = running.usage
    if usage is None:
        why = "the sandbox does not tell what it used, or the process that counts was killed"
        return msgspec.structs.replace(report, not_measured=why)
    least = f"no process of it held more than {usage.least_rss} bytes, which starting one takes"
    return msgspec.structs.replace(
        report,
        peak_rss=usage.peak_rss,
        cpu_ms=usage.cpu_ms,
        not_measured=least if usage.peak_rss is None else None,
    )


def _failed(report: StepReport, violations: tuple[WriteViolation, ...], message: str) -> StepReport:
    return msgspec.structs.replace(
        report, status="failed", write_violations=violations, error=message
    )
