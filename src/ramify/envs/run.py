"""`run` and `stream`: a whole job in one call. The command `ramify run` is a thin caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ramify import compose
from ramify.contracts.agent import Agent
from ramify.contracts.context import CancelScope, Clock
from ramify.contracts.events import LogEvent, Observer
from ramify.contracts.result import RolloutResult
from ramify.contracts.reward import Reward
from ramify.contracts.sandbox import SandboxProvider
from ramify.contracts.scratch import sweep_scratch
from ramify.contracts.task import Taskset
from ramify.engine.callbacks import CallbackObserver
from ramify.engine.cancel import Cancellation
from ramify.engine.clock import SystemClock
from ramify.engine.job import Job
from ramify.engine.limits import Budgets, SpendBudget
from ramify.engine.observe import FanOut, LoggingObserver, Metrics, RedactingObserver, Summary
from ramify.engine.redact import Redactor
from ramify.engine.revisions import Revisions
from ramify.engine.store import Store
from ramify.engine.summary import JobSummary
from ramify.envs.options import (
    PLANNED,
    RunOptions,
)
from ramify.envs.plan import (
    RunPlan,
    plan_run,
)
from ramify.envs.planned import PlannedBranches
from ramify.envs.recorded import Surroundings
from ramify.envs.rubrics import compares_siblings
from ramify.envs.siblings import Siblings
from ramify.envs.worker import WORLDS, RolloutWorker

SKIPPED = "tasks are left out: the agent or the sandbox cannot serve them"
UNCHECKED = "test scripts run as they are: nobody checked these tasks with this sandbox"
"""What is logged of tasks whose test script could perhaps be hardened further."""


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a finished (or interrupted) job came to.

    Attributes:
        path: the run directory.
        summary: aggregate.
        results: each rollout's result, in the order in which they finished.
        metrics: measurements of this run by name (`phase.verify`, `retries`, ...).
    """

    path: Path
    summary: JobSummary
    results: Sequence[RolloutResult]
    metrics: Mapping[str, Summary]


@dataclass(frozen=True, slots=True)
class Stand:
    """A planned job whose run directory and sandboxes are open, before anything of it runs.

    Attributes:
        plan: what is to run.
        store: the run directory.
        observer: where events go; `metrics` adds them up.
        worker: runs one attempt.
        budgets: what may run at once.
        clock, cancel: the job's.
    """

    plan: RunPlan
    store: Store
    observer: Observer
    metrics: Metrics
    worker: RolloutWorker
    budgets: Budgets
    clock: Clock
    cancel: CancelScope


@asynccontextmanager
async def open_stand(
    tasks: str | Path | Taskset,
    *,
    agent: str | Agent,
    sandbox: str | SandboxProvider,
    reward: Reward | Callable[..., Any] | str | None,
    options: RunOptions | None,
    on_event: Callable[..., Any] | None = None,
    observers: Sequence[Observer] = (),
    cancel: CancelScope | None = None,
) -> AsyncGenerator[Stand]:
    """Plan a job and open all it needs; everything is closed at the end.

    Arguments and errors are those of `open_job`.
    """
    clock = SystemClock()
    scope = cancel or Cancellation()
    async with AsyncExitStack() as stack:
        provider = compose.sandbox_provider(sandbox) if isinstance(sandbox, str) else sandbox
        if provider is not sandbox:
            stack.push_async_callback(provider.aclose)
        redactor = Redactor(env=os.environ)
        wanted = options or RunOptions()
        plan = await plan_run(tasks, agent, provider, reward, wanted, clock, redactor)
        if plan.model is not None and plan.model is not wanted.model:
            stack.push_async_callback(plan.model.aclose)
        if plan.judge is not None and plan.judge not in (plan.model, wanted.judge_model):
            stack.push_async_callback(plan.judge.aclose)
        store = await Store.create_or_open(plan.path, plan.record)
        stack.push_async_callback(store.aclose)
        await provider.sweep()
        await asyncio.to_thread(sweep_scratch)
        metrics = Metrics()
        sinks: list[Observer] = [store.observer, metrics, LoggingObserver(), *observers]
        if on_event is not None:
            callbacks = CallbackObserver(
                [on_event], RedactingObserver(store.observer, redactor), clock
            )
            sinks.append(await stack.enter_async_context(callbacks))
        observer = RedactingObserver(FanOut(sinks), redactor)
        if plan.unenforced:
            fields = {"sandbox": provider.name, "limits": list(plan.unenforced)}
            text = "limits that tasks ask for cannot be enforced here"
            observer.emit(LogEvent("", clock.now(), "warning", text, fields))
        if plan.skipped:
            fields = {"sandbox": provider.name, "tasks": dict(plan.skipped)}
            observer.emit(LogEvent("", clock.now(), "info", SKIPPED, fields))
        if plan.unchecked:
            fields = {"sandbox": provider.name, "tasks": list(plan.unchecked)}
            observer.emit(LogEvent("", clock.now(), "info", UNCHECKED, fields))
        budgets = Budgets({"rollouts": plan.options.concurrency})
        planned = None
        if plan.options.branch == PLANNED:
            planned = PlannedBranches(plan.path, plan.options.roots, observer, clock)
        place = partial(budgets.hold, {"rollouts": 1})
        fleets = compose.fleets(plan.path / WORLDS)
        stack.push_async_callback(fleets.aclose)
        worker = RolloutWorker(
            plan, store, observer, clock, scope, store.ready, place, fleets, redactor, planned
        )
        yield Stand(plan, store, observer, metrics, worker, budgets, clock, scope)


@asynccontextmanager
async def open_job(
    tasks: str | Path | Taskset,
    *,
    agent: str | Agent = "oracle",
    sandbox: str | SandboxProvider = "local",
    reward: Reward | Callable[..., Any] | str | None = None,
    options: RunOptions | None = None,
    on_event: Callable[..., Any] | None = None,
    observers: Sequence[Observer] = (),
    cancel: CancelScope | None = None,
) -> AsyncGenerator[tuple[Job, Path]]:
    """Plan a job, take its run directory, and give the job to the body, which streams it.

    Everything that was opened is closed at the end: sandboxes, provider, store. `on_event` is a
    function of the user (sync or async) that gets `event`; `observers` see the same events at
    once. The job's cancel scope is `cancel`, or one that nobody else has.

    Raises:
        UsageError: before anything is made.
        StoreError: the run directory cannot be used.
    """
    async with AsyncExitStack() as stack:
        stand = await stack.enter_async_context(
            open_stand(
                tasks,
                agent=agent,
                sandbox=sandbox,
                reward=reward,
                options=options,
                on_event=on_event,
                observers=observers,
                cancel=cancel,
            )
        )
        cost = SpendBudget("cost", stand.plan.options.max_cost_usd)
        siblings = await stack.enter_async_context(_siblings(stand))
        job = Job(
            stand.plan.job,
            stand.store,
            stand.worker,
            stand.observer,
            stand.clock,
            stand.cancel,
            stand.budgets,
            stand.metrics,
            cost,
            None if siblings is None else siblings.completed,
        )
        yield job, stand.plan.path


@asynccontextmanager
async def _siblings(stand: Stand) -> AsyncGenerator[Siblings | None]:
    """What completes the scores of a job, where some of them can only be given later."""
    plan = stand.plan
    if not plan.job.rescored and not any(
        compares_siblings(one.task, one.final) for one in plan.tasks.values()
    ):
        yield None
        return
    around = Surroundings(
        clock=stand.clock,
        cancel=stand.cancel,
        observer=stand.observer,
        model=plan.model,
        resources=plan.options.resources,
        config=plan.options.rollout,
    )
    revisions = Revisions(plan.path)
    try:
        concurrency = plan.options.concurrency
        clean = stand.worker.redactor.clean
        yield Siblings(plan.tasks, stand.store, revisions, around, concurrency, clean)
    finally:
        await revisions.aclose()


async def stream(
    tasks: str | Path | Taskset,
    *,
    agent: str | Agent = "oracle",
    sandbox: str | SandboxProvider = "local",
    reward: Reward | Callable[..., Any] | str | None = None,
    options: RunOptions | None = None,
    on_event: Callable[..., Any] | None = None,
) -> AsyncGenerator[RolloutResult]:
    """Run a job and yield each rollout's result once, as it finishes (recorded ones first).

    A slow consumer slows the job down; leaving the loop ends it, and running it again goes on.

    Raises:
        UsageError: before anything is made.
    """
    async with open_job(
        tasks, agent=agent, sandbox=sandbox, reward=reward, options=options, on_event=on_event
    ) as (job, _):
        async with aclosing(job.stream()) as results:
            async for result in results:
                yield result


async def run(
    tasks: str | Path | Taskset,
    *,
    agent: str | Agent = "oracle",
    sandbox: str | SandboxProvider = "local",
    reward: Reward | Callable[..., Any] | str | None = None,
    options: RunOptions | None = None,
    on_event: Callable[..., Any] | None = None,
) -> JobReport:
    """Run a job to its end and report.

    Args:
        tasks: a task directory, a directory of them, a taskset's name or import path, or a
            Taskset.
        agent: an agent, or its name.
        sandbox: a sandbox provider (which the caller closes), or its name.
        reward: how to score; by default each task directory's own verifier. A plain function
            gets the arguments that it names. A text is the place of a rubric: `file.py:name` or
            `package.module:name`. Where parts of it compare siblings, a result is given when all
            rollouts of its task have ended.
        options: everything else.
        on_event: called with each `event`, in order.

    Raises:
        UsageError: before anything is made.
    """
    async with open_job(
        tasks, agent=agent, sandbox=sandbox, reward=reward, options=options, on_event=on_event
    ) as (job, path):
        async with aclosing(job.stream()) as results:
            finished = [result async for result in results]
        return JobReport(path, job.summary, finished, job.metrics.report())
