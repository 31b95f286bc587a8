"""What is to be run, and what came of it: the records that cross between engine and worker."""

from __future__ import annotations

import hashlib
import re

import msgspec

from ramify.contracts.errors import RewardFailedError
from ramify.contracts.messages import Usage
from ramify.contracts.tree import Outcome


class WorkItem(msgspec.Struct, frozen=True):
    """One rollout to run. `fence` rises with every lease; the newest one's result counts."""

    job_id: str
    task_id: str
    repeat: int
    seed: int
    config_hash: str
    attempt: int = 1
    fence: int = 0

    @property
    def rollout_id(self) -> str:
        """Unique within the job, the same on every attempt, safe as a file name."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.task_id.partition(":")[2]).strip("-.")[:48]
        key = hashlib.blake2b(self.task_id.encode(), digest_size=4).hexdigest()
        return f"{slug or 'task'}-{key}-{self.repeat}"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is recorded: stable code, message, and whether retrying may help."""

    code: str
    message: str
    retryable: bool = False
    phase: str = ""


class RolloutResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finished rollout: a line of results.jsonl.

    `reward` is None where the outcome is never scored; for `invalid` it is the task's minimum.
    `timings` are seconds by phase. `trajectory_hash` identifies what was recorded in the tree.

    A rollout that branched has several `leaves`; its `reward` is the value of the root (child
    mean, DESIGN.md §4), `reward_se` its standard error between children (None: unknown), `biased`
    says that outcomes decided where it branched, `dropped` counts leaves that were never scored.

    `usage` is what the policy cost, `grading` what judges and agents that grade did; verdicts that
    were known already cost nothing. What siblings are compared by counts on the first of them.

    `reward_errors` says which parts of the reward could not be computed, and why; where the reward
    needs one of them, the outcome is `infra_error` with the code `reward_failed`. `pending` names
    parts that compare siblings and wait for those: until then the reward is provisional.
    """

    rollout_id: str
    job_id: str
    task_id: str
    repeat: int
    attempt: int
    fence: int
    outcome: Outcome
    config_hash: str
    seed: int
    reward: float | None = None
    invalid_reason: str | None = None
    error: ErrorInfo | None = None
    grader_isolation: str | None = None
    items: dict[str, float] = {}
    timings: dict[str, float] = {}
    usage: Usage = Usage()
    grading: Usage = Usage()
    agent: str = ""
    model: str = ""
    sandbox: str = ""
    steps: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    trajectory_hash: str = ""
    leaves: int = 1
    reward_se: float | None = None
    biased: bool = False
    dropped: int = 0
    reward_errors: dict[str, str] = {}
    pending: tuple[str, ...] = ()

    @property
    def cost_usd(self) -> float | None:
        """Dollars for policy and grading, as far as prices are known; None where none is."""
        return (self.usage + self.grading).cost_usd

    @property
    def unscored_by_us(self) -> bool:
        """Only the score is missing: a reward failed on what the agent left."""
        return self.error is not None and self.error.code == RewardFailedError.default_code


class KeptPath(msgspec.Struct, frozen=True, omit_defaults=True):
    """A path of a final state. `place` is its name below `final/`; empty: it was not there, or
    was `left_out` for the reason given.
    """

    path: str
    place: str
    left_out: str = ""


class FinalState(msgspec.Struct, frozen=True):
    """What a rollout left behind, as far as it was kept for scoring it again."""

    workdir: str
    paths: tuple[KeptPath, ...]


FINAL_STATE = "final/manifest.json"
"""Where a FinalState stands among the artifacts of a rollout."""
