"""How one rollout runs: one frozen record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec


def ramify_home(environ: Mapping[str, str] | None = None) -> Path:
    """Where Ramify keeps what outlives a job, absolute: `RAMIFY_HOME`, else the user's cache.

    The user's cache is `XDG_CACHE_HOME/ramify`, by default `~/.cache/ramify`. Makes nothing.
    """
    env = os.environ if environ is None else environ
    if chosen := env.get("RAMIFY_HOME"):
        return Path(chosen).expanduser().absolute()
    cache = env.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "ramify"


class SkillMode(StrEnum):
    """Which skills the agent finds (seed 004, "Skill loading")."""

    NO_SKILL = "no-skill"
    """Task-local skills are hidden."""
    WITH_SKILL = "with-skill"
    """Task-local skills are mounted at the agent's native paths."""
    SELF_GEN = "self-gen"
    """A creator phase writes skills; the solver sees only those."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling parameters for a policy; None leaves the endpoint's default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False


class RolloutConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits, sampling and skill mode of one rollout.

    Check ordering, before each model call or prompt: 1. cancellation, 2. `max_cost_usd`,
    3. `max_tokens`, 4. `max_turns`, 5. `max_context`, 6. `timeout_sec`. The first that binds is
    the one named in the LimitExceededError.

    Units: tokens, US dollars, seconds. None means no limit beyond the task's own.
    `timeout_multiplier` scales the task's own agent and verifier timeouts.
    """

    max_turns: int | None = None
    max_tokens: int | None = None
    max_context: int | None = None
    max_cost_usd: float | None = None
    timeout_sec: float | None = None
    timeout_multiplier: float = 1.0
    sampling: Sampling = Sampling()
    skill_mode: SkillMode = SkillMode.NO_SKILL
