"""The fields of `task.toml` (schema 1.4 and older), each known by name.

What asks for hardware or an operating system that no sandbox here has is refused by name when it
carries a value that means something; anything else is unknown and refused with the nearest known
key. The table `[ramify]` is our own addition: a file with it is still a valid Harbor task.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.tables import table_record
from ramify.contracts.task import IsolationLevel

_SchemaVersion = Literal["1.0", "1.1", "1.2", "1.3", "1.4"]
_SCHEMA_VERSIONS: tuple[str, ...] = get_args(_SchemaVersion)

_MACHINES: Mapping[str, str] = {
    "os": "operating systems other than linux",
    "gpus": "GPUs",
    "gpu_types": "GPUs",
    "tpu": "TPUs",
}

NetworkModeName = Literal["public", "no-network", "allowlist"]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
_Delay = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_User = _Text | Annotated[int, msgspec.Meta(ge=0)] | None


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table; unknown keys are reported before conversion."""


class Author(_Table, frozen=True):
    """An author of the task."""

    name: str
    email: str | None = None


class PackageTable(_Table, frozen=True):
    """`[task]`: what the task is called in a registry."""

    name: str | None = None
    version: str | None = None
    description: str = ""
    authors: list[Author] = []
    keywords: list[str] = []


class AgentTable(_Table, frozen=True):
    """`[agent]`, of a task or of a step."""

    timeout_sec: _Seconds | None = None
    user: _User = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None


class HealthcheckTable(_Table, frozen=True):
    """`[environment.healthcheck]`, or that of a step."""

    command: _Text
    interval_sec: _Delay = 5.0
    timeout_sec: _Seconds = 30.0
    start_period_sec: _Delay = 0.0
    start_interval_sec: _Delay = 5.0
    retries: _Count = 3


class McpServerTable(_Table, frozen=True):
    """`[[environment.mcp_servers]]`. The transport "http" is an old name of "streamable-http"."""

    name: _Text
    transport: Literal["stdio", "sse", "streamable-http", "http"] = "sse"
    url: _Text | None = None
    command: _Text | None = None
    args: list[str] = []


class EnvironmentTable(_Table, frozen=True):
    """`[environment]`. `memory` and `storage` are the legacy spellings, as in "4G".

    `services` is an extension that tasks of several benchmarks have: the services of their world
    that they use, by name.
    """

    build_timeout_sec: _Seconds = 600.0
    docker_image: _Text | None = None
    os: str = "linux"
    cpus: Annotated[float, msgspec.Meta(gt=0, le=4096)] | None = None
    memory_mb: _Count | None = None
    storage_mb: _Count | None = None
    memory: str | None = None
    storage: str | None = None
    gpus: Annotated[int, msgspec.Meta(ge=0)] | None = None
    gpu_types: list[str] | None = None
    tpu: dict[str, Any] | None = None
    mcp_servers: list[McpServerTable] = []
    skills_dir: str | None = None
    env: dict[str, str] = {}
    healthcheck: HealthcheckTable | None = None
    workdir: _Text | None = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None
    allow_internet: bool | None = None
    services: list[_Text] = []


class CollectTable(_Table, frozen=True):
    """`[[verifier.collect]]`."""

    command: _Text
    service: _Text = "main"
    timeout_sec: _Seconds = 60.0
    user: _User = None


class VerifierTable(_Table, frozen=True):
    """`[verifier]`, of a task or of a step."""

    timeout_sec: _Seconds | None = None
    env: dict[str, str] = {}
    user: _User = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None
    environment_mode: Literal["shared", "separate"] | None = None
    environment: EnvironmentTable | None = None
    collect: list[CollectTable] = []


class SolutionTable(_Table, frozen=True):
    """`[solution]`."""

    env: dict[str, str] = {}


class ArtifactTable(_Table, frozen=True):
    """An entry of `artifacts` that says more than its source."""

    source: _Text
    destination: str | None = None
    exclude: list[str] = []
    service: _Text | None = None


class StepTable(_Table, frozen=True):
    """`[[steps]]`. `min_reward` is a bound on the reward, or bounds on items by name."""

    name: _Text
    agent: AgentTable = AgentTable()
    verifier: VerifierTable = VerifierTable()
    min_reward: float | dict[str, float] | None = None
    healthcheck: HealthcheckTable | None = None
    artifacts: list[_Text | ArtifactTable] = []


class TestsTable(_Table, frozen=True):
    """`[ramify.tests]`: how single tests are graded, in place of a reward file.

    Either `runner`: ours runs the tests, there is no test.sh; or `report`: test.sh leaves a report
    of that format as `report_path` below /logs/verifier. `expected` are ids of the tests that must
    pass, `fraction` makes the reward the part of them that does. `python` is the interpreter
    inside that has the runner.
    """

    runner: Literal["pytest", "unittest"] | None = None
    python: _Text | None = None
    report: Literal["junit", "ctrf", "tap"] | None = None
    report_path: _Text | None = None
    expected: list[_Text] = []
    fraction: bool = False


class RamifyTable(_Table, frozen=True):
    """`[ramify]`: what Harbor's format has no word for.

    `image_free`: may run on the host's own root file system, read-only below an overlay.
    `files` (a directory) is copied into the work directory, then `setup` (a script) runs there,
    before the agent comes. `outputs` are the paths that carry the result, relative to the work
    directory or absolute. `needs` names programs that must exist inside. `reward_range` is
    (minimum, maximum). `isolation` fixes how much of the agent's state the verifier may see.
    `world` is the manifest of the world that the task is set in, relative to the task directory.
    `tests` has single tests graded.
    """

    image_free: bool = False
    files: _Text | None = None
    setup: _Text | None = None
    setup_timeout_sec: _Seconds = 300.0
    outputs: list[_Text] = []
    needs: list[_Text] = []
    reward_range: tuple[float, float] = (0.0, 1.0)
    isolation: IsolationLevel | None = None
    world: _Text | None = None
    tests: TestsTable | None = None


class TaskToml(_Table, frozen=True):
    """A whole `task.toml`."""

    schema_version: _SchemaVersion = "1.4"
    source: str | None = None
    artifacts: list[_Text | ArtifactTable] = []
    task: PackageTable | None = None
    metadata: dict[str, Any] = {}
    verifier: VerifierTable = VerifierTable()
    agent: AgentTable = AgentTable()
    environment: EnvironmentTable = EnvironmentTable()
    solution: SolutionTable = SolutionTable()
    steps: list[StepTable] | None = None
    multi_step_reward_strategy: Literal["mean", "final"] | None = None
    ramify: RamifyTable | None = None


def parse_task_toml(path: Path) -> TaskToml:
    """Read and check a `task.toml`.

    Raises:
        ConfigError: not readable, malformed (names the line), an unknown key, a wrong type or a
            value out of range.
        UnsupportedError: a field that is understood but not served yet.
    """
    text = ""
    try:
        text = path.read_bytes().decode()
        raw = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError("is missing; every task directory has one", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", file=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        last = f"at line {text.count(chr(10)) + 1}, the end of the file"
        message = str(error).replace("at end of document", last)
        raise ConfigError(f"is not valid TOML: {message}", file=str(path)) from None
    return check_task_toml(raw, str(path))


def check_task_toml(raw: Mapping[str, Any], file: str) -> TaskToml:
    """Check an already decoded `task.toml`; `file` is named in errors, which are the same."""
    table = _with_schema_version(dict(raw), file)
    checked = table_record(TaskToml, table, file)
    _refuse_machines(checked.environment, "environment", file)
    _refuse_machines(checked.verifier.environment, "verifier.environment", file)
    for step in checked.steps or ():
        _refuse_machines(step.verifier.environment, "steps.verifier.environment", file)
    return checked


def _with_schema_version(table: dict[str, Any], file: str) -> dict[str, Any]:
    """Fold the old spelling `version` into `schema_version` and check the number."""
    if "version" in table:
        old = table.pop("version")
        if table.setdefault("schema_version", old) != old:
            raise ConfigError(
                "differs from `schema_version`; `version` is its old name, remove it",
                file=file,
                field="version",
            )
    version = table.get("schema_version", _SCHEMA_VERSIONS[-1])
    if not isinstance(version, str):
        raise ConfigError(
            f'expected a string such as "{_SCHEMA_VERSIONS[-1]}", got {version!r}',
            file=file,
            field="schema_version",
        )
    if version not in _SCHEMA_VERSIONS:
        raise UnsupportedError(
            f"{file}: schema_version: {version!r} is not one of the versions read here "
            f"({', '.join(_SCHEMA_VERSIONS)})"
        )
    return table


def _refuse_machines(table: EnvironmentTable | None, where: str, file: str) -> None:
    """Refuse operating systems and accelerators that no sandbox here has."""
    if table is None:
        return
    asked = {
        "os": table.os if table.os.lower() != "linux" else "",
        "gpus": table.gpus,
        "gpu_types": table.gpu_types,
        "tpu": table.tpu,
    }
    for name, value in asked.items():
        if value:
            raise UnsupportedError(
                f"{file}: {where}.{name}: {_MACHINES[name]} are not supported; no sandbox here "
                f"has them ({value!r})"
            )
