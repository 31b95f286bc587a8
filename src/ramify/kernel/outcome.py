"""Which outcome an error means, by its kind and by the phase in which it came."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ramify.contracts.errors import (
    AgentError,
    AgentTimeoutError,
    EnvironmentFailed,
    InfraError,
    InvalidRewardError,
    LimitExceededError,
    RamifyError,
    TransferLimitError,
    UsageError,
)
from ramify.contracts.events import Phase
from ramify.contracts.result import ErrorInfo
from ramify.contracts.tree import Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means for its rollout.

    Attributes:
        outcome: the outcome it leads to.
        error: how it is recorded.
        reason: for `invalid`, why (DESIGN.md §6).
    """

    outcome: Outcome
    error: ErrorInfo
    reason: str | None = None


def classify(error: BaseException, phase: Phase) -> Verdict:
    """Turn an error of a phase into exactly one outcome.

    Check ordering: 1. cancellation; 2. the kinds that mean the same everywhere (InfraError,
    EnvironmentFailed, UsageError); 3. by phase: provision and readiness → env_error, connect and
    execute → agent_error or agent_timeout for errors that say so, verify → invalid for errors
    that say so; 4. anything else is our own failure: infra_error, never the agent's 0.
    """
    match error:
        case asyncio.CancelledError():
            return _verdict(Outcome.CANCELLED, error, phase)
        case TransferLimitError() if phase is Phase.VERIFY:
            return _verdict(Outcome.INVALID, error, phase, "no_evidence")
        case EnvironmentFailed():
            return _verdict(Outcome.ENV_ERROR, error, phase)
        case InfraError() | UsageError():
            return _verdict(Outcome.INFRA_ERROR, error, phase)
        case InvalidRewardError(reason=reason) if phase is Phase.VERIFY:
            return _verdict(Outcome.INVALID, error, phase, reason)
        case _:
            return _verdict(_by_phase(error, phase), error, phase)


def _by_phase(error: BaseException, phase: Phase) -> Outcome:
    if phase in (Phase.PROVISION, Phase.READINESS):
        return Outcome.ENV_ERROR
    if phase in (Phase.CONNECT, Phase.EXECUTE):
        if isinstance(error, AgentTimeoutError):
            return Outcome.AGENT_TIMEOUT
        if isinstance(error, LimitExceededError):
            return Outcome.AGENT_TIMEOUT if error.limit == "time" else Outcome.AGENT_ERROR
        if isinstance(error, AgentError):
            return Outcome.AGENT_ERROR
    return Outcome.INFRA_ERROR


def _verdict(
    outcome: Outcome, error: BaseException, phase: Phase, reason: str | None = None
) -> Verdict:
    known = isinstance(error, RamifyError)
    info = ErrorInfo(
        code=(error.code if known else None) or type(error).__name__,
        message=str(error) or type(error).__name__,
        retryable=error.retryable if known else outcome is Outcome.INFRA_ERROR,
        phase=phase.value,
    )
    return Verdict(outcome, info, reason)
