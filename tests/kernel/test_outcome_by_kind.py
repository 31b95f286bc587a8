import asyncio
import pickle

import pytest

from ramify.contracts.errors import (
    AgentError,
    AgentTimeoutError,
    ConfigError,
    EnvironmentFailed,
    FatalAgentError,
    InfraError,
    InvalidRewardError,
    LimitExceededError,
    ModelError,
    SandboxLostError,
    StoreError,
    TransferLimitError,
    UsageError,
    VerificationRejected,
)
from ramify.contracts.events import Phase
from ramify.contracts.tree import Outcome
from ramify.kernel.outcome import classify

OURS = (Phase.SETUP, Phase.START, Phase.TEARDOWN)
WORLD = (Phase.PROVISION, Phase.READINESS)
AGENT = (Phase.CONNECT, Phase.EXECUTE)
INFRA, ENV = Outcome.INFRA_ERROR, Outcome.ENV_ERROR


@pytest.mark.parametrize(
    ("phases", "error", "outcome", "retryable"),
    [
        (OURS, ValueError("x"), INFRA, True),
        (OURS, SandboxLostError("x"), INFRA, True),
        (OURS, AgentError("x"), INFRA, True),
        (OURS, ConfigError("x"), INFRA, False),
        (WORLD, OSError("x"), ENV, True),
        (WORLD, EnvironmentFailed("x"), ENV, True),
        (WORLD, LimitExceededError("time", "x"), ENV, True),
        (WORLD, UsageError("x"), INFRA, False),
        (WORLD, SandboxLostError("x"), INFRA, True),
        (AGENT, AgentError("x"), Outcome.AGENT_ERROR, False),
        (AGENT, FatalAgentError("x"), Outcome.AGENT_ERROR, False),
        (AGENT, VerificationRejected("x"), Outcome.AGENT_ERROR, False),
        (AGENT, AgentTimeoutError("x"), Outcome.AGENT_TIMEOUT, False),
        (AGENT, LimitExceededError("time", "x"), Outcome.AGENT_TIMEOUT, False),
        (AGENT, LimitExceededError("cost", "x"), Outcome.AGENT_ERROR, False),
        (AGENT, ModelError("x"), INFRA, True),
        (AGENT, StoreError("x"), INFRA, False),
        (AGENT, EnvironmentFailed("x"), ENV, True),
        (AGENT, TimeoutError("x"), INFRA, True),
        (AGENT, KeyError("x"), INFRA, False),  # our bug: not the agent's 0, and it stays a bug
        (AGENT, SystemExit(1), INFRA, True),
        ((Phase.VERIFY,), SandboxLostError("x"), INFRA, True),
        ((Phase.VERIFY,), TransferLimitError("x"), Outcome.INVALID, False),
        ((Phase.VERIFY,), AgentError("x"), INFRA, True),
        ((Phase.VERIFY,), LimitExceededError("time", "x"), INFRA, True),
        ((Phase.VERIFY,), RuntimeError("x"), INFRA, True),
        (AGENT, TransferLimitError("x"), INFRA, False),
        (tuple(Phase), asyncio.CancelledError(), Outcome.CANCELLED, False),
        (tuple(Phase), KeyboardInterrupt(), Outcome.CANCELLED, False),
    ],
)
def test_outcome_by_error_and_phase(
    phases: tuple[Phase, ...], error: BaseException, outcome: Outcome, retryable: bool
) -> None:
    for phase in phases:
        verdict = classify(error, phase)
        assert (verdict.outcome, verdict.error.retryable) == (outcome, retryable), phase
        assert verdict.error.phase == phase.value


@pytest.mark.parametrize("reason", ["tampered", "missing", "malformed", "range", "no_evidence"])
def test_an_invalid_reward_keeps_its_reason(reason: str) -> None:
    verdict = classify(InvalidRewardError(reason, "what it says"), Phase.VERIFY)
    assert (verdict.outcome, verdict.reason) == (Outcome.INVALID, reason)
    assert verdict.error.code == "invalid"
    assert classify(TransferLimitError("x"), Phase.VERIFY).reason == "no_evidence"


def test_of_a_group_the_most_serious_decides() -> None:
    agents = ExceptionGroup("tasks", [AgentError("a"), AgentTimeoutError("b")])
    assert classify(agents, Phase.EXECUTE).outcome is Outcome.AGENT_TIMEOUT
    mixed = ExceptionGroup("outer", [agents, InfraError("c")])
    verdict = classify(mixed, Phase.EXECUTE)
    assert verdict.outcome is INFRA
    assert verdict.error.message == "c"
    cancelled = BaseExceptionGroup("tasks", [asyncio.CancelledError(), asyncio.CancelledError()])
    assert classify(cancelled, Phase.EXECUTE).outcome is Outcome.CANCELLED
    both = BaseExceptionGroup("tasks", [asyncio.CancelledError(), AgentError("a")])
    assert classify(both, Phase.EXECUTE).outcome is Outcome.AGENT_ERROR


def test_the_record_is_stable_and_bounded() -> None:
    assert classify(ModelError("429"), Phase.EXECUTE).error.code == "model"
    assert classify(VerificationRejected("no"), Phase.EXECUTE).error.code == "rejected"
    assert classify(VerificationRejected("no", "tests"), Phase.EXECUTE).error.code == "tests"
    unexpected = classify(ZeroDivisionError("by zero"), Phase.EXECUTE).error
    assert (unexpected.code, unexpected.message) == (
        "ZeroDivisionError",
        "ZeroDivisionError: by zero",
    )
    assert classify(ValueError(), Phase.SETUP).error.message == "ValueError"
    long = classify(AgentError("x" * 1_000_000), Phase.EXECUTE).error.message
    assert len(long) < 5000
    assert long.endswith("(1000000 characters)")
    assert pickle.loads(pickle.dumps(classify(ModelError("x"), Phase.EXECUTE)))  # noqa: S301  (our own bytes)
