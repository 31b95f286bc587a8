"""The one tree of errors.

```
RamifyError
├── UsageError                the caller must change something (exit code 2)
│   ├── ConfigError           a file or value is wrong: names file, field and remedy
│   ├── UnknownNameError      no such agent, sandbox, taskset, ...
│   └── UnsupportedError      understood, but this part cannot do it here
├── InfraError                our side or the machine failed; never scored (exit code 3)
│   ├── SandboxError
│   │   ├── SandboxStartError
│   │   ├── SandboxLostError
│   │   └── TransferLimitError   a tree in the sandbox exceeds what may cross
│   ├── StoreError
│   ├── RewardFailedError     a reward function failed; the agent need not run again
│   └── ModelError
│       └── ModelRefusedError    wrong key, no such model: asking again does not help
├── EnvironmentFailed         the world (a service) failed
├── AgentError                the agent failed; its work is still verified
│   ├── AgentTimeoutError
│   └── FatalAgentError       stop now, whatever budget is left
├── InvalidRewardError        the evidence is missing, malformed, out of range or tampered with
├── LimitExceededError        a budget is spent; names the budget
├── StateError                a write to State that its schema refuses
└── VerificationRejected      a verifier sent the candidate back
```

Each error has a stable `code`, says what happened and what to do, knows whether trying again
can help (`retryable`), and survives pickling (all state lives in `args`).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar


class RamifyError(Exception):
    """Base of all errors that Ramify raises on purpose."""

    default_code: ClassVar[str] = "ramify"
    retryable: ClassVar[bool] = False

    @property
    def code(self) -> str | None:
        """Stable, machine-readable name of what happened."""
        return self.default_code


class UsageError(RamifyError, ValueError):
    """The caller asked for something that cannot be done as asked. Exit code 2."""

    default_code = "usage"


class ConfigError(UsageError):
    """A file or a value is wrong. The message names the file, the field and the remedy."""

    default_code = "config"

    def __init__(self, message: str, file: str | None = None, field: str | None = None) -> None:
        super().__init__(message, file, field)
        self.message, self.file, self.field = message, file, field

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.field) if part)
        return f"{where}: {self.message}" if where else self.message


class UnknownNameError(UsageError):
    """No provider, agent, key or task of that name; offers the nearest known ones."""

    default_code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(kind, name, self.known)

    def __str__(self) -> str:
        near = get_close_matches(self.name, self.known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = f" (known: {', '.join(self.known[:12])})" if self.known else ""
        return f"unknown {self.kind} {self.name!r}{hint}{listed}"


class UnsupportedError(UsageError):
    """The request is understood, but the part that would serve it cannot, here or yet."""

    default_code = "unsupported"


class InfraError(RamifyError, RuntimeError):
    """The machine or our own side failed. Never scored, retried by policy. Exit code 3."""

    default_code = "infra"
    retryable = True


class SandboxError(InfraError):
    """A sandbox operation failed for a reason that is not the agent's work."""

    default_code = "sandbox"


class SandboxStartError(SandboxError):
    """A sandbox could not be created."""

    default_code = "sandbox_start"


class SandboxLostError(SandboxError):
    """The sandbox is gone (killed, closed, or its supervisor died)."""

    default_code = "sandbox_lost"


class TransferLimitError(SandboxError):
    """A tree inside the sandbox exceeds the limits on what may cross to the host.

    Caused by what the agent left behind, so it is not retried: at verification it counts as
    `invalid: no_evidence`.
    """

    default_code = "transfer_limit"
    retryable = False


class StoreError(InfraError):
    """The job directory cannot be read or written, or its middle is corrupt."""

    default_code = "store"
    retryable = False


class RewardFailedError(InfraError):
    """A reward could not be computed, by our own side's fault or the user's function's.

    Running the agent again would not help; `ramify score` computes it once it is mended.
    """

    default_code = "reward_failed"
    retryable = False


class ModelError(InfraError):
    """A model endpoint failed or answered with something that is not a completion."""

    default_code = "model"


class ModelRefusedError(ModelError):
    """A model endpoint refuses the request as it is: wrong key, no such model, bad parameters."""

    default_code = "model_refused"
    retryable = False


class EnvironmentFailed(RamifyError, RuntimeError):  # noqa: N818  (outcome name: env_error)
    """The world failed: a service did not start, was not healthy in time, or died."""

    default_code = "env_error"
    retryable = True


class AgentError(RamifyError, RuntimeError):
    """The agent failed by its own doing. What it left behind is verified as it stands."""

    default_code = "agent_error"


class AgentTimeoutError(AgentError, TimeoutError):
    """The agent did not finish within its time limit."""

    default_code = "agent_timeout"


class FatalAgentError(AgentError):
    """Fail at once, whatever attempt budget is left (seed 001)."""

    default_code = "agent_fatal"


class InvalidRewardError(RamifyError, ValueError):
    """The evidence for a reward cannot be trusted or read.

    `reason` is one of `tampered | missing | malformed | range | no_evidence` (DESIGN.md §6).
    """

    default_code = "invalid"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class LimitExceededError(RamifyError, RuntimeError):
    """A budget is spent. `limit` names which: turns, tokens, context, time or cost."""

    default_code = "limit"

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(limit, message)
        self.limit, self.message = limit, message

    def __str__(self) -> str:
        return self.message


class StateError(RamifyError, TypeError):
    """A write to `State` names an unknown key or has the wrong type."""

    default_code = "state"


class VerificationRejected(RamifyError):  # noqa: N818  (public name of seed 001)
    """A verifier rejects a candidate. Counts as an attempt; the agent may revise.

    Args:
        message: what is wrong, for the agent to read.
        code: short machine-readable reason, e.g. `tests_failed`.
        metadata: further facts; JSON-serialisable.
    """

    def __init__(
        self, message: str, code: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, code, metadata)
        self.message, self.metadata = message, metadata
        self._code = code

    @property
    def code(self) -> str | None:
        """The verifier's own reason, or None where it gave none."""
        return self._code

    def __str__(self) -> str:
        return self.message
