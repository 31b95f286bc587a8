"""What one rollout is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ramify.contracts.agent import Agent
from ramify.contracts.context import Context
from ramify.contracts.environment import Environment
from ramify.contracts.result import WorkItem
from ramify.contracts.sandbox import SandboxProvider, SandboxSpec
from ramify.contracts.tree import Fidelity
from ramify.kernel.places import Extra
from ramify.kernel.policy import BranchPolicy
from ramify.kernel.recorder import TreeRecorder
from ramify.kernel.stages import Stage


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What one rollout is made of.

    Attributes:
        item: identity, seed and lease.
        provider, spec: where it runs.
        agent: who acts.
        environment: the world.
        stages: the prompts, at least one; their names tell steps of a task apart.
        recorder: grows the tree; the same object that the context carries.
        reward_strategy: how the rewards of several stages become one (`stages.combined`).
        collect: keeps what is to be kept of each stage, before it is scored.
        readiness_timeout_sec: time for the phase `readiness`.
        verify_timeout_sec: time for verifying one stage, at the very most: the verifier's own
            limit comes first, this one is for a reward that keeps none.
        minimum_reward: what an `invalid` outcome counts as.
        model: name of the policy, for the record.
        policy: where it branches; None: nowhere.
        fidelity: what each child of a branch gets of the session, at least.
        keep_worlds: write down what the world holds at checkpoints and leaves.
        extra_place: waits for leave to run one more path side by side.
        child_retries: how often a child that the machine or the world failed is made again.
    """

    item: WorkItem
    provider: SandboxProvider
    spec: SandboxSpec
    agent: Agent
    environment: Environment
    stages: Sequence[Stage]
    recorder: TreeRecorder
    reward_strategy: Literal["mean", "final"] = "mean"
    collect: Callable[[Context], Awaitable[None]] | None = None
    readiness_timeout_sec: float = 120.0
    verify_timeout_sec: float = 7200.0
    minimum_reward: float = 0.0
    model: str = ""
    policy: BranchPolicy | None = None
    fidelity: Fidelity = Fidelity.LIVE
    keep_worlds: bool = False
    extra_place: Extra | None = None
    child_retries: int = 1
