"""From what a caller asks for to a plan that can run: everything is resolved and checked first."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from ramify import compose
from ramify.contracts.agent import Agent
from ramify.contracts.config import SkillMode
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, UnknownNameError, UnsupportedError, UsageError
from ramify.contracts.model import Model
from ramify.contracts.reward import Described, Reward
from ramify.contracts.sandbox import SandboxProvider, SandboxSpec
from ramify.contracts.task import Hardening, IsolationLevel, Task, Taskset
from ramify.engine.job import JobPlan
from ramify.engine.reading import JobRecord
from ramify.engine.reading import Plan as PlanRecord
from ramify.engine.redact import Redactor
from ramify.engine.retry import RetryPolicy
from ramify.engine.sampler import TaskSampler
from ramify.envs.demands import (
    check_agent,
    check_image,
    check_runner,
    check_users,
    check_verifiers,
)
from ramify.envs.options import RunOptions
from ramify.envs.rubrics import (
    compares_siblings,
    describe_reward,
    load_reward,
    scored_from_record,
)
from ramify.envs.specs import enforced, sandbox_spec
from ramify.envs.strictness import is_checked, isolation_of, profile_of
from ramify.envs.verifiers import Scorers, decided_by_script, judge_of


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task, ready to run.

    `spec` is what its sandbox is made from, `isolation` how strictly it is verified, `hardening`
    what a test script of it is kept from, `rewards` what does that at each level that a stage of it
    is verified at.
    """

    task: Task
    spec: SandboxSpec
    isolation: IsolationLevel
    hardening: Hardening
    rewards: Mapping[IsolationLevel, Reward]

    @property
    def final(self) -> Reward:
        """What scores the end of a rollout."""
        return self.rewards[self.isolation]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A whole job, ready to run.

    `judge` is the model that judges, where one does. `unenforced` names limits that tasks ask for
    in vain, `unchecked` tasks whose test script runs plain because nobody checked them with this
    sandbox, `skipped` tasks that cannot be served, with the reason.
    """

    job: JobPlan
    record: JobRecord
    path: Path
    tasks: Mapping[str, PlannedTask]
    agent: Agent
    model: Model | None
    provider: SandboxProvider
    options: RunOptions
    judge: Model | None
    unenforced: Sequence[str]
    unchecked: Sequence[str]
    skipped: Mapping[str, str]


async def plan_run(
    tasks: str | Path | Taskset,
    agent: str | Agent,
    provider: SandboxProvider,
    reward: Reward | Callable[..., Any] | str | None,
    options: RunOptions,
    clock: Clock,
    redactor: Redactor,
) -> RunPlan:
    """Resolve and check everything before anything starts.

    Raises:
        UsageError: and its kinds, for whatever cannot run as asked; nothing has been made then.
    """
    taskset = compose.taskset(str(tasks), options.taskset_options) if isinstance(
        tasks, str | Path
    ) else tasks  # fmt: skip
    actor = compose.agent(agent, options.agent_options) if isinstance(agent, str) else agent
    model = _model(actor, options, clock)
    probe = await provider.probe()
    if not probe.ok:
        remedy = f"; {probe.remedy}" if probe.remedy else ""
        raise UnsupportedError(f"sandbox `{provider.name}`: {probe.detail}{remedy}")
    judge = judge_of(
        options.judge_model,
        options.judge_base_url,
        options.judge_options,
        (model, options.base_url),
        clock,
        options.seed,
    )
    scorer = None if reward is None else load_reward(reward, judge)
    scorers = Scorers(scorer, judge)
    planned, lacking, skipped = _plan_tasks(taskset, actor, provider, scorers, options)
    config = _config(taskset.taskset_id, planned, actor, model, provider, options)
    config["reward"] = _described(planned, scorer, reward)
    config |= _judge_config(judge, options)
    config_hash = hashlib.blake2b(msgspec.json.encode(config, order="deterministic"), digest_size=8)
    job_id = f"{_slug(taskset.taskset_id)}-{_slug(actor.name)}-{config_hash.hexdigest()[:8]}"
    job = JobPlan(
        job_id=job_id,
        config_hash=config_hash.hexdigest(),
        seed=options.seed,
        slots=_slots(list(planned), options),
        concurrency=options.concurrency,
        retry=RetryPolicy(max_retries=options.max_retries),
        rescored={
            key for key, entry in planned.items() if scored_from_record(entry.task, entry.final)
        },
    )
    record = JobRecord(
        job_id=job_id,
        config_hash=job.config_hash,
        created_at=clock.now(),
        plan=PlanRecord(
            task_ids=tuple(planned),
            repeats=options.roots,
            agent=actor.name,
            model=model.name if model else None,
            sandbox=provider.name,
            seed=options.seed,
            tasks=_place(tasks),
        ),
        config=redactor.clean(config),
        versions=versions(),
        git=await _git_state(),
        argv=tuple(redactor.clean(list(sys.argv))),
    )
    path = options.out or Path("runs") / job_id
    names = (sorted(lacking), [] if scorer else _unchecked(planned, provider, options))
    return RunPlan(
        job, record, path, planned, actor, model, provider, options, judge, *names, skipped
    )


def _unchecked(
    planned: Mapping[str, PlannedTask], provider: SandboxProvider, options: RunOptions
) -> list[str]:
    """Tasks whose test script runs plain, only because nobody checked them with this sandbox."""
    if options.hardening is not None:
        return []
    return [
        key
        for key, one in planned.items()
        if decided_by_script(one.task) and not is_checked(one.task, provider.name)
    ]


def _plan_tasks(
    taskset: Taskset,
    actor: Agent,
    provider: SandboxProvider,
    scorers: Scorers,
    options: RunOptions,
) -> tuple[dict[str, PlannedTask], set[str], dict[str, str]]:
    """Each task by id, the limits that cannot be enforced, and what is skipped and why.

    Raises: UsageError.
    """
    chosen = _choose(taskset, options)
    if options.image is not None:
        check_image(chosen, options.image)
    planned: dict[str, PlannedTask] = {}
    lacking: set[str] = set()
    skipped: dict[str, str] = {}
    for task in chosen:
        try:
            entry, missing = _plan_task(task, actor, provider, scorers, options)
        except UnsupportedError as error:
            if not options.skip_unsupported:
                raise
            skipped[task.task_id] = str(error)
            continue
        planned[entry.task.task_id] = entry
        lacking.update(missing)
    if not planned:
        first = next(iter(skipped.values()))
        raise UnsupportedError(f"none of the tasks can be served here: {first}")
    return planned, lacking, skipped


def _plan_task(
    task: Task, actor: Agent, provider: SandboxProvider, scorers: Scorers, options: RunOptions
) -> tuple[PlannedTask, list[str]]:
    """A task as it will run, and its limits that cannot be enforced. Raises UsageError."""
    can = provider.capabilities()
    task = _as_run(task, actor, options)
    check_users(task, provider.name, can)
    check_verifiers(task, provider.name, can)
    if scorers.given is None and compose.grading(task).kind == "script":
        check_runner(task, provider.name, can)
    wanted = sandbox_spec(task, provider.name, can, options.image)
    spec, missing = enforced(wanted, can)
    if options.branch is not None and can.snapshot == "live":
        spec = msgspec.structs.replace(spec, live=True)
    level = isolation_of(task, provider, options)
    profile = profile_of(task, level, provider.name, options)
    rewards = scorers.of(task, level, profile)
    entry = PlannedTask(task, spec, level, profile.hardening, rewards)
    compares_siblings(task, entry.final)  # refuses what cannot be, before anything starts
    return entry, missing


def _as_run(task: Task, agent: Agent, options: RunOptions) -> Task:
    """The task without what this run hides of it, in its world, and fit for the agent."""
    mode = options.rollout.skill_mode
    task = compose.hide_skills(task) if mode is SkillMode.NO_SKILL else task
    task = compose.in_world(task, options.world)
    check_agent(task, agent, mode)
    return task


def _model(agent: Agent, options: RunOptions, clock: Clock) -> Model | None:
    """The run's policy. Raises UsageError when the agent needs one and there is none."""
    if options.model is None:
        if agent.capabilities().needs_model:
            raise UsageError(
                f"the agent {agent.name} needs a model; give one with --model provider/name"
            )
        if options.base_url is not None or options.model_options:
            raise UsageError("options of a model without a model; give --model provider/name")
        return None
    if not isinstance(options.model, str):
        return options.model
    rng = random.Random(options.seed)
    return compose.model(options.model, options.base_url, options.model_options, clock, rng)


def _place(tasks: str | Path | Taskset) -> str:
    """Where the tasks are, so that it can be found again from elsewhere."""
    if not isinstance(tasks, str | Path):
        return ""
    return str(Path(tasks).absolute()) if Path(tasks).exists() else str(tasks)


def _slots(task_ids: Sequence[str], options: RunOptions) -> list[tuple[str, int]]:
    if options.sampler is not None:
        return _checked(list(options.sampler(task_ids)), set(task_ids))
    order = "shuffled" if options.shuffle else "given"
    return list(TaskSampler(task_ids, options.seed, order, options.roots))


def _checked(slots: list[tuple[str, int]], known: Set[str]) -> list[tuple[str, int]]:
    """What a sampler gave. Raises UsageError for what cannot be run, or not twice at once."""
    for task_id, repeat in slots:
        if task_id not in known:
            raise UnknownNameError("task", task_id, known)
        if repeat < 0:
            raise UsageError(f"the sampler gave repeat {repeat} of {task_id}; they count from 0")
    if len(set(slots)) < len(slots):
        [(slot, times)] = Counter(slots).most_common(1)
        raise UsageError(
            f"the sampler gave repeat {slot[1]} of {slot[0]} {times} times; number repeats of a "
            "task anew each time it is drawn, as TaskSampler does"
        )
    return slots


def _choose(taskset: Taskset, options: RunOptions) -> list[Task]:
    without = {taskset.get_task(task_id).task_id for task_id in options.exclude}
    wanted = (taskset.get_task(i) for i in options.task_ids) if options.task_ids else taskset
    kept = (task for task in wanted if task.task_id not in without)
    chosen = list(islice(kept, options.limit))
    if not chosen:
        left = " left: all are excluded" if without else ""
        raise ConfigError(f"the taskset {taskset.taskset_id} has no tasks{left}")
    return chosen


def _config(
    taskset_id: str,
    planned: Mapping[str, PlannedTask],
    agent: Agent,
    model: Model | None,
    provider: SandboxProvider,
    options: RunOptions,
) -> dict[str, Any]:
    """Everything that may change a result; its hash decides whether a job is the same job."""
    hardened = {k: e.hardening for k, e in planned.items() if e.hardening is not Hardening.PLAIN}
    return {
        "taskset": taskset_id,
        "tasks": {
            task_id: entry.task.package.digest + compose.world_digest(entry.task)
            if entry.task.package
            else _digest(entry.task)
            for task_id, entry in planned.items()
        },  # fmt: skip
        "agent": agent.name,
        "agent_options": dict(options.agent_options),
        **(_model_config(model, options) if model else {}),
        "sandbox": provider.name,
        "repeats": options.roots,
        "seed": options.seed,
        "shuffle": options.shuffle,
        "image": options.image,
        "isolation": options.isolation,
        **({"hardening": hardened} if hardened else {}),
        "rollout": msgspec.to_builtins(options.rollout),
        **({"branch": options.branch, "fidelity": options.fidelity} if options.branch else {}),
    }


def _described(
    planned: Mapping[str, PlannedTask],
    scorer: Reward | None,
    given: Reward | Callable[..., Any] | str | None,
) -> Any:
    """The rewards as they are written down: the caller's, or those of tasks that have a rubric."""
    if scorer is not None:
        return describe_reward(scorer, given if isinstance(given, str) else None)
    rubrics = {key: one.final for key, one in planned.items() if isinstance(one.final, Described)}
    return {key: describe_reward(rubric) for key, rubric in rubrics.items()} or None


def versions() -> dict[str, str]:
    """What a job was run with, by name."""
    return {
        "ramify": version("ramify"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _model_config(model: Model, options: RunOptions) -> dict[str, Any]:
    return {
        "model": model.name,
        "base_url": options.base_url,
        "model_options": dict(options.model_options),
    }


def _judge_config(judge: Model | None, options: RunOptions) -> dict[str, Any]:
    if judge is None:
        return {}
    chosen = {"options": dict(options.judge_options)} if options.judge_options else {}
    return {"judge": {"model": judge.name, "base_url": options.judge_base_url, **chosen}}


def _digest(task: Task) -> str:
    return hashlib.blake2b(
        msgspec.json.encode(task, order="deterministic"), digest_size=16
    ).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40] or "job"


async def _git_state() -> dict[str, str] | None:
    """Commit and cleanliness of the current directory; None outside a repository."""
    if shutil.which("git") is None:
        return None
    commit = await _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = await _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "dirty": "yes" if changed else "no"}


async def _git(*arguments: str) -> str | None:
    process = await asyncio.create_subprocess_exec(
        "git", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace") if process.returncode == 0 else None
