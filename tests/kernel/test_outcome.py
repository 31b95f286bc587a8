"""Which outcome an error means: by kind and phase, and never the agent's 0 for our fault."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts import errors
from ramify.contracts.events import Phase
from ramify.contracts.tree import Outcome
from ramify.kernel.outcome import classify

PHASES = list(Phase)
OURS = (Outcome.INFRA_ERROR, Outcome.ENV_ERROR)


def everything(kind: type[BaseException] = errors.RamifyError) -> list[type[BaseException]]:
    """The tree of contracts/errors.py; what providers derive from it has arguments of its own."""
    ours = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(leaf for child in ours for leaf in everything(child))]


def made(kind: type[BaseException]) -> BaseException:
    special = {
        errors.UnknownNameError: ("agent", "x"),
        errors.InvalidRewardError: ("missing", "no file"),
        errors.LimitExceededError: ("tokens", "spent"),
    }
    return kind(*special.get(kind, ("it broke",)))  # type: ignore[arg-type]


KINDS = [*everything(), RuntimeError, KeyError, OSError, TimeoutError, MemoryError, ValueError]


@given(st.sampled_from(KINDS), st.sampled_from(PHASES))
def test_every_error_has_one_outcome_in_every_phase(
    kind: type[BaseException], phase: Phase
) -> None:
    verdict = classify(made(kind), phase)
    assert verdict.outcome not in (Outcome.SCORED, Outcome.CANCELLED)
    assert verdict.error.phase == phase
    assert verdict.error.message
    assert verdict.error.code
    assert (verdict.reason is not None) == (verdict.outcome is Outcome.INVALID)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [RuntimeError, KeyError, OSError, TimeoutError, MemoryError])
def test_what_nobody_expected_is_never_the_agents(phase: Phase, kind: type[Exception]) -> None:
    assert classify(kind("x"), phase).outcome in OURS


@pytest.mark.parametrize("phase", PHASES)
def test_infrastructure_is_infrastructure_everywhere(phase: Phase) -> None:
    for error in (
        errors.InfraError("x"),
        errors.SandboxLostError("x"),
        errors.SandboxStartError("x"),
        errors.StoreError("x"),
        errors.ModelError("x"),
        errors.UnsupportedError("x"),
    ):
        assert classify(error, phase).outcome is Outcome.INFRA_ERROR
    assert classify(errors.EnvironmentFailed("x"), phase).outcome is Outcome.ENV_ERROR
    assert classify(asyncio.CancelledError(), phase).outcome is Outcome.CANCELLED


AGENTS = [
    (errors.AgentError("x"), Outcome.AGENT_ERROR),
    (errors.FatalAgentError("x"), Outcome.AGENT_ERROR),
    (errors.AgentTimeoutError("x"), Outcome.AGENT_TIMEOUT),
    (errors.LimitExceededError("time", "x"), Outcome.AGENT_TIMEOUT),
    (errors.LimitExceededError("turns", "x"), Outcome.AGENT_ERROR),
]


@pytest.mark.parametrize(("error", "outcome"), AGENTS)
def test_the_agents_failure_counts_only_while_the_agent_acts(
    error: Exception, outcome: Outcome
) -> None:
    for phase in PHASES:
        found = classify(error, phase).outcome
        if phase in (Phase.CONNECT, Phase.EXECUTE):
            assert found is outcome
        else:
            assert found in OURS


@pytest.mark.parametrize("reason", ["tampered", "missing", "malformed", "range", "no_evidence"])
def test_broken_evidence_is_invalid_at_verification_only(reason: str) -> None:
    for phase in PHASES:
        verdict = classify(errors.InvalidRewardError(reason, "x"), phase)
        if phase is Phase.VERIFY:
            assert (verdict.outcome, verdict.reason) == (Outcome.INVALID, reason)
        else:
            assert verdict.outcome in OURS


def test_too_much_to_carry_is_no_evidence() -> None:
    error = errors.TransferLimitError("x")
    assert classify(error, Phase.VERIFY).reason == "no_evidence"
    assert classify(error, Phase.EXECUTE).outcome is Outcome.INFRA_ERROR


def test_what_can_be_tried_again_says_so() -> None:
    assert classify(errors.SandboxLostError("x"), Phase.EXECUTE).error.retryable
    assert classify(errors.EnvironmentFailed("x"), Phase.READINESS).error.retryable
    assert classify(OSError("x"), Phase.START).error.retryable
    assert not classify(errors.UnsupportedError("x"), Phase.PROVISION).error.retryable
    assert not classify(errors.StoreError("x"), Phase.EXECUTE).error.retryable
    assert not classify(errors.InvalidRewardError("range", "x"), Phase.VERIFY).error.retryable
