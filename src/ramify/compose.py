"""The composition root: the one place where a name becomes a provider.

A name is looked up in our own table, then among entry points (`ramify.sandboxes`,
`ramify.agents`, ...); a name that contains `:` is taken as an import path, `package.module:Class`.
"""

from __future__ import annotations

import inspect
import random
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ramify.contracts.agent import Agent
from ramify.contracts.config import ramify_home
from ramify.contracts.context import Clock, Context
from ramify.contracts.environment import Environment
from ramify.contracts.errors import ConfigError, UnknownNameError, UsageError
from ramify.contracts.images import ImageStore
from ramify.contracts.model import Model
from ramify.contracts.reports import SuiteReport
from ramify.contracts.reward import Reward, VerifyResult
from ramify.contracts.sandbox import (
    SandboxProvider,
)
from ramify.contracts.task import Hardening, IsolationLevel, ScriptProfile, Task, Taskset
from ramify.tasks.digest import package_digest
from ramify.tasks.levels import LevelStore, Remembered
from ramify.tasks.skills import without_skills

if TYPE_CHECKING:
    from ramify.planes.environment.grading import Grading

TABLE: Mapping[str, Mapping[str, str]] = {
    "sandboxes": {
        "local": "ramify.planes.sandbox.local:LocalProvider",
        "docker": "ramify.planes.sandbox.docker:DockerProvider",
        "bare": "ramify.planes.sandbox.local:BareProvider",
    },
    "agents": {
        "oracle": "ramify.planes.agent.oracle:OracleAgent",
        "nop": "ramify.planes.agent.nop:NopAgent",
        "recorded": "ramify.planes.agent.recorded:RecordedAgent",
        "scripted": "ramify.planes.agent.scripted:ScriptedAgent",
        "program": "ramify.planes.agent.program:ProgramAgent",
        "shell": "ramify.planes.agent.shell:ShellAgent",
        "chat": "ramify.planes.agent.chat:ChatAgent",
    },
    "environments": {
        "package": "ramify.planes.environment.package:PackageEnvironment",
        "manifest": "ramify.planes.environment.opening:open_world",
    },
    "rewards": {
        "script": "ramify.planes.reward.script:ScriptVerifier",
        "function": "ramify.planes.reward.function:FunctionReward",
        "agent": "ramify.planes.reward.agent_verifier:AgentVerifier",
        "pipeline": "ramify.apps.pipeline.reward:PipelineReward",
    },
    "models": {
        "openai": "ramify.planes.model.client:OpenAIModel",
    },
    "exporters": {
        "verifiers": "ramify.edges.outbound.verifiers:export_verifiers",
        "tree": "ramify.edges.outbound.tree:export_trees",
        "pairs": "ramify.edges.outbound.pairs:export_pairs",
    },
    "tasksets": {
        "directory": "ramify.tasks.taskset:load_taskset",
        "harbor": "ramify.tasks.registry:HarborTaskset",
    },
}
"""Kind → name → import path. Entry points of the group `ramify.<kind>` join it."""


_ONE = {
    "sandboxes": "sandbox",
    "agents": "agent",
    "environments": "environment",
    "rewards": "reward",
    "models": "model provider",
    "exporters": "exporter",
    "tasksets": "taskset",
}
_FLAG = {"tasksets": "-T", "models": "-M"}
_MARK = {
    "sandboxes": "create",
    "agents": "connect",
    "environments": "provision",
    "rewards": "score",
    "models": "sample",
    "tasksets": "get_task",
}
"""Kind → a method that everything of the kind has, so that a wrong import path is noticed."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as it is listed: its name, where it comes from, and its first docstring line."""

    name: str
    path: str
    summary: str


def known(kind: str) -> dict[str, str]:
    """Name → import path of everything of a kind, ours and other packages'."""
    found = dict(TABLE.get(kind, {}))
    for point in entry_points(group=f"ramify.{kind}"):
        found.setdefault(point.name, point.value)
    return found


def listed(kind: str) -> list[Provider]:
    """Everything of a kind, by name, for a person to read."""
    providers: list[Provider] = []
    for name, path in sorted(known(kind).items()):
        try:
            document = inspect.getdoc(load(kind, name)) or ""
        except ConfigError as error:
            document = f"cannot be used: {error}"
        providers.append(Provider(name, path, document.partition("\n")[0]))
    return providers


def load(kind: str, name: str) -> Any:
    """The object that a name stands for.

    Raises:
        UnknownNameError: no such name (offers the nearest).
        ConfigError: its import path does not lead to anything.
    """
    # Ours come first and need no scan of all that is installed: a rollout loads its world's kind.
    path = TABLE.get(kind, {}).get(name) or known(kind).get(name, name if ":" in name else None)
    if path is None:
        raise UnknownNameError(_ONE[kind], name, known(kind))
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever somebody else's module does when it is imported
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{_ONE[kind]} {name!r} cannot be loaded: {why}") from error


def sandbox_provider(name: str) -> SandboxProvider:
    """The sandbox provider of that name."""
    return _build("sandboxes", name, {})


def image_store() -> ImageStore:
    """The images that `local` sandboxes start from. Raises: StoreError."""
    return load_function("ramify.planes.sandbox.local.shelf:LocalImageStore")()


def agent(name: str, options: Mapping[str, str] | None = None) -> Agent:
    """The agent of that name, built with `-A key=value` options."""
    return _build("agents", name, options or {})


def model(
    name: str,
    base_url: str | None,
    options: Mapping[str, str],
    clock: Clock,
    rng: random.Random,
) -> Model:
    """The model `provider/name`, built with `-M key=value` options.

    Raises:
        UsageError: the name has no provider, or a key is among the options: they are recorded.
    """
    provider, _, rest = name.partition("/")
    if not provider or not rest:
        known_ones = ", ".join(f"{each}/NAME" for each in known("models"))
        raise UsageError(f"{name!r} is no model; write provider/name ({known_ones})")
    if "api_key" in (key.replace("-", "_") for key in options):
        raise UsageError(
            "an API key is never an option, since options are recorded; put it into a variable "
            "and name that with -M api_key_env=NAME"
        )
    given = {"name": name, "clock": clock, "rng": rng}
    if base_url is not None:
        options = {**options, "base_url": base_url}
    return _build("models", provider, options, given)


def fleets(keep: Path) -> Any:
    """The services that rollouts of one engine share, none started yet. Close with `aclose`.

    `keep` is where it is written down, below a directory of this engine, who has a place in them.
    """
    return load_function("ramify.planes.environment.fleet.host:Fleets")(keep)


def environment(task: Task, keep: Path, shared: object) -> Environment:
    """The world of a task. A new one for each rollout.

    `keep` is where worlds that persist keep their state from one episode to the next, `shared` the
    engine's `fleets`.
    """
    package = task.package
    if package is None or package.world is None:
        return _build("environments", "package", {})
    return manifest_world(Path(package.world), keep, shared, wanted=package.services)


def manifest_world(path: Path, keep: Path, shared: object, **how: Any) -> Any:
    """The world of a manifest; `shared`: the engine's `fleets`, `how`: more of `WorldOptions`.

    Raises: ConfigError (the manifest), UnsupportedError (what its topology cannot have).
    """
    make = load("environments", "manifest")
    return make(path, home=ramify_home(), keep=keep, fleets=shared, **how)


def in_world(task: Task, manifest: Path | None = None) -> Task:
    """The task as it runs in the world of its own manifest, else of the one given.

    Raises: ConfigError (bad manifest, or services of no manifest), UnknownNameError.
    """
    return load_function("ramify.planes.environment.joining:in_world")(
        task, manifest, ramify_home()
    )


def readiness_timeout(task: Task) -> float:
    """Seconds that the world of a task has until it is healthy, and some to spare."""
    return load_function("ramify.planes.environment.joining:readiness_timeout")(task)


def grading(task: Task) -> Grading:
    """How the manifest of a task's world says that it is verified; by script without one."""
    return load_function("ramify.planes.environment.grading:grading_of")(task)


def world_digest(task: Task) -> str:
    """Identifies the manifest of a task's world and the directories it names; empty without."""
    return load_function("ramify.planes.environment.joining:world_digest")(task, package_digest)


def taskset(path: str, options: Mapping[str, str] | None = None) -> Taskset:
    """The taskset at a path, or of a registered name, built with `-T key=value` options."""
    if path in known("tasksets") or (":" in path and not Path(path).exists()):
        return _build("tasksets", path, options or {})
    return _build("tasksets", "directory", {"path": path, **(options or {})})


def reward(level: IsolationLevel, profile: ScriptProfile) -> Reward:
    """The script verifier of task directories at an isolation level, hardened that far."""
    prepare = load_function("ramify.planes.environment.placing:provision_files")
    return load("rewards", "script")(level, prepare=prepare, profile=profile)


def grader(
    how: Grading, level: IsolationLevel, profile: ScriptProfile, judge: Model | None
) -> Reward:
    """What verifies tasks as the manifest of their world says; `judge`: the model it may ask.

    Raises: UsageError (it needs a judge and there is none), ConfigError (the rubric cannot be
    loaded), UnknownNameError (no such agent).
    """
    if how.kind == "script":
        return reward(level, profile)
    if how.kind == "rubric":
        return rubric(how.rubric, judge)
    if how.kind == "pipeline":
        return load("rewards", "pipeline")()
    who = agent(how.agent)
    if who.capabilities().interactive:
        raise UsageError(f"{how.manifest}: the agent {who.name} wants a person, and cannot grade")
    if judge is None and who.capabilities().needs_model:
        raise UsageError(
            f"{how.manifest}: the agent {who.name} that grades needs a model of its own; give one "
            "with --judge-model provider/name"
        )
    prepare = load_function("ramify.planes.environment.placing:provision_files")
    return load("rewards", "agent")(
        who, prepare, how.instruction, level=level, model=judge, verdict=how.verdict
    )


def rubric(path: str, judge: Model | None = None) -> Reward:
    """The reward at `file.py:name` or `package.module:name`.

    A Rubric (or any Reward) is taken as it is; a function is a reward function, but one without
    parameters, or with `judge_model` alone, makes one. Raises: ConfigError (nothing of that name,
    or it fails), UsageError (it asks for a judge and there is none).
    """
    return load_function("ramify.planes.reward.loading:load_rubric")(path, judge)


def with_suspicion(result: VerifyResult) -> VerifyResult:
    """A score that also says whether its spaces disagree."""
    return load_function("ramify.planes.reward.spaces.disagreement:with_suspicion")(result)


def artifact_collector() -> Callable[[Context], Awaitable[None]]:
    """What keeps a task's artifacts once the agent is done."""
    return load_function("ramify.planes.environment.artifacts:collect_artifacts")


def hide_skills(task: Task) -> Task:
    """The task without the skills that come with it."""
    return without_skills(task, ramify_home())


def test_report(format_name: str, data: bytes) -> SuiteReport:
    """What a test runner left, as `junit`, `ctrf` or `tap`. The bytes may be an attacker's.

    Raises: InvalidRewardError (`malformed`), UnknownNameError (no such format).
    """
    return load_function("ramify.planes.reward.reports.parse:parse_report")(format_name, data)


def tail_text(data: bytes) -> str:
    """The last 200 lines of hostile output (2000 bytes each, 64 KiB), safe to show."""
    return load_function("ramify.planes.sandbox.capture:tail_text")(data)


def function_reward(function: Callable[..., Any]) -> Reward:
    """A plain function as a reward; its arguments are injected."""
    return load("rewards", "function")(function)


def exporter(name: str) -> Callable[..., Iterable[dict[str, Any]]]:
    """The exporter of that name: run directory → records."""
    return load("exporters", name)


def load_function(path: str) -> Callable[..., Any]:
    """A function of our own by its import path."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def remembered(digest: str, provider: str) -> Remembered | None:
    """What `ramify tasks check` found for a task of this digest, with this provider or another."""
    return LevelStore(ramify_home()).get(digest, provider)


def remember_level(digest: str, provider: str, level: IsolationLevel, hardening: Hardening) -> None:
    """Keep what `ramify tasks check` found for a task of this digest with this provider."""
    LevelStore(ramify_home()).put(digest, provider, level, hardening)


def _build(
    kind: str, name: str, options: Mapping[str, str], given: Mapping[str, object] | None = None
) -> Any:
    """Make a provider from options as text; of the objects `given` it gets those it names."""
    target = load(kind, name)
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        raise ConfigError(f"{_ONE[kind]} {name!r} is neither a class nor a function")
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    arguments: dict[str, Any] = {k: v for k, v in (given or {}).items() if k in parameters}
    for key, text in options.items():
        word = key.replace("-", "_")
        if word not in parameters:
            raise UnknownNameError(f"option of {name}", key, set(parameters) - {"self"})
        arguments[word] = _convert(name, key, text, hints.get(word, str))
    missing = [
        p.name for p in parameters.values()
        if p.default is p.empty and p.name not in arguments
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip
    if missing:
        raise ConfigError(
            f"{_ONE[kind]} {name!r} needs {', '.join(missing)}; "
            f"give it as {_FLAG.get(kind, '-A')} {missing[0]}=..."
        )
    made = target(**arguments)
    if not hasattr(made, _MARK[kind]):
        raise ConfigError(f"{name!r} makes no {_ONE[kind]}: what it makes has no `{_MARK[kind]}`")
    return made


def _convert(name: str, key: str, text: str, hint: Any) -> Any:
    if hint is Path or Path in typing.get_args(hint):
        return Path(text)
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key}={text}: {error}", field=f"option of {name}") from None
