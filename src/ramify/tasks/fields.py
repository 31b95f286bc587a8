"""Single fields of a task's tables, checked and turned into what the contracts say."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import Limits, NetworkMode, NetworkPolicy
from ramify.contracts.task import Artifact, CollectHook, Healthcheck, McpServer
from ramify.tasks.schema import (
    AgentTable,
    ArtifactTable,
    CollectTable,
    EnvironmentTable,
    HealthcheckTable,
    McpServerTable,
    NetworkModeName,
    VerifierTable,
)

_MODES: Mapping[NetworkModeName, NetworkMode] = {
    "public": NetworkMode.OPEN,
    "no-network": NetworkMode.NONE,
    "allowlist": NetworkMode.ALLOWLIST,
}
_HOST = re.compile(
    r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:\d+)?$"
)
_TEMPLATE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?\}", re.DOTALL)
_SIZE = re.compile(r"^\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT])(?:I?B)?\s*$", re.IGNORECASE)
_MIB_PER = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024.0}


class Fields:
    """Checks fields of one file.

    Args:
        file: the file, as errors name it.
        environ: where `${VAR}` in an `env` table is looked up.
        main: the name of the agent's own service, where services are named.

    Every method takes `where`, the dotted name of the table or field, and raises ConfigError, or
    UnsupportedError for what is understood but not served.
    """

    def __init__(self, file: str, environ: Mapping[str, str], main: str = "main") -> None:
        self._file, self._environ, self._main = file, environ, main

    def error(self, where: str, message: str) -> ConfigError:
        """An error about a field of this file."""
        return ConfigError(message, file=self._file, field=where)

    def unsupported(self, where: str, message: str) -> UnsupportedError:
        """A refusal of a field of this file."""
        return UnsupportedError(f"{self._file}: {where}: {message}")

    def baseline(self, where: str, table: EnvironmentTable) -> NetworkPolicy:
        """The network of an environment; public where it says nothing."""
        if table.network_mode is None and table.allowed_hosts is None:
            closed = table.allow_internet is False
            return NetworkPolicy(NetworkMode.NONE if closed else NetworkMode.OPEN)
        return self._policy(where, table.network_mode or "public", table.allowed_hosts)

    def phase(self, where: str, table: AgentTable | VerifierTable) -> NetworkPolicy | None:
        """The network that a phase asks for itself; None where it asks for none."""
        if table.network_mode is None and not table.allowed_hosts:
            return None
        return self._policy(where, table.network_mode or "public", table.allowed_hosts)

    def _policy(self, where: str, mode: NetworkModeName, hosts: list[str] | None) -> NetworkPolicy:
        field = f"{where}.allowed_hosts"
        if hosts and mode != "allowlist":
            raise self.error(field, 'only has a meaning with network_mode = "allowlist"')
        cleaned = [host.strip().lower().rstrip(".") for host in hosts or ()]
        for host in cleaned:
            if re.fullmatch(r"[0-9a-f.:]+/\d+", host) or host.count(":") > 1:
                raise self.unsupported(
                    field,
                    f"address ranges and IPv6 addresses ({host}) are not supported yet; name hosts",
                )
            if not _HOST.match(host):
                raise self.error(
                    field, f"{host!r} is not a host; write `host`, `*.domain` or `host:port`"
                )
        return NetworkPolicy(_MODES[mode], tuple(cleaned))

    def env(self, where: str, env: Mapping[str, str]) -> dict[str, str]:
        """Environment variables, with `${VAR}` and `${VAR:-default}` resolved."""
        resolved: dict[str, str] = {}
        for key, value in env.items():
            if not key or "=" in key or "\0" in key + value:
                raise self.error(where, f"{key!r} cannot be an environment variable")
            match = _TEMPLATE.fullmatch(value)
            if match is None:
                resolved[key] = value
                continue
            default: str | None = match["default"]
            found = self._environ.get(match["name"], default)
            if found is None:
                raise self.error(
                    f"{where}.{key}",
                    f"{match['name']} is not set on this host; set it, or give a default: "
                    f"${{{match['name']}:-default}}",
                )
            resolved[key] = found
        return resolved

    def limits(self, where: str, table: EnvironmentTable) -> Limits:
        """Resource limits, in the current or the legacy spelling."""
        return Limits(
            memory_mb=self._size(f"{where}.memory", table.memory, table.memory_mb),
            cpus=table.cpus,
            disk_mb=self._size(f"{where}.storage", table.storage, table.storage_mb),
        )

    def _size(self, where: str, legacy: str | None, mb: int | None) -> int | None:
        """MiB from `memory_mb`, or from the legacy `memory = "4G"`, which must agree with it."""
        if legacy is None:
            return mb
        match = _SIZE.match(legacy)
        if match is None:
            raise self.error(where, f'{legacy!r} is not a size such as "4G"')
        size = max(1, round(float(match["number"]) * _MIB_PER[match["unit"].upper()]))
        if mb is not None and mb != size:
            name = where.rpartition(".")[2]
            raise self.error(where, f"differs from {name}_mb = {mb}; keep {name}_mb")
        return size

    def absolute(self, where: str, path: str | None) -> str | None:
        """An absolute path inside, normalised."""
        if not path:
            return None
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise self.error(where, "must be an absolute path without `..`")
        return posixpath.normpath(path)

    def paths(self, where: str, values: Iterable[str]) -> tuple[str, ...]:
        """Paths inside the sandbox: absolute, or relative to the work directory; none twice."""
        clean: list[str] = []
        for value in values:
            path = self._path(where, value)
            if path in clean:
                raise self.error(where, f"{value!r} is named twice")
            clean.append(path)
        return tuple(clean)

    def _path(self, where: str, value: str) -> str:
        path = posixpath.normpath(value)
        if ".." in value.split("/") or "\0" in value or path in (".", "/"):
            raise self.error(
                where, f"{value!r} must name something in the work directory, or be absolute"
            )
        return path

    def artifacts(self, where: str, values: Iterable[str | ArtifactTable]) -> tuple[Artifact, ...]:
        """What is kept once the agent is done; the same source twice is one mistake too many."""
        found: list[Artifact] = []
        for value in values:
            table = ArtifactTable(source=value) if isinstance(value, str) else value
            made = Artifact(
                source=self._path(where, table.source),
                destination=self._destination(where, table.destination),
                exclude=tuple(table.exclude),
                service=self._service(f"{where}.service", table.service),
            )
            if any(made.source == other.source for other in found):
                raise self.error(where, f"{table.source!r} is named twice")
            found.append(made)
        return tuple(found)

    def _destination(self, where: str, value: str | None) -> str | None:
        if not value:
            return None
        path = posixpath.normpath(value)
        if path.startswith(("/", "..")) or path == "." or "\\" in value or "\0" in value:
            raise self.error(
                f"{where}.destination", f"{value!r} must be a relative path without `..`"
            )
        return path

    def _service(self, where: str, value: str | None) -> str | None:
        if value is None or value == self._main:
            return None
        raise self.unsupported(
            where,
            f"only the agent's own service ({self._main}) can be reached, not {value!r}; have it "
            "leave its files there",
        )

    def collect(self, where: str, tables: Iterable[CollectTable]) -> tuple[CollectHook, ...]:
        """Commands that run after the agent."""
        return tuple(
            CollectHook(
                command=table.command,
                timeout_sec=table.timeout_sec,
                user=user_name(table.user),
                service=self._service(f"{where}.service", table.service),
            )
            for table in tables
        )

    def mcp_servers(self, where: str, tables: Iterable[McpServerTable]) -> tuple[McpServer, ...]:
        """MCP servers, each complete for its transport and with a name of its own."""
        found: list[McpServer] = []
        for table in tables:
            transport = "streamable-http" if table.transport == "http" else table.transport
            needed = "command" if transport == "stdio" else "url"
            if (table.command if needed == "command" else table.url) is None:
                raise self.error(where, f"{table.name!r} needs `{needed}` for {transport}")
            if any(table.name == other.name for other in found):
                raise self.error(where, f"{table.name!r} is named twice")
            found.append(
                McpServer(table.name, transport, table.url, table.command, tuple(table.args))
            )
        return tuple(found)

    def programs(self, where: str, names: Iterable[str]) -> tuple[str, ...]:
        """Names of programs, without paths."""
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
                raise self.error(where, f"{name!r} is not the name of a program")
        return tuple(names)


def healthcheck(table: HealthcheckTable | None) -> Healthcheck | None:
    """A healthcheck, where there is one."""
    if table is None:
        return None
    return Healthcheck(
        command=table.command,
        interval_sec=table.interval_sec,
        timeout_sec=table.timeout_sec,
        start_period_sec=table.start_period_sec,
        start_interval_sec=table.start_interval_sec,
        retries=table.retries,
    )


def user_name(user: str | int | None) -> str | None:
    """A user as sandboxes take it: a name, or a number as text."""
    return None if user is None else str(user)
