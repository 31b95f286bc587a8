"""A world's manifest: reads and checks the TOML file that declares it."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.contracts.tables import table_record
from ramify.planes.environment.records import (
    EnvironmentSpec,
    ManifestTable,
    ServiceSpec,
    StateSpec,
    VerifierSpec,
)
from ramify.planes.environment.verifier_table import check_verifier

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_NEEDED = {
    "sqlite": ("paths",),
    "files": ("paths",),
    "postgres": ("url",),
    "redis": ("url",),
    "command": ("snapshot", "restore"),
    "http": ("service", "snapshot", "restore"),
    "process": ("service",),
}
"""Kind of state → fields that it cannot do without."""
_ALLOWED = {
    "sqlite": {"paths", "digest", "mutate"},
    "files": {"paths", "exclude", "digest", "mutate"},
    "postgres": {"url", "digest", "mutate"},
    "redis": {"url", "digest", "mutate"},
    "command": {"snapshot", "restore", "digest", "mutate"},
    "http": {"snapshot", "restore", "digest", "mutate"},
    "process": {"digest", "mutate"},
}
"""Kind of state → fields that mean something to it, besides those of every kind."""
_EVERY_KIND = frozenset({"kind", "name", "service", "user", "timeout_sec"})
_SCHEMES = {"postgres": ("postgresql", "postgres"), "redis": ("redis",)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A world as its author declares it, read and checked.

    Attributes:
        path: the file; what it names beside itself is relative to its directory.
        environment, verifier: its tables.
        state: `[[environment.state]]`, in order.
    """

    path: Path
    environment: EnvironmentSpec
    verifier: VerifierSpec
    state: tuple[StateSpec, ...]

    @property
    def starts_entrypoint(self) -> bool:
        """Whether the image's entrypoint is started."""
        environment = self.environment
        if environment.owns_lifecycle is not None:
            return environment.owns_lifecycle
        has_image = environment.image or environment.base_image or environment.build
        return bool(has_image) and all(s.command is None for s in environment.services)

    @property
    def files(self) -> Path | None:
        """The host directory that is copied into the work directory."""
        return self._beside(self.environment.files)

    @property
    def build(self) -> Path | None:
        """The host directory with the Dockerfile."""
        return self._beside(self.environment.build)

    @property
    def rubric_file(self) -> Path | None:
        """The Python file with the rubric; None where there is none, or it is a module."""
        place = (self.verifier.rubric or "").rpartition(":")[0]
        return self._beside(place) if place.endswith(".py") else None

    @property
    def instruction_file(self) -> Path | None:
        """The file with the grading agent's instruction; None where there is none."""
        text = self.verifier.instruction or ""
        named = text.endswith((".md", ".txt")) and not any(c.isspace() for c in text)
        return self._beside(text) if named else None

    @property
    def selection_key(self) -> str | None:
        """The variable that carries the task's id; None where the image does."""
        selection = self.environment.task_selection
        return selection.key if selection.mechanism == "env_var" else None

    def services(self, wanted: Sequence[str] = ()) -> tuple[ServiceSpec, ...]:
        """Services in the order in which they are started.

        `wanted` names those that a task uses (with or without the prefix `mock-`), and what they
        depend on comes along; empty: all. Raises: UnknownNameError.
        """
        listed = {service.name: service for service in self.environment.services}
        names = [self._name_of(each, listed) for each in wanted] if wanted else list(listed)
        order: dict[str, ServiceSpec] = {}

        def take(name: str) -> None:
            if name not in order:
                for other in listed[name].depends_on:
                    take(other)
                order[name] = listed[name]

        for name in listed:
            if name in names:
                take(name)
        return tuple(order.values())

    def service(self, name: str) -> ServiceSpec:
        """The service of that name. Raises: UnknownNameError."""
        for service in self.environment.services:
            if service.name == name:
                return service
        raise UnknownNameError("service", name, [s.name for s in self.environment.services])

    def _name_of(self, wanted: str, listed: Mapping[str, ServiceSpec]) -> str:
        for name in (wanted, wanted.removeprefix("mock-"), f"mock-{wanted}"):
            if name in listed:
                return name
        raise UnknownNameError(f"service of {self.path}", wanted, listed)

    def _beside(self, place: str | None) -> Path | None:
        return None if place is None else (self.path.parent / place).resolve()


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ConfigError: not readable, malformed, an unknown key, a wrong type or value, fields that
            contradict each other, or a directory that is not there. Names file and field.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("there is no such manifest", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    manifest = parse_manifest(data, path.resolve())
    _check_places(manifest)
    return manifest


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the content of a manifest; `path` is where it stands. Reads nothing.

    Raises: ConfigError, as `load_manifest`.
    """
    file = str(path)
    try:
        raw = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", file=file) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"is not valid TOML: {error}", file=file) from None
    if "environment" not in raw:
        raise ConfigError("is missing; a manifest has one", file=file, field="[environment]")
    table = table_record(ManifestTable, raw, file)
    environment = table.environment
    given = environment.state
    state = (given,) if isinstance(given, StateSpec) else tuple(given)
    check = _Check(file, environment, state)
    check.world()
    if environment.task_selection.key is None and _selects_by_variable(raw):
        raise check.error("task_selection.key", 'is required for mechanism = "env_var"')
    check.services()
    check.readiness()
    check.parts()
    for index, spec in enumerate(state):
        check.state(index, spec, _fields_of(raw, index))
    check.hidden(table.verifier)
    check_verifier(table.verifier, raw.get("verifier", {}), file)
    return Manifest(path, environment, table.verifier, state)


def _fields_of(raw: Mapping[str, Any], index: int) -> set[str]:
    """The keys that a table of state has in the file."""
    given = raw["environment"]["state"]
    tables = cast("list[dict[str, Any]]", given if isinstance(given, list) else [given])
    return set(tables[index])


def _selects_by_variable(raw: Mapping[str, Any]) -> bool:
    selection = raw["environment"].get("task_selection")
    return selection is not None and selection.get("mechanism", "env_var") == "env_var"


def _check_places(manifest: Manifest) -> None:
    build, files = manifest.build, manifest.files
    file = str(manifest.path)
    if build is not None and not (build / "Dockerfile").is_file():
        raise ConfigError(
            f"there is no Dockerfile in {build}", file=file, field="environment.build"
        )
    if files is not None and not files.is_dir():
        raise ConfigError(f"there is no directory {files}", file=file, field="environment.files")
    for field, place in (
        ("verifier.rubric", manifest.rubric_file),
        ("verifier.instruction", manifest.instruction_file),
    ):
        if place is None:
            continue
        if not place.is_file():
            raise ConfigError(f"there is no file {place}", file=file, field=field)
        if files is not None and place.is_relative_to(files):
            raise ConfigError(
                f"{place} lies in `environment.files`, which agents are given; move it out of "
                "there",
                file=file,
                field=field,
            )


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks of one manifest that concern more than one field."""

    file: str
    environment: EnvironmentSpec
    specs: tuple[StateSpec, ...]

    def error(self, field: str, message: str) -> ConfigError:
        where = f"environment.{field}" if field else "environment"
        return ConfigError(message, file=self.file, field=where)

    def world(self) -> None:
        table = self.environment
        if not _NAME.fullmatch(table.name):
            raise self.error("name", f"{table.name!r} is no name; use letters, digits and . _ -")
        roots = [n for n in ("image", "base_image", "build") if getattr(table, n) is not None]
        if len(roots) > 1:
            raise self.error(roots[1], f"stands beside `{roots[0]}`; keep one of them")
        for name in ("build", "files"):
            place = getattr(table, name)
            if place is not None and posixpath.normpath(place).startswith(("/", "..")):
                raise self.error(name, f"{place!r} must be a directory beside the manifest")
        if not _absolute(table.fleet_env):
            raise self.error("fleet_env", f"{table.fleet_env!r} must be an absolute path")
        if table.workdir is not None and not _absolute(table.workdir):
            raise self.error("workdir", f"{table.workdir!r} must be an absolute path")
        selection = table.task_selection
        if selection.key is not None and not _VARIABLE.fullmatch(selection.key):
            raise self.error("task_selection.key", f"{selection.key!r} is no variable's name")
        for key in table.forward_env.keys:
            if not _VARIABLE.fullmatch(key):
                raise self.error("forward_env.keys", f"{key!r} is no variable's name")
        tasks_have_one = selection.mechanism == "image"
        if table.owns_lifecycle and not (roots or tasks_have_one or table.topology != "in-sandbox"):
            raise self.error(
                "owns_lifecycle",
                "says that the image starts the services, and there is no image; give one, or "
                'task_selection = { mechanism = "image" } where tasks bring theirs, or the '
                "services commands",
            )

    def services(self) -> None:
        names: set[str] = set()
        ports: dict[int, str] = {}
        listed = [service.name for service in self.environment.services]
        for service in self.environment.services:
            where = f"services.{service.name}"
            if not _NAME.fullmatch(service.name):
                raise self.error("services.name", f"{service.name!r} is no name")
            if service.name == "entrypoint":
                raise self.error(where, "is how the image's own process is called; rename it")
            if service.name in names:
                raise self.error(where, "is there twice; give each service a name of its own")
            if service.port is not None and service.port in ports:
                raise self.error(
                    f"{where}.port", f"{service.port} is the port of {ports[service.port]} too"
                )
            self._service(where, service, listed)
            names.add(service.name)
            if service.port is not None:
                ports[service.port] = service.name
        self._no_cycles()

    def _service(self, where: str, service: ServiceSpec, listed: Sequence[str]) -> None:
        if service.command is None and self.environment.owns_lifecycle is False:
            raise self.error(
                f"{where}.command",
                "is required: with owns_lifecycle = false nobody else starts the service",
            )
        if service.health is not None and service.health_path is not None:
            raise self.error(f"{where}.health_path", "is another name of `health`; keep one")
        health = service.health or service.health_path
        if health is not None and health != "tcp" and not health.startswith("/"):
            raise self.error(
                f"{where}.health", f'{health!r} must be a path such as "/health", or "tcp"'
            )
        if health is not None and service.port is None:
            raise self.error(f"{where}.health", "needs a `port` that is asked")
        if service.cwd is not None and not _absolute(service.cwd):
            raise self.error(f"{where}.cwd", f"{service.cwd!r} must be an absolute path")
        for key in service.env:
            if not _VARIABLE.fullmatch(key):
                raise self.error(f"{where}.env", f"{key!r} is no variable's name")
        for other in service.depends_on:
            if other not in listed:
                raise self.error(
                    f"{where}.depends_on", str(UnknownNameError("service", other, listed))
                )
        covered = any(spec.service == service.name for spec in self.specs)
        if service.on_branch == "hook" and not covered:
            raise self.error(
                f"{where}.on_branch",
                f'"hook" needs an [[environment.state]] with service = "{service.name}"',
            )
        if service.on_branch in ("restart", "hook") and service.command is None:
            raise self.error(
                f"{where}.on_branch",
                f'"{service.on_branch}" needs a `command`: what an entrypoint started cannot be '
                "started again by itself",
            )

    def _no_cycles(self) -> None:
        below = {service.name: service.depends_on for service in self.environment.services}
        while free := [name for name, needs in below.items() if not set(needs) & set(below)]:
            for name in free:
                del below[name]
        if below:
            raise self.error("services", f"{', '.join(below)} depend on each other in a circle")

    def readiness(self) -> None:
        for url in self.environment.readiness.http:
            try:
                parts = urlsplit(url)
                port = parts.port
            except ValueError as error:
                raise self.error("readiness.http", f"{url!r} is no URL: {error}") from None
            if parts.scheme != "http" or parts.hostname not in _LOOPBACK or port is None:
                raise self.error(
                    "readiness.http",
                    f"{url!r} must be http on the sandbox's loopback, with a port: "
                    "http://localhost:8000/health",
                )

    def parts(self) -> None:
        seen: list[object] = []
        for index, spec in enumerate(self.specs):
            place = spec.name or (spec.kind, spec.paths, spec.service, spec.url)
            if place in seen:
                raise self.error(f"state[{index}]", "is there twice; give each a `name` of its own")
            seen.append(place)

    def state(self, index: int, spec: StateSpec, given: Iterable[str]) -> None:
        where = f"state[{index}]"
        for field in _NEEDED[spec.kind]:
            if not getattr(spec, field):
                raise self.error(f"{where}.{field}", f'is required for kind = "{spec.kind}"')
        for field in sorted(set(given) - _EVERY_KIND - _ALLOWED[spec.kind]):
            raise self.error(f"{where}.{field}", f'has no meaning for kind = "{spec.kind}"')
        for path in spec.paths:
            if not _absolute(path):
                raise self.error(f"{where}.paths", f"{path!r} must be an absolute path")
        listed = {service.name: service for service in self.environment.services}
        if spec.service is not None and spec.service not in listed:
            raise self.error(
                f"{where}.service", str(UnknownNameError("service", spec.service, listed))
            )
        if spec.kind == "http":
            self._http(where, spec, listed)
        if (schemes := _SCHEMES.get(spec.kind)) is not None:
            self._url(where, spec.url or "", schemes)

    def _http(self, where: str, spec: StateSpec, listed: Mapping[str, ServiceSpec]) -> None:
        if spec.service is not None and listed[spec.service].port is None:
            raise self.error(f"{where}.service", f"{spec.service} has no port that can be asked")
        for field in ("snapshot", "restore", "digest", "mutate"):
            value = getattr(spec, field)
            if value is not None and not value.startswith("/"):
                raise self.error(f"{where}.{field}", f"{value!r} must be a path of the service")

    def _url(self, where: str, url: str, schemes: tuple[str, ...]) -> None:
        try:
            parts = urlsplit(url)
            ok = parts.scheme in schemes and parts.port != 0
            # No host: the local socket of a PostgreSQL server, as its own user.
            ok &= parts.hostname in _LOOPBACK or (not parts.netloc and "postgresql" in schemes)
        except ValueError:
            ok = False
        if not ok:
            raise self.error(
                f"{where}.url", f"{url!r} must be {schemes[0]}://… on the sandbox's loopback"
            )

    def hidden(self, verifier: VerifierSpec) -> None:
        for pattern in verifier.hidden_from_agent:
            parts = pattern.strip("/").split("/")
            if not all(parts) or ".." in parts or "." in parts or "\0" in pattern:
                raise ConfigError(
                    f"{pattern!r} is no pattern of names; write e.g. fixtures/*.json",
                    file=self.file,
                    field="verifier.hidden_from_agent",
                )


def _absolute(path: str) -> bool:
    return path.startswith("/") and "\0" not in path and ".." not in path.split("/")
