"""What is to be solved: Task, Taskset, and the package directory a Task may come with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkPolicy, SandboxSpec

RESERVED_KEYS = frozenset(
    {
        "agent", "api_key", "base_url", "client", "harness", "llm", "max_tokens", "model",
        "policy", "provider", "sampling", "sampling_args", "temperature", "top_p",
    }
)  # fmt: skip
"""Keys that belong to the agent's run, never to a Task (seed 002)."""

_SET = r"[A-Za-z0-9][A-Za-z0-9._/@-]*"
_ITEM = r"[^\s:\x00-\x1f\x7f][^:\x00-\x1f\x7f]*"
_TASK_ID = re.compile(rf"^(?P<set>{_SET}):(?P<item>{_ITEM})$")


class TaskId(NamedTuple):
    """A canonical task id in its two parts; `str()` gives it back."""

    taskset_id: str
    item_id: str

    def __str__(self) -> str:
        return f"{self.taskset_id}:{self.item_id}"


class IsolationLevel(StrEnum):
    """How little agent and verifier share, strictest first (DESIGN.md §5, Reward)."""

    OUTPUTS = "outputs"
    """A fresh sandbox from the pristine image plus a bytes-only copy of the declared outputs."""
    WORKDIR = "workdir"
    """The same, plus a copy of the work directory."""
    FILESYSTEM = "filesystem"
    """The agent's frozen file system, none of its processes."""
    LIVE = "live"
    """The agent's sandbox as it stands, processes included."""


class Healthcheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command that must exit 0 before the agent may start (Harbor's fields and defaults)."""

    command: str
    interval_sec: float = 5.0
    timeout_sec: float = 30.0
    start_period_sec: float = 0.0
    start_interval_sec: float = 5.0
    retries: int = 3


class VerifierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a package is verified. Paths are relative to the package, commands run inside.

    `reward_range` is (minimum, maximum); what is out of it is `invalid: range`.
    """

    command: tuple[str, ...] = ()
    tests: str = "tests"
    timeout_sec: float = 600.0
    env: dict[str, str] = {}
    user: str | None = None
    network: NetworkPolicy | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)
    isolation: IsolationLevel | None = None


class SolutionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reference solution. `command` runs inside, after `path` is uploaded to /solution."""

    path: str = "solution"
    command: tuple[str, ...] = ("bash", "/solution/solve.sh")
    env: dict[str, str] = {}


class TaskPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task directory, read and checked: everything that the planes need to run it.

    `path` is the directory on the host, `digest` identifies its content. `files` (a directory
    below `path`) is copied into the work directory and `setup` (a file below `path`) run there,
    before the agent comes. `outputs` are the paths inside that carry the result (declared
    outputs), `artifacts` those to keep. `needs` names programs that must exist inside.
    `host_root_ok`: the task may also run on the host's own root file system, read-only below an
    overlay (`SandboxSpec.host_root`), in place of the image or build that `sandbox` names.
    """

    path: str
    digest: str
    sandbox: SandboxSpec
    verifier: VerifierSettings = VerifierSettings()
    solution: SolutionSettings | None = None
    agent_timeout_sec: float = 600.0
    agent_user: str | None = None
    files: str | None = None
    setup: str | None = None
    setup_timeout_sec: float = 300.0
    healthcheck: Healthcheck | None = None
    outputs: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    host_root_ok: bool = False

    @property
    def workdir(self) -> str:
        """The work directory inside; `/app` where the task names none."""
        return self.sandbox.workdir or "/app"


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One problem: identity, input, and how it is graded. No model or provider fields.

    Args:
        task_id: canonical, `taskset_id:item_id`; globally unique and stable.
        input: the prompt, a list of messages, or structured input.
        target: expected output or checker target, if there is one.
        metadata: free facts; keys reserved for agents are refused.
        grading_spec: overrides the taskset's default for this task.
        package: the task directory, where it comes with one.

    Raises:
        ConfigError: a task id that is not canonical, or a reserved key in `metadata`.
    """

    task_id: str
    input: Any = None
    target: Any = None
    metadata: dict[str, Any] = {}
    grading_spec: dict[str, Any] | None = None
    package: TaskPackage | None = None

    def __post_init__(self) -> None:
        self.parse_task_id(self.task_id)
        if reserved := sorted(RESERVED_KEYS.intersection(self.metadata)):
            raise ConfigError(
                f"{', '.join(reserved)} belong to the agent's run, not to a task; remove them",
                file=self.task_id,
                field="metadata",
            )

    @property
    def id(self) -> TaskId:
        """The task id in its two parts."""
        return self.parse_task_id(self.task_id)

    @property
    def instruction(self) -> str:
        """The input as one text, as it is given to an agent's first prompt."""
        if isinstance(self.input, str):
            return self.input
        return "" if self.input is None else msgspec.json.encode(self.input).decode()

    @staticmethod
    def parse_task_id(task_id: str) -> TaskId:
        """Split a canonical id. Raises ConfigError saying how it should look."""
        match = _TASK_ID.match(task_id) if isinstance(task_id, str) else None  # pyright: ignore[reportUnnecessaryIsInstance] (callers pass foreign data)
        if match is None or match["item"] != match["item"].strip():
            raise ConfigError(
                f"{task_id!r} is not a canonical task id; write `taskset_id:item_id`, "
                "e.g. `my-taskset:task-1` (no spaces around it, one colon)",
                field="task_id",
            )
        return TaskId(match["set"], match["item"])


class ExecutionHints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a taskset suggests about running its tasks; a caller may ignore all of it."""

    sandbox: str | None = None
    tools: tuple[str, ...] = ()
    docs: str | None = None
    concurrency: int | None = None


@runtime_checkable
class Taskset(Protocol):
    """A declarative collection of Tasks. Owns no runtime behaviour: no tool loop, no retries.

    Iteration order is stable. Lazy tasksets read a task when it is asked for.
    """

    @property
    def taskset_id(self) -> str:
        """The first part of every task id in it."""
        ...

    @property
    def default_grading_spec(self) -> Mapping[str, Any] | None:
        """Applies to each task without a grading spec of its own."""
        ...

    @property
    def hints(self) -> ExecutionHints:
        """Execution hints."""
        ...

    def __iter__(self) -> Iterator[Task]: ...

    def __len__(self) -> int: ...

    def get_task(self, task_id: str) -> Task:
        """The task with this canonical id, or item id. Raises UnknownNameError."""
        ...
