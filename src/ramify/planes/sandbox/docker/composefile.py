"""Compose files as values: the services of a project, its networks and its volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import ComposeSpec
from ramify.planes.sandbox.docker.composemounts import PLATFORM
from ramify.planes.sandbox.docker.composenode import Node, read_yaml
from ramify.planes.sandbox.docker.composeservice import (
    DEFAULT_NETWORK,
    ComposeBuild,
    Service,
    ServiceReader,
)
from ramify.planes.sandbox.docker.interpolation import read_env_file

_OWN_IMAGE = "ramify/task"
"""Stands for the name of the image that is built for the task; other services may use it."""

_TOP = frozenset({"version", "name", "services", "networks", "volumes"})
_REFUSED = {
    "configs": "is not supported; put the file into the image, or mount it from this directory",
    "include": "is not supported; write everything into this file",
    "secrets": "is not supported; a secret is a variable of the task's environment",
}


@dataclass(frozen=True, slots=True)
class Project:
    """A Compose file: `main` is the name of the service that the agent works in."""

    file: str
    main: str
    services: dict[str, Service]
    networks: tuple[str, ...]
    volumes: tuple[str, ...]


def read_project(spec: ComposeSpec) -> Project:
    """Read a Compose file; blocking.

    Raises:
        ConfigError: it is wrong; names file and place.
        UnsupportedError: it asks for what is not served; names file and place.
    """
    file = Path(spec.file)
    env = _variables(spec, file.parent)
    root = read_yaml(file, env)
    root.known(_TOP, _REFUSED)
    top = root.entries()
    networks = _declared(top.get("networks"), frozenset({"driver", "internal", "name", "labels",
                                                         "attachable"}), "bridge")  # fmt: skip
    volumes = _declared(top.get("volumes"), frozenset({"driver", "name", "labels"}), "local")
    nodes = top["services"].entries() if "services" in top else {}
    reader = ServiceReader(file.parent.resolve(), env, frozenset(networks), frozenset(volumes))
    services = {name: reader.service(name, node) for name, node in nodes.items()}
    services[spec.main] = _main(spec, file.parent, env, services.get(spec.main))
    _check_order(file, services)
    used = dict.fromkeys(name for service in services.values() for name in service.networks)
    return Project(spec.file, spec.main, services, tuple(used), tuple(volumes))


def _variables(spec: ComposeSpec, folder: Path) -> dict[str, str]:
    """What the file may name: what its platform sets, over `.env`, over what is usually there."""
    usual = {
        "CONTEXT_DIR": str(folder),
        "TEST_DIR": "/tests",
        "ENV_AGENT_LOGS_PATH": "/logs/agent",
        "ENV_VERIFIER_LOGS_PATH": "/logs/verifier",
        "ENV_ARTIFACTS_PATH": "/logs/artifacts",
        "T_BENCH_TEST_DIR": "/tests",
        "T_BENCH_CONTAINER_LOGS_PATH": "/logs",
        "T_BENCH_CONTAINER_AGENT_LOGS_PATH": "/agent-logs",
        "T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME": spec.main,
        "T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME": _OWN_IMAGE,
        "T_BENCH_TASK_DOCKER_FILE_PATH": "Dockerfile",
        "MAIN_IMAGE_NAME": _OWN_IMAGE,
        "T_BENCH_TASK_DOCKER_NAME_PREFIX": "task",
        # Logs are fetched from the sandbox; no directory of the host is shared for them.
        "HOST_AGENT_LOGS_PATH": PLATFORM,
        "HOST_VERIFIER_LOGS_PATH": PLATFORM,
        "HOST_ARTIFACTS_PATH": PLATFORM,
        "T_BENCH_TASK_LOGS_PATH": PLATFORM,
        "T_BENCH_TASK_AGENT_LOGS_PATH": PLATFORM,
    }
    own = folder / ".env"
    try:
        beside = read_env_file(own.read_text("utf-8", "replace"), spec.env)
    except FileNotFoundError:
        beside = {}
    except (OSError, ValueError) as error:
        raise ConfigError(str(error), file=str(own)) from error
    return {**beside, **usual, **spec.env}


def _main(
    spec: ComposeSpec, folder: Path, env: Mapping[str, str], service: Service | None
) -> Service:
    """The service that the agent works in; Harbor takes its image from the task itself."""
    if service is not None and (service.build or service.image not in (None, _OWN_IMAGE)):
        return service
    image = env.get("PREBUILT_IMAGE_NAME") or env["MAIN_IMAGE_NAME"]
    build = None if image != _OWN_IMAGE else ComposeBuild(folder.resolve())
    if build is not None and not (folder / "Dockerfile").is_file():
        what = "has neither image nor build" if service else "is no service of this file"
        raise ConfigError(
            f"{what}, and there is no Dockerfile beside it",
            file=spec.file,
            field=f"services.{spec.main}",
        )
    made = service or Service(spec.main, networks={DEFAULT_NETWORK: ()})
    return replace(made, image=image, build=build)


def _declared(node: Node | None, allowed: frozenset[str], driver: str) -> list[str]:
    if node is None:
        return []
    for entry in node.entries().values():
        entry.known(allowed, {"external": "nothing from outside the task is used"})
        given = entry.entries()
        if "driver" in given and given["driver"].text() != driver:
            raise given["driver"].refusal(f"only the driver {driver!r} is supported")
    return list(node.entries())


def _check_order(file: Path, services: Mapping[str, Service]) -> None:
    """Every dependency exists, and none depends on itself."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            loop = " -> ".join((*above[above.index(name) :], name))
            raise ConfigError(
                f"depends on itself: {loop}", str(file), f"services.{name}.depends_on"
            )
        if name in done:
            return
        for other in services[name].depends_on:
            if other not in services:
                raise ConfigError(
                    f"there is no service {other!r}", str(file), f"services.{name}.depends_on"
                )
            visit(other, (*above, name))
        done.add(name)

    for name in services:
        visit(name, ())
