"""What a caller may say about a job besides its tasks, agent and sandbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.config import RolloutConfig
from ramify.contracts.errors import UsageError
from ramify.contracts.model import Model
from ramify.contracts.task import Hardening, IsolationLevel
from ramify.contracts.tree import Fidelity
from ramify.kernel.policy import parse_branch

PLANNED = "plan"
"""What `branch` is where a planner decides."""

_ROOTS = {"": 1, PLANNED: 8}
_BRANCHED_ROOTS = 4


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a job besides tasks, agent and sandbox.

    Attributes:
        repeats: rollouts per task; by default 1, 4 independent roots where rollouts branch, and 8
            where that is planned (4 of them pilots).
        limit: only the first so many tasks.
        task_ids: only these tasks, by canonical or item id.
        exclude: all but these tasks; `limit` counts what is left.
        skip_unsupported: leave out, by name, tasks that the agent or the sandbox cannot serve;
            else the first of them is refused.
        shuffle: start tasks in an order drawn from `seed`.
        sampler: makes the sequence of (task id, repeat) from the task ids, e.g. a TaskSampler with
            weights or a curriculum; in place of `repeats` and `shuffle`.
        concurrency: rollouts at once.
        seed: the job's seed.
        out: the run directory; by default `runs/<taskset>-<agent>-<hash>`, the same for the same
            command, so that running it again finishes what is missing.
        max_cost_usd: what the whole job may cost; when it is spent, nothing new starts.
        max_retries: retries of an outcome that is never scored.
        image: for tasks that come without a directory, and so name none; refused where no
            task is such, for it would be without effect.
        world: manifest of the world of tasks that name none.
        isolation: verify at this level; by default the one that `ramify tasks check` found, else
            `filesystem`.
        hardening: run test scripts of other formats under this profile; by default the one that
            `ramify tasks check` found at that level, else plain.
        shares_at_most: agent and verifier share no more than at this level, whatever was found.
        model: the policy, or its name, `provider/name`; the caller closes one that it made.
        base_url: where the model's endpoint is.
        judge_model: the model that judges, or its name, where tasks are graded by a model; never
            the policy, but for the name `policy`. The caller closes one that it made.
        judge_base_url: where the judge's endpoint is.
        judge_options: constructor arguments of the judge's model by name, as text.
        agent_options, taskset_options, model_options: constructor arguments by name, as text.
        resources: objects that rewards may ask for by name.
        rollout: limits and sampling of each rollout.
        branch: where rollouts branch, as `--branch` takes it (`kernel.policy.parse_branch`).
        fidelity: what each child of a branch gets of the agent's session, at least.

    Raises:
        UsageError: a number out of range.
    """

    repeats: int | None = None
    limit: int | None = None
    task_ids: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    skip_unsupported: bool = False
    shuffle: bool = False
    sampler: Callable[[Sequence[str]], Iterable[tuple[str, int]]] | None = None
    concurrency: int = 4
    seed: int = 0
    out: Path | None = None
    max_cost_usd: float | None = None
    max_retries: int = 2
    image: str | None = None
    world: Path | None = None
    isolation: IsolationLevel | None = None
    hardening: Hardening | None = None
    shares_at_most: IsolationLevel | None = None
    model: str | Model | None = None
    base_url: str | None = None
    judge_model: str | Model | None = None
    judge_base_url: str | None = None
    judge_options: Mapping[str, str] = {}
    agent_options: Mapping[str, str] = {}
    taskset_options: Mapping[str, str] = {}
    model_options: Mapping[str, str] = {}
    resources: Mapping[str, Any] = {}
    rollout: RolloutConfig = RolloutConfig()
    branch: str | None = None
    fidelity: Fidelity = Fidelity.LIVE

    @property
    def roots(self) -> int:
        """Rollouts per task."""
        return self.repeats or _ROOTS.get(self.branch or "", _BRANCHED_ROOTS)

    def __post_init__(self) -> None:
        if self.branch not in (None, PLANNED):
            parse_branch(self.branch)
        low = {"concurrency": 1, "max_retries": 0, "seed": 0}
        for name in ("limit", "repeats"):
            if getattr(self, name) is not None:
                low[name] = 1
        for name, least in low.items():
            if (value := getattr(self, name)) < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        if self.max_cost_usd is not None and not self.max_cost_usd > 0:
            raise UsageError(f"max_cost_usd must be above 0, not {self.max_cost_usd}")
        config = self.rollout
        for name in ("max_turns", "max_tokens", "max_context", "max_cost_usd", "timeout_sec"):
            value = getattr(config, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, not {value}")
        if not config.timeout_multiplier > 0:
            raise UsageError(f"timeout_multiplier must be above 0, not {config.timeout_multiplier}")
        for name in ("temperature", "top_p"):
            value = getattr(config.sampling, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be a number from 0, not {value}")
