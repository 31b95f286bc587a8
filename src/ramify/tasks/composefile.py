"""Compose files of legacy tasks: one plain service becomes an image or a Dockerfile."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import (
    BuildSpec,
    ComposeSpec,
    Limits,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.tasks.dockerfile import workdir_of_dockerfile
from ramify.tasks.texts import read_text
from ramify.tasks.yamltext import load_yaml

_VARIABLES: Mapping[str, str] = {
    "T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME": "client",
    "T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME": "client",
    "T_BENCH_TASK_DOCKER_NAME_PREFIX": "tb",
    "T_BENCH_TEST_DIR": "/tests",
    "T_BENCH_CONTAINER_LOGS_PATH": "/logs",
    "T_BENCH_CONTAINER_AGENT_LOGS_PATH": "/agent-logs",
    "T_BENCH_TASK_LOGS_PATH": "t-bench-logs",
    "T_BENCH_TASK_AGENT_LOGS_PATH": "t-bench-agent-logs",
}
"""What Terminal-Bench provides; its host directories for logs only have to be recognised."""

_IDLE = frozenset(
    {
        "command", "container_name", "hostname", "init", "networks", "ports", "restart",
        "stdin_open", "stop_grace_period", "tty",
    }
)  # fmt: skip
"""Keys without a meaning for a sandbox that is one container: it idles, alone, under our name."""
_READ = frozenset({"build", "image", "environment", "working_dir", "user", "volumes", "deploy"})
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<op>:?-)(?P<default>[^}]*))?\})"
)
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[bkmgt]?)b?", re.IGNORECASE)
_MIB_PER = {"": 2**-20, "b": 2**-20, "k": 2**-10, "m": 1.0, "g": 1024.0, "t": 2.0**20}


def legacy_sandbox(file: Path) -> SandboxSpec:
    """The sandbox that a Terminal-Bench Compose file describes.

    A single service that says nothing beyond image or build, environment, work directory, user
    and limits becomes an image or a Dockerfile, so that it runs on any sandbox. Everything else
    stays a Compose project, whose service `client` the agent works in.

    Raises:
        ConfigError: not a Compose file, or several services and none of them is `client`.
    """
    table = load_yaml(file)
    services = _table(table.get("services"))
    if not services:
        raise ConfigError("names no service", file=str(file), field="services")
    if len(services) == 1:
        name, given = next(iter(services.items()))
        spec = _single(file, _interpolated(_table(given)))
        if spec is not None:
            return spec
    elif "client" not in services:
        raise ConfigError(
            f"none of its services ({', '.join(services)}) is called `client`",
            file=str(file),
            field="services",
        )
    else:
        name = "client"
    client = _interpolated(_table(services[name]))
    return SandboxSpec(
        compose=ComposeSpec(str(file), name),
        workdir=_workdir(client),
        network=NetworkPolicy(NetworkMode.OPEN),
    )


def _single(file: Path, service: Mapping[str, Any]) -> SandboxSpec | None:
    """One service as a sandbox; None where it says more than that can hold."""
    if not _IDLE.union(_READ).issuperset(service) or not _only_logs(service.get("volumes")):
        return None
    build, image = _build(file.parent, service.get("build")), service.get("image")
    if service.get("build") is not None and build is None:
        return None
    if build is None and not isinstance(image, str):
        raise ConfigError("has neither `image` nor `build`", file=str(file), field="services")
    limits = _limits(service.get("deploy"))
    if limits is None:
        return None
    workdir = _workdir(service)
    if workdir is None and build is not None:
        dockerfile = Path(build.context) / build.dockerfile
        workdir = workdir_of_dockerfile(read_text(dockerfile))
    user = service.get("user")
    return SandboxSpec(
        image=image if build is None else None,
        build=build,
        user=None if user is None else str(user),
        workdir=workdir,
        env=_environment(service.get("environment")),
        limits=limits,
        network=NetworkPolicy(NetworkMode.OPEN),
    )


def _build(folder: Path, given: Any) -> BuildSpec | None:
    """A build that has a context and a Dockerfile in it, and nothing else."""
    table = {"context": given} if isinstance(given, str) else _table(given)
    if not table or not {"context", "dockerfile"}.issuperset(table):
        return None
    context = (folder / str(table.get("context", "."))).resolve()
    dockerfile = str(table.get("dockerfile", "Dockerfile"))
    if not context.is_relative_to(folder.resolve()) or dockerfile.startswith(("/", "..")):
        return None
    return BuildSpec(str(context), dockerfile)


def _only_logs(volumes: Any) -> bool:
    """Whether the only mounts are those for Terminal-Bench's logs, which we collect ourselves."""
    if volumes is None:
        return True
    if not isinstance(volumes, list):
        return False
    named = tuple(f"{_VARIABLES[name]}:" for name in _VARIABLES if name.endswith("LOGS_PATH"))
    return all(
        isinstance(volume, str) and volume.startswith(named)
        for volume in cast("list[object]", volumes)
    )


def _environment(given: Any) -> dict[str, str]:
    if isinstance(given, list):
        pairs = [str(entry).partition("=") for entry in cast("list[object]", given)]
        return {name: value for name, equals, value in pairs if equals}
    return {key: _text(value) for key, value in _table(given).items() if value is not None}


def _limits(deploy: Any) -> Limits | None:
    """`deploy.resources.limits`; None where `deploy` asks for more, as for a GPU."""
    resources = _table(_table(deploy).get("resources"))
    limits = _table(resources.get("limits"))
    if not {"resources"}.issuperset(_table(deploy)) or not {"limits"}.issuperset(resources):
        return None
    if not {"cpus", "memory"}.issuperset(limits):
        return None
    size = _SIZE.fullmatch(str(limits["memory"])) if "memory" in limits else None
    memory = size and max(1, round(float(size["number"]) * _MIB_PER[size["unit"].lower()]))
    cpus = re.fullmatch(r"\d+(\.\d+)?", str(limits.get("cpus", "")))
    return Limits(memory_mb=memory or None, cpus=float(cpus[0]) if cpus else None)


def _workdir(service: Mapping[str, Any]) -> str | None:
    path = service.get("working_dir")
    if isinstance(path, str) and path.startswith("/"):
        return posixpath.normpath(path)
    return None


def _interpolated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(entry) for key, entry in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_interpolated(entry) for entry in cast("list[Any]", value)]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    if match["dollar"]:
        return "$"
    known = _VARIABLES.get(match["plain"] or match["name"])
    return (match["default"] or "") if known is None else known


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
