"""The fields of `task.toml` (schema 1.4), each known by name.

Supported fields are structs; those understood but not served yet are refused by name when they
carry a value that means something; anything else is unknown and refused with the nearest known
key. The table `[ramify]` is our own addition: a file with it is still a valid Harbor task.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.task import IsolationLevel

_SchemaVersion = Literal["1.0", "1.1", "1.2", "1.3", "1.4"]
_SCHEMA_VERSIONS: tuple[str, ...] = get_args(_SchemaVersion)

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


class VerifierTable(_Table, frozen=True):
    """`[verifier]`."""

    timeout_sec: _Seconds = 600.0
    env: dict[str, str] = {}
    user: _User = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None


class AgentTable(_Table, frozen=True):
    """`[agent]`."""

    timeout_sec: _Seconds = 600.0
    user: _User = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None


class HealthcheckTable(_Table, frozen=True):
    """`[environment.healthcheck]`."""

    command: _Text
    interval_sec: _Delay = 5.0
    timeout_sec: _Seconds = 30.0
    start_period_sec: _Delay = 0.0
    start_interval_sec: _Delay = 5.0
    retries: _Count = 3


class EnvironmentTable(_Table, frozen=True):
    """`[environment]`. `memory` and `storage` are the legacy spellings, as in "4G"."""

    build_timeout_sec: _Seconds = 600.0
    docker_image: _Text | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0, le=4096)] | None = None
    memory_mb: _Count | None = None
    storage_mb: _Count | None = None
    memory: str | None = None
    storage: str | None = None
    env: dict[str, str] = {}
    healthcheck: HealthcheckTable | None = None
    workdir: _Text | None = None
    network_mode: NetworkModeName | None = None
    allowed_hosts: list[str] | None = None
    allow_internet: bool | None = None


class SolutionTable(_Table, frozen=True):
    """`[solution]`."""

    env: dict[str, str] = {}


class RamifyTable(_Table, frozen=True):
    """`[ramify]`: what Harbor's format has no word for.

    `image_free`: may run on the host's own root file system, read-only below an overlay.
    `files` (a directory) is copied into the work directory, then `setup` (a script) runs there,
    before the agent comes. `outputs` are the paths that carry the result, relative to the work
    directory or absolute. `needs` names programs that must exist inside. `reward_range` is
    (minimum, maximum). `isolation` fixes how much of the agent's state the verifier may see.
    """

    image_free: bool = False
    files: _Text | None = None
    setup: _Text | None = None
    setup_timeout_sec: _Seconds = 300.0
    outputs: list[_Text] = []
    needs: list[_Text] = []
    reward_range: tuple[float, float] = (0.0, 1.0)
    isolation: IsolationLevel | None = None


class TaskToml(_Table, frozen=True):
    """A whole `task.toml`."""

    schema_version: _SchemaVersion = "1.4"
    source: str | None = None
    artifacts: list[_Text] = []
    task: PackageTable | None = None
    metadata: dict[str, Any] = {}
    verifier: VerifierTable = VerifierTable()
    agent: AgentTable = AgentTable()
    environment: EnvironmentTable = EnvironmentTable()
    solution: SolutionTable = SolutionTable()
    ramify: RamifyTable | None = None


_UNSUPPORTED: Mapping[str, str] = {
    "steps": "multi-step tasks",
    "multi_step_reward_strategy": "multi-step tasks",
    "verifier.environment_mode": "an environment of the verifier's own",
    "verifier.environment": "an environment of the verifier's own",
    "verifier.collect": "collect hooks",
    "environment.os": "operating systems other than linux",
    "environment.gpus": "GPUs",
    "environment.gpu_types": "GPUs",
    "environment.tpu": "TPUs",
    "environment.mcp_servers": "MCP servers of a task",
    "environment.skills_dir": "skills that come with a task",
}
"""Fields that are understood but not served yet, and what they ask for."""

_HARMLESS: Mapping[str, frozenset[str]] = {
    "environment.os": frozenset({"linux"}),
    "verifier.environment_mode": frozenset({"shared"}),
}
"""Values of such fields that ask for what we do anyway."""


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
    table = _without_unsupported(table, file)
    _refuse_unknown(TaskToml, table, "", file)
    try:
        return msgspec.convert(table, TaskToml, strict=True)
    except msgspec.ValidationError as error:
        message, field = _split_location(str(error))
        raise ConfigError(message, file=file, field=field) from None


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


def _without_unsupported(table: dict[str, Any], file: str) -> dict[str, Any]:
    """Refuse fields not served yet; drop them where their value asks for nothing."""
    copy = {key: dict(_table(value)) or value for key, value in table.items()}
    for dotted, what in _UNSUPPORTED.items():
        head, _, last = dotted.rpartition(".")
        holder = _table(copy.get(head)) if head else copy
        value = holder.pop(last, None)
        lowered = value.lower() if isinstance(value, str) else value
        harmless = isinstance(lowered, str) and lowered in _HARMLESS.get(dotted, ())
        if value and not harmless:
            raise UnsupportedError(f"{file}: {dotted}: {what} are not supported yet; remove it")
    if artifacts := _list(copy.get("artifacts")):
        copy["artifacts"] = [_plain_artifact(item, file) for item in artifacts]
    return copy


def _plain_artifact(item: Any, file: str) -> Any:
    """An artifact as its source path, where that is all it says."""
    table = _table(item)
    extra = sorted(key for key, value in table.items() if key != "source" and value)
    if extra == ["service"] and table["service"] == "main":
        extra = []
    if extra:
        raise UnsupportedError(
            f"{file}: artifacts: {', '.join(extra)} of an artifact are not supported yet; "
            "give the source path alone"
        )
    return table.get("source", item)


def _refuse_unknown(struct: type[msgspec.Struct], table: Any, prefix: str, file: str) -> None:
    known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in _table(table).items():
        if key not in known:
            raise ConfigError(
                _unknown_key(key, [*known, *_unsupported_below(prefix)]),
                file=file,
                field=f"{prefix}{key}",
            )
        for inner in _structs_of(known[key]):
            for item in _list(value) or [value]:
                _refuse_unknown(inner, item, f"{prefix}{key}.", file)


def _table(value: Any) -> dict[str, Any]:
    """`value` itself where it is a table (TOML keys are strings), else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    """`value` itself where it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def _unsupported_below(prefix: str) -> Iterable[str]:
    below = (key[len(prefix) :] for key in _UNSUPPORTED if key.startswith(prefix))
    return (key for key in below if "." not in key)


def _structs_of(kind: Any) -> list[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for part in get_args(kind) for struct in _structs_of(part)]


def _unknown_key(key: str, known: Iterable[str]) -> str:
    """One line about an unknown key, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(key, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names)}"
    return f"unknown key; {hint}"


_LOCATION = re.compile(r"^(?P<message>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


def _split_location(error: str) -> tuple[str, str | None]:
    """Message and dotted field of one of msgspec's validation errors."""
    match = _LOCATION.match(error)
    if match is None:
        return error, None
    message = match["message"]
    missing = re.fullmatch(r"Object missing required field `(\w+)`", message)
    path = match["path"].removeprefix("$").lstrip(".")
    if missing:
        return "is required", ".".join(part for part in (path, missing[1]) if part)
    return message[:1].lower() + message[1:], path.replace("[...]", "") or None
