"""What a reward can do with a whole job: be written down, compare siblings, score a record."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ramify import compose
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.model import Model
from ramify.contracts.reward import Described, GroupReward, Reward
from ramify.contracts.task import Task


def load_reward(given: Reward | Callable[..., Any] | str, judge: Model | None) -> Reward:
    """A caller's reward: as it is, of a function, or of a place (`file.py:name`).

    Raises: ConfigError (there is none at that place), UsageError (it asks for a judge).
    """
    if isinstance(given, str):
        return compose.rubric(given, judge)
    return compose.function_reward(given) if callable(given) else given


def describe_reward(reward: Reward, place: str | None = None) -> dict[str, Any] | str:
    """A reward as it is written down with a job: its compiled manifest, else its name.

    Where it was loaded from a `place`, that stands beside it, with the digest of the file: another
    body of a function makes another job.
    """
    if isinstance(reward, Described):
        found: dict[str, Any] = msgspec.to_builtins(reward.describe())
    else:
        found = {"name": getattr(reward, "name", type(reward).__name__)}
        if place is None:
            return str(found["name"])
    if place is not None:
        found |= {"place": place, "digest": _digest(place)}
    return found


def compares_siblings(task: Task, reward: Reward) -> bool:
    """Whether parts of a task's reward compare siblings.

    Raises: UnsupportedError (each step of the task is scored by itself, so nothing can).
    """
    if not isinstance(reward, GroupReward) or not reward.compares:
        return False
    if _staged(task):
        raise UnsupportedError(
            f"{task.task_id} has steps that are scored one by one, so group functions cannot "
            "compare its rollouts; leave them out of its rubric"
        )
    return True


def scored_from_record(task: Task, reward: Reward) -> bool:
    """Whether a rollout that lacks nothing but its score is scored again without its agent.

    A rubric is of functions that need no sandbox, as a rule; the steps of a task have sandboxes of
    their own time.
    """
    return isinstance(reward, Described) and not _staged(task)


def _staged(task: Task) -> bool:
    return task.package is not None and bool(task.package.steps)


def _digest(place: str) -> str:
    where = place.rpartition(":")[0]
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    if not file:
        return ""
    return hashlib.blake2b(Path(file).expanduser().read_bytes(), digest_size=16).hexdigest()
