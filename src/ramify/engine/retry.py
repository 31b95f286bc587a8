"""What an error means for its rollout, and when to try again."""

from __future__ import annotations

import asyncio
import math
import random
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

# Trying again does not mend a program.
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
        error: as it is recorded.
        retryable: a fresh attempt may end differently. False for whatever is scored.
        invalid_reason: for `invalid`, why.
    """

    outcome: Outcome
    error: ErrorInfo
    retryable: bool
    invalid_reason: str | None = None


def classify(error: BaseException, phase: Phase) -> Verdict:
    """Turn any exception into an outcome, by what it is and the phase it ended.

    1. A cancellation is `cancelled`. Of a group, the most serious member decides, where
       `infra_error` comes first.
    2. EnvironmentFailed is `env_error`, anything else that is an InfraError is `infra_error`,
       except a TransferLimitError during verification: `invalid: no_evidence`.
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
    return Verdict(outcome, info, retryable, reason)


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
    if isinstance(error, InfraError):
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
    return not isinstance(error, (UsageError, *_BUGS))


def _code(error: BaseException) -> str:
    if isinstance(error, RamifyError):
        return error.code or "rejected"
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return "cancelled"
    return "unexpected"


def _message(error: BaseException) -> str:
    text = str(error)
    if not isinstance(error, RamifyError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _MESSAGE_LIMIT:
        return f"{text[:_MESSAGE_LIMIT]} … ({len(text)} characters)"
    return text


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long, to try again.

    The n-th retry waits up to `base_sec * 2**(n-1)`, at most `cap_sec`. With full jitter
    (`jitter=1.0`) the wait is uniform from 0 to that; with 0.0 it is exactly that.

    Attributes:
        max_retries: retries after the first attempt; 0 for none.
        base_sec, cap_sec: seconds.
        jitter: 0.0 to 1.0, the part of the wait that is random.

    Raises:
        UsageError: a value out of range.
    """

    max_retries: int = 2
    base_sec: float = 1.0
    cap_sec: float = 60.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise UsageError(f"max_retries must be 0 or more, not {self.max_retries}")
        if not 0 <= self.base_sec <= self.cap_sec < math.inf:
            raise UsageError(
                f"need 0 <= base_sec <= cap_sec, not {self.base_sec} and {self.cap_sec}"
            )
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"jitter must be between 0 and 1, not {self.jitter}")

    def allows(self, attempt: int) -> bool:
        """Whether another attempt may follow the failed attempt number `attempt` (from 1)."""
        return attempt <= self.max_retries

    def delay(self, attempt: int, rng: random.Random, error: BaseException | None = None) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1).

        An error with a `retry_after` attribute (finite seconds) is honoured up to `cap_sec`;
        the ordinary wait comes on top, so that callers do not all return in the same moment.
        Never above `2 * cap_sec`.
        """
        ceiling = min(self.cap_sec, self.base_sec * 2.0 ** min(max(attempt - 1, 0), 60))
        backoff = ceiling * (1 - self.jitter) + rng.uniform(0.0, ceiling * self.jitter)
        return backoff + min(_retry_after(error), self.cap_sec)


def _retry_after(error: BaseException | None) -> float:
    value: object = getattr(error, "retry_after", None)
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    return 0.0
