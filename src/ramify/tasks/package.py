"""Read a task directory (Harbor's format, with our additions) into a Task."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import (
    BuildSpec,
    Limits,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.contracts.task import (
    RESERVED_KEYS,
    Healthcheck,
    SolutionSettings,
    Task,
    TaskPackage,
    VerifierSettings,
)
from ramify.tasks.digest import package_digest
from ramify.tasks.dockerfile import workdir_of_dockerfile
from ramify.tasks.schema import (
    EnvironmentTable,
    NetworkModeName,
    RamifyTable,
    TaskToml,
    parse_task_toml,
)

DEFAULT_WORKDIR = "/app"
"""Work directory of a task that runs without an image and names none."""

_MODES: Mapping[NetworkModeName, NetworkMode] = {
    "public": NetworkMode.OPEN,
    "no-network": NetworkMode.NONE,
    "allowlist": NetworkMode.ALLOWLIST,
}
_FOREIGN_FILES: Mapping[str, str] = {
    "steps": "multi-step tasks",
    "trajectory.json": "prior context of a task",
    "environment/docker-compose.yaml": "Compose environments",
    "environment/docker-compose.yml": "Compose environments",
    "environment/compose.yaml": "Compose environments",
    "environment/compose.yml": "Compose environments",
    "environment/singularity-compose.yaml": "Singularity environments",
}
"""Files of the format that ask for something not served yet."""

_LEGACY = {"task.yaml": "the legacy Terminal-Bench format", "task.md": "the task.md format"}
_HOST = re.compile(
    r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:\d+)?$"
)
_TEMPLATE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?\}", re.DOTALL)
_SIZE = re.compile(r"^\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT])(?:I?B)?\s*$", re.IGNORECASE)
_MIB_PER = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024.0}


def read_task(path: Path, task_id: str, environ: Mapping[str, str] | None = None) -> Task:
    """Read one task directory.

    `${VAR}` and `${VAR:-default}` as the whole value of an `env` entry are taken from `environ`
    (default: this process's environment). The Task's `input` is instruction.md; `metadata` is
    `[metadata]`, with `[task]` and `source` under `package_info`.

    A task's network: `[agent]` overrides `[environment]`, which defaults to public. The verifier
    gets its own `network_mode`, else the environment's (Harbor's rule); with a `[ramify]` table
    it gets none unless it asks.

    Raises:
        ConfigError: something is missing or wrong; names file and field.
        UnsupportedError: the task asks for something not served yet; names file and field.
    """
    root = path.resolve()
    file = str(root / "task.toml")
    _refuse_foreign(root)
    table = parse_task_toml(root / "task.toml")
    reader = _Reader(root, file, table, os.environ if environ is None else environ)
    return Task(
        task_id=task_id,
        input=_text(root / "instruction.md"),
        metadata=reader.metadata(),
        package=reader.package(),
    )


def is_task_dir(path: Path) -> bool:
    """Whether a directory is meant as a task (also in a format that is refused by name)."""
    return any((path / name).is_file() for name in ("task.toml", "instruction.md", *_LEGACY))


class _Reader:
    """One task directory being read; checks each table against the directory."""

    def __init__(self, root: Path, file: str, table: TaskToml, environ: Mapping[str, str]) -> None:
        self._root, self._file, self._table, self._environ = root, file, table, environ
        self._native = table.ramify or RamifyTable()

    def metadata(self) -> dict[str, Any]:
        table = self._table
        if reserved := sorted(RESERVED_KEYS.intersection(table.metadata)):
            raise self._error(
                "metadata", f"{', '.join(reserved)}: reserved for the agent's run; rename or remove"
            )
        facts: dict[str, Any] = {}
        if table.task is not None:
            facts = {
                "name": table.task.name,
                "version": table.task.version,
                "description": table.task.description,
                "authors": [{"name": a.name, "email": a.email} for a in table.task.authors],
                "keywords": table.task.keywords,
            }
        facts["source"] = table.source
        info = {key: value for key, value in facts.items() if value}
        # Dates become text here, so that metadata is the same after any trip through JSON.
        metadata: dict[str, Any] = json.loads(json.dumps(table.metadata, default=str))
        if info and "package_info" in metadata:
            raise self._error("metadata.package_info", "is the name [task] goes by; rename it")
        return {**metadata, "package_info": info} if info else metadata

    def package(self) -> TaskPackage:
        root, table, native = self._root, self._table, self._native
        if not (root / "tests" / "test.sh").is_file():
            raise ConfigError("is missing; it decides the reward", file=str(root / "tests/test.sh"))
        baseline = self._baseline()
        agent_network = self._phase("agent")
        health = table.environment.healthcheck
        return TaskPackage(
            path=str(root),
            digest=package_digest(root),
            sandbox=self._sandbox(agent_network or baseline),
            verifier=self._verifier(self._phase("verifier"), baseline),
            solution=self._solution(),
            agent_timeout_sec=table.agent.timeout_sec,
            agent_user=_user(table.agent.user),
            files=self._below("files", native.files, directory=True),
            setup=self._below("setup", native.setup, directory=False),
            setup_timeout_sec=native.setup_timeout_sec,
            healthcheck=None
            if health is None
            else Healthcheck(
                command=health.command,
                interval_sec=health.interval_sec,
                timeout_sec=health.timeout_sec,
                start_period_sec=health.start_period_sec,
                start_interval_sec=health.start_interval_sec,
                retries=health.retries,
            ),
            outputs=self._paths("ramify.outputs", native.outputs),
            artifacts=self._paths("artifacts", table.artifacts),
            needs=self._programs(native.needs),
            host_root_ok=native.image_free,
        )

    def _sandbox(self, network: NetworkPolicy) -> SandboxSpec:
        env = self._table.environment
        dockerfile = self._root / "environment" / "Dockerfile"
        build: BuildSpec | None = None
        workdir = self._workdir(env)
        if env.docker_image is None and dockerfile.is_file():
            build = BuildSpec(context=str(dockerfile.parent), timeout_sec=env.build_timeout_sec)
            workdir = workdir or workdir_of_dockerfile(_text(dockerfile))
        elif env.docker_image is None and not self._native.image_free:
            raise self._error(
                "environment",
                "the task needs environment/Dockerfile, [environment] docker_image, or "
                "[ramify] image_free = true",
            )
        if self._native.image_free:
            # The host's root has no work directory of its own to fall back on.
            workdir = workdir or DEFAULT_WORKDIR
        return SandboxSpec(
            image=env.docker_image,
            build=build,
            host_root=env.docker_image is None and build is None,
            workdir=workdir,
            env=self._env("environment", env.env),
            limits=Limits(
                memory_mb=self._size("memory", env.memory, env.memory_mb),
                cpus=env.cpus,
                disk_mb=self._size("storage", env.storage, env.storage_mb),
            ),
            network=network,
        )

    def _workdir(self, env: EnvironmentTable) -> str | None:
        if env.workdir is None:
            return None
        if not env.workdir.startswith("/") or ".." in env.workdir.split("/"):
            raise self._error("environment.workdir", "must be an absolute path without `..`")
        return posixpath.normpath(env.workdir)

    def _verifier(self, own: NetworkPolicy | None, baseline: NetworkPolicy) -> VerifierSettings:
        table, native = self._table.verifier, self._native
        inherited = baseline if self._table.ramify is None else NetworkPolicy()
        low, high = native.reward_range
        if not -1e9 <= low < high <= 1e9:
            raise self._error("ramify.reward_range", "must be [minimum, maximum], finite, in order")
        return VerifierSettings(
            timeout_sec=table.timeout_sec,
            env=self._env("verifier", table.env),
            user=_user(table.user),
            network=own or inherited,
            reward_range=native.reward_range,
            isolation=native.isolation,
        )

    def _solution(self) -> SolutionSettings | None:
        if (self._root / "solution" / "solve.sh").is_file():
            return SolutionSettings(env=self._env("solution", self._table.solution.env))
        if (self._root / "solution").is_dir():
            raise ConfigError(
                "is missing; the directory solution/ has no other entry point",
                file=str(self._root / "solution/solve.sh"),
            )
        return None

    def _baseline(self) -> NetworkPolicy:
        env = self._table.environment
        if env.network_mode is None and env.allowed_hosts is None:
            closed = env.allow_internet is False
            return NetworkPolicy(NetworkMode.NONE if closed else NetworkMode.OPEN)
        return self._policy("environment", env.network_mode or "public", env.allowed_hosts)

    def _phase(self, name: str) -> NetworkPolicy | None:
        table = self._table.agent if name == "agent" else self._table.verifier
        if table.network_mode is None and not table.allowed_hosts:
            return None
        return self._policy(name, table.network_mode or "public", table.allowed_hosts)

    def _policy(self, table: str, mode: NetworkModeName, hosts: list[str] | None) -> NetworkPolicy:
        field = f"{table}.allowed_hosts"
        if hosts and mode != "allowlist":
            raise self._error(field, 'only has a meaning with network_mode = "allowlist"')
        cleaned = [host.strip().lower().rstrip(".") for host in hosts or ()]
        for host in cleaned:
            if re.fullmatch(r"[0-9a-f.:]+/\d+", host) or host.count(":") > 1:
                raise UnsupportedError(
                    f"{self._file}: {field}: address ranges and IPv6 addresses ({host}) are not "
                    "supported yet; name hosts"
                )
            if not _HOST.match(host):
                raise self._error(
                    field, f"{host!r} is not a host; write `host`, `*.domain` or `host:port`"
                )
        return NetworkPolicy(_MODES[mode], tuple(cleaned))

    def _env(self, table: str, env: Mapping[str, str]) -> dict[str, str]:
        resolved: dict[str, str] = {}
        for key, value in env.items():
            if not key or "=" in key or "\0" in key + value:
                raise self._error(f"{table}.env", f"{key!r} cannot be an environment variable")
            match = _TEMPLATE.fullmatch(value)
            if match is None:
                resolved[key] = value
                continue
            default: str | None = match["default"]
            found = self._environ.get(match["name"], default)
            if found is None:
                raise self._error(
                    f"{table}.env.{key}",
                    f"{match['name']} is not set on this host; set it, or give a default: "
                    f"${{{match['name']}:-default}}",
                )
            resolved[key] = found
        return resolved

    def _size(self, name: str, legacy: str | None, mb: int | None) -> int | None:
        """MiB from `memory_mb`, or from the legacy `memory = "4G"`, which must agree with it."""
        if legacy is None:
            return mb
        match = _SIZE.match(legacy)
        if match is None:
            raise self._error(f"environment.{name}", f'{legacy!r} is not a size such as "4G"')
        size = max(1, round(float(match["number"]) * _MIB_PER[match["unit"].upper()]))
        if mb is not None and mb != size:
            raise self._error(
                f"environment.{name}", f"differs from {name}_mb = {mb}; keep {name}_mb"
            )
        return size

    def _below(self, field: str, value: str | None, *, directory: bool) -> str | None:
        """A path of the package that must exist in it."""
        if value is None:
            return None
        clean = posixpath.normpath(value)
        if clean.startswith(("/", "..")) or clean == ".":
            raise self._error(f"ramify.{field}", f"{value!r} must be a path below the task")
        place = self._root / clean
        if not (place.is_dir() if directory else place.is_file()):
            kind = "directory" if directory else "file"
            raise self._error(f"ramify.{field}", f"no {kind} {value!r} in the task")
        return clean

    def _paths(self, field: str, values: Iterable[str]) -> tuple[str, ...]:
        """Paths inside the sandbox: absolute, or relative to the work directory."""
        clean: list[str] = []
        for value in values:
            path = posixpath.normpath(value)
            if ".." in value.split("/") or "\0" in value or path in (".", "/"):
                raise self._error(
                    field, f"{value!r} must name something in the work directory, or be absolute"
                )
            if path in clean:
                raise self._error(field, f"{value!r} is named twice")
            clean.append(path)
        return tuple(clean)

    def _programs(self, names: Iterable[str]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
                raise self._error("ramify.needs", f"{name!r} is not the name of a program")
        return tuple(names)

    def _error(self, field: str, message: str) -> ConfigError:
        return ConfigError(message, file=self._file, field=field)


def _refuse_foreign(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError("is not a directory; give a task directory", file=str(root))
    if not (root / "task.toml").is_file():
        for name, what in _LEGACY.items():
            if (root / name).is_file():
                raise UnsupportedError(f"{root / name}: {what} is not supported yet")
    for name, what in _FOREIGN_FILES.items():
        if (root / name).exists():
            raise UnsupportedError(f"{root / name}: {what} are not supported yet")


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError("is missing; write it", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", file=str(path)) from None
    if not text.strip():
        raise ConfigError("is empty", file=str(path))
    return text


def _user(user: str | int | None) -> str | None:
    return None if user is None else str(user)
