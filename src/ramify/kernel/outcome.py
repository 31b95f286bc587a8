"""Which outcome an error means, by its kind and by the phase in which it came."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

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
    VerificationRejected,
)
from ramify.contracts.events import Phase
from ramify.contracts.result import ErrorInfo
from ramify.contracts.tree import Outcome

_MESSAGE_LIMIT = 4000

# Trying again does not mend a program or a request.
_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    UsageError,
)

# Of several errors at once the first of these decides: never the agent's fault while ours is
# possible, and a cancellation only if there is nothing else.
_SEVERITY = (
    Outcome.INFRA_ERROR,
    Outcome.ENV_ERROR,
    Outcome.INVALID,
    Outcome.AGENT_TIMEOUT,
    Outcome.AGENT_ERROR,
    Outcome.CANCELLED,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means.

    Attributes:
        outcome: the rollout's, if this error ended it.
        error: as it is recorded. Its `retryable` is False for whatever is scored.
        reason: for `invalid`, why (DESIGN.md §6).
    """

    outcome: Outcome
    error: ErrorInfo
    reason: str | None = None


def classify(error: BaseException, phase: Phase) -> Verdict:
    """Turn any exception into an outcome, by what it is and the phase it ended.

    1. A cancellation is `cancelled`. Of a group, the most serious member decides, where
       `infra_error` comes first.
    2. EnvironmentFailed is `env_error`; InfraError and UsageError are `infra_error`, except a
       TransferLimitError during verification: `invalid: no_evidence`.
    3. Otherwise by phase. setup, start, teardown: `infra_error`. provision, readiness:
       `env_error`. connect, execute: the agent's own errors and spent budgets are
       `agent_error` or `agent_timeout`, everything unexpected is `infra_error`: our bug is
       never the agent's 0. verify: InvalidRewardError is `invalid`, the rest `infra_error`.
    """
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        leaves = [classify(leaf, phase) for leaf in group.exceptions]
        return min(leaves, key=lambda verdict: _SEVERITY.index(verdict.outcome))
    outcome, reason = _outcome(error, phase)
    retryable = outcome in (Outcome.ENV_ERROR, Outcome.INFRA_ERROR) and _retryable(error)
    info = ErrorInfo(_code(error), _message(error), retryable, phase.value)
    return Verdict(outcome, info, reason)


def _outcome(error: BaseException, phase: Phase) -> tuple[Outcome, str | None]:
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return Outcome.CANCELLED, None
    if phase is Phase.VERIFY:
        if isinstance(error, InvalidRewardError):
            return Outcome.INVALID, error.reason
        if isinstance(error, TransferLimitError):
            return Outcome.INVALID, "no_evidence"
    if isinstance(error, EnvironmentFailed):
        return Outcome.ENV_ERROR, None
    if isinstance(error, InfraError | UsageError):
        return Outcome.INFRA_ERROR, None
    if phase in (Phase.PROVISION, Phase.READINESS):
        return Outcome.ENV_ERROR, None
    if phase in (Phase.CONNECT, Phase.EXECUTE):
        return _agent_outcome(error), None
    return Outcome.INFRA_ERROR, None


def _agent_outcome(error: BaseException) -> Outcome:
    if isinstance(error, AgentTimeoutError):
        return Outcome.AGENT_TIMEOUT
    if isinstance(error, LimitExceededError):
        return Outcome.AGENT_TIMEOUT if error.limit == "time" else Outcome.AGENT_ERROR
    if isinstance(error, AgentError | VerificationRejected):
        return Outcome.AGENT_ERROR
    return Outcome.INFRA_ERROR


def _retryable(error: BaseException) -> bool:
    if isinstance(error, EnvironmentFailed | InfraError):
        return error.retryable
    # What an agent or a budget did in a phase where it does not count may not happen again.
    return not isinstance(error, _BUGS)


def _code(error: BaseException) -> str:
    if isinstance(error, RamifyError):
        return error.code or "rejected"
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return "cancelled"
    return type(error).__name__


def _message(error: BaseException) -> str:
    text = str(error)
    if not isinstance(error, RamifyError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _MESSAGE_LIMIT:
        return f"{text[:_MESSAGE_LIMIT]} … ({len(text)} characters)"
    return text
