"""What is to be solved: Task, Taskset, and the package directory a Task may come with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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


class Hardening(StrEnum):
    """How the environment of a test script of another format is kept from the workspace."""

    ISOLATED = "isolated"
    """An empty home; nothing is imported from the work directory, no start-up files are read."""
    PLAIN = "plain"
    """As the script's format has it."""


class ScriptProfile(msgspec.Struct, frozen=True):
    """The hardening of a test script, and why it is no stricter (empty: it is the strictest)."""

    hardening: Hardening = Hardening.PLAIN
    why: str = "not checked: run `ramify tasks check`"


class Healthcheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command that must exit 0 before the agent may start (Harbor's fields and defaults)."""

    command: str
    interval_sec: float = 5.0
    timeout_sec: float = 30.0
    start_period_sec: float = 0.0
    start_interval_sec: float = 5.0
    retries: int = 3


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A path inside whose content is kept once the agent is done.

    `source` is absolute, or relative to the work directory. `destination` is where it is kept,
    below the rollout's `artifacts/` (None: at its own path). `exclude` are patterns as of
    `tar --exclude`: each may match any run of names in a path, and `*` also matches `/`.
    `service` is the Compose service it lies in (None: the agent's own).
    """

    source: str
    destination: str | None = None
    exclude: tuple[str, ...] = ()
    service: str | None = None

    def leaves_out(self, path: str) -> bool:
        """Whether a path below the source is excluded, by itself or with a directory above it."""
        parts = path.split("/")
        count = len(parts)
        spans = ("/".join(parts[i:j]) for i in range(count) for j in range(i + 1, count + 1))
        return any(fnmatchcase(span, pattern) for span in spans for pattern in self.exclude)


class CollectHook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command that runs inside after the agent and before artifacts are collected."""

    command: str
    timeout_sec: float = 60.0
    user: str | None = None
    service: str | None = None


class McpServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An MCP server that a task offers to the agent: `command` for stdio, else `url`."""

    name: str
    transport: Literal["stdio", "sse", "streamable-http"] = "sse"
    url: str | None = None
    command: str | None = None
    args: tuple[str, ...] = ()


class TestGrading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tests that are graded one by one, from a report, in place of a reward file.

    `runner`: ours runs the tests below /tests, as a user of their own; nothing else of the package
    does. `python` is the interpreter inside that has it (None: the first `python3` on the image's
    own PATH). Without a runner the verifier's command runs them, and leaves a `report` of that
    format as `report_path` below /logs/verifier.

    `expected` are the ids of the tests that must pass (empty: those that the source of the tests
    shows; of a report, all that are in it). With `fraction` the reward is the part of them that
    passes, else 1 or 0.
    """

    runner: Literal["pytest", "unittest"] | None = None
    python: str | None = None
    report: Literal["junit", "ctrf", "tap"] | None = None
    report_path: str = ""
    expected: tuple[str, ...] = ()
    fraction: bool = False


class VerifierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a package is verified. Paths are relative to the package, commands run inside.

    `tests` is a directory whose content is put at /tests, or one file; `more_tests` are laid over
    it in order. An empty `tests` says that they are in the verifier's own image. `parser` names
    how the reward is read from what the tests print (Terminal-Bench); None: from a reward file.

    `separate`: the tests run in a sandbox of their own, which gets the declared outputs and
    artifacts and nothing else. `sandbox` is what that is made from; None means afresh as the
    agent's was. `collect` runs in the agent's sandbox first.

    `reward_range` is (minimum, maximum); what is out of it is `invalid: range`. `grading` says how
    single tests are graded (None: the tests themselves say the reward).
    """

    command: tuple[str, ...] = ()
    tests: str = "tests"
    more_tests: tuple[str, ...] = ()
    parser: str | None = None
    timeout_sec: float = 600.0
    env: dict[str, str] = {}
    user: str | None = None
    network: NetworkPolicy | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)
    isolation: IsolationLevel | None = None
    separate: bool = False
    sandbox: SandboxSpec | None = None
    collect: tuple[CollectHook, ...] = ()
    grading: TestGrading | None = None


class SolutionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reference solution. `command` runs inside, after `path` is uploaded to /solution.

    `path` is a directory (its content is uploaded) or one file. Where `script` is given, it is
    the text of the one file /solution/solve.sh, and `path` is not used.
    """

    path: str = "solution"
    command: tuple[str, ...] = ("bash", "/solution/solve.sh")
    env: dict[str, str] = {}
    script: str | None = None


class TaskStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a multi-step task: a further prompt in the same session, verified by itself.

    Before the prompt, `files` (a directory of the package) is copied into the work directory,
    `setup` (a path in the work directory) run, and `healthcheck` waited for. After it, the
    remaining steps are left out unless each of `min_reward` is reached, where `reward` is the
    reward and other names are its items.
    """

    name: str
    instruction: str
    verifier: VerifierSettings = VerifierSettings()
    solution: SolutionSettings | None = None
    agent_timeout_sec: float = 600.0
    min_reward: dict[str, float] = {}
    files: str | None = None
    setup: str | None = None
    healthcheck: Healthcheck | None = None
    artifacts: tuple[Artifact, ...] = ()


class TaskPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task directory, read and checked: everything that the planes need to run it.

    `path` is the directory on the host, `digest` identifies its content. `files` (a directory
    below `path`) is copied into the work directory and `setup` (a file below `path`) run there,
    before the agent comes. `outputs` are the paths inside that carry the result (declared
    outputs), `artifacts` those to keep. `needs` names programs that must exist inside.
    `host_root_ok`: the task may also run on the host's own root file system, read-only below an
    overlay (`SandboxSpec.host_root`), in place of the image or build that `sandbox` names.
    `skills_dir` is where skills lie inside; they are hidden from the agent in no-skill mode.
    `world` is the absolute path of the manifest of the world that the task is set in (None: it has
    none, its directory is all), `services` names those of it that the task uses (none: all).

    `steps` are those of a multi-step task, whose reward is the mean over the steps that were
    reached, or the last one's. `at` is the index of the step that this package stands at.
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
    artifacts: tuple[Artifact, ...] = ()
    needs: tuple[str, ...] = ()
    host_root_ok: bool = False
    mcp_servers: tuple[McpServer, ...] = ()
    skills_dir: str | None = None
    world: str | None = None
    services: tuple[str, ...] = ()
    steps: tuple[TaskStep, ...] = ()
    reward_strategy: Literal["mean", "final"] = "mean"
    at: int | None = None

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

    def at_step(self, index: int) -> Task:
        """This task as it stands at one of its package's steps: prompt, tests and solution."""
        package = self.package
        if package is None or not 0 <= index < len(package.steps):
            raise ConfigError(f"there is no step {index}", file=self.task_id, field="steps")
        step = package.steps[index]
        there = msgspec.structs.replace(
            package,
            at=index,
            verifier=step.verifier,
            solution=step.solution,
            agent_timeout_sec=step.agent_timeout_sec,
            healthcheck=step.healthcheck,
            artifacts=(*package.artifacts, *step.artifacts),
        )
        return msgspec.structs.replace(self, input=step.instruction, package=there)

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
