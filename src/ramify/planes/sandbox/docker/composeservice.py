"""One service of a Compose file: what of it is served; everything else is refused by name.

What would reach beyond the sandbox (host paths, devices, privileges, the host's namespaces) is
refused before anything is built or started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ramify.contracts.sandbox import Healthcheck
from ramify.planes.sandbox.docker.composemounts import Mount, tmpfs_of, volume_of
from ramify.planes.sandbox.docker.composenode import Node
from ramify.planes.sandbox.docker.interpolation import read_env_file

Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]

DEFAULT_NETWORK = "default"

_SERVICE = frozenset(
    {
        "annotations", "attach", "build", "cap_add", "cap_drop", "command",
        "container_name", "cpus", "depends_on", "deploy", "entrypoint", "env_file",
        "environment", "expose", "healthcheck", "hostname", "image", "init", "labels",
        "logging", "mem_limit", "memswap_limit", "mem_reservation", "network_mode",
        "networks", "pids_limit", "platform", "ports", "pull_policy", "read_only",
        "restart", "security_opt", "shm_size", "stdin_open", "stop_grace_period",
        "stop_signal", "tmpfs", "tty", "user", "volumes", "working_dir",
    }
)  # fmt: skip
_REFUSED = {
    "cgroup_parent": "a service stays in its own cgroup",
    "configs": "is not supported; put the file into the image, or mount it from this directory",
    "devices": "devices of the host are not given to a sandbox",
    "device_cgroup_rules": "devices of the host are not given to a sandbox",
    "extends": "is not supported; write the service out in this file",
    "gpus": "GPUs are not given to a sandbox",
    "ipc": "a service stays in its own IPC namespace",
    "pid": "a service stays in its own process namespace",
    "privileged": "a sandbox gets no privileges of the host",
    "profiles": "is not supported; every service of the file is started",
    "runtime": "the runtime is not a task's to choose",
    "secrets": "is not supported; a secret is a variable of the task's environment",
    "sysctls": "kernel settings are not a task's to change",
    "userns_mode": "the user namespace is not a task's to choose",
    "uts": "a service stays in its own UTS namespace",
    "volumes_from": "is not supported; name the volume in both services",
}
_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "IPC_LOCK", "KILL",
        "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
        "SYS_NICE",
    }
)  # fmt: skip
_BUILD = frozenset({"context", "dockerfile", "args", "target", "tags", "labels"})
_HEALTH = frozenset(
    {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
)


@dataclass(frozen=True, slots=True)
class ComposeBuild:
    """An image to build: its context on the host, the Dockerfile in it, and build arguments."""

    context: Path
    dockerfile: str = "Dockerfile"
    args: dict[str, str] = field(default_factory=dict[str, str])
    target: str = ""


@dataclass(frozen=True, slots=True)
class Resources:
    """A service's own limits: bytes, cores, processes; None is no limit, or the default."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    shm: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One service. None stands for what the image says.

    `networks` maps each network to the names that the service has there, besides its own.
    """

    name: str
    image: str | None = None
    build: ComposeBuild | None = None
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str | None = None
    user: str | None = None
    depends_on: dict[str, Condition] = field(default_factory=dict[str, Condition])
    healthcheck: Healthcheck | None = None
    networks: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    hostname: str | None = None
    mounts: tuple[Mount, ...] = ()
    tmpfs: dict[str, str] = field(default_factory=dict[str, str])
    resources: Resources = Resources()
    restart: str = "no"
    init: bool = False
    tty: bool = False
    stdin_open: bool = False
    read_only: bool = False
    stop_signal: str | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    platform: str | None = None


class ServiceReader:
    """Reads the services of one file."""

    def __init__(
        self, folder: Path, env: Mapping[str, str], networks: frozenset[str],
        volumes: frozenset[str],
    ) -> None:  # fmt: skip
        self._folder, self._env, self._networks, self._volumes = folder, env, networks, volumes

    def service(self, name: str, node: Node) -> Service:
        """One service. Raises: ConfigError, UnsupportedError."""
        node.known(_SERVICE, _REFUSED)
        at = node.entries()

        def get(key: str) -> Node:
            return at.get(key) or Node(None, node.file, f"{node.path}.{key}")

        self._refuse(at)
        restart = "no" if get("restart").absent else get("restart").text()
        if restart.partition(":")[0] not in ("no", "always", "on-failure", "unless-stopped"):
            raise get("restart").error(f"{restart!r} is no restart policy")
        return Service(
            name=name,
            image=_text(get("image")),
            build=self._build(at["build"]) if "build" in at else None,
            command=None if get("command").value is None else get("command").words(),
            entrypoint=None if get("entrypoint").value is None else get("entrypoint").words(),
            env=self._environment(get("env_file"), get("environment")),
            workdir=_text(get("working_dir")),
            user=_text(get("user")),
            depends_on=_depends_on(get("depends_on")),
            healthcheck=_healthcheck(at["healthcheck"]) if "healthcheck" in at else None,
            networks=self._joined(get("networks"), get("network_mode"), _text(
                get("container_name")
            )),
            hostname=_text(get("hostname")),
            mounts=tuple(
                mount
                for item in get("volumes").items()
                if (mount := volume_of(item, self._folder, self._volumes)) is not None
            ),
            tmpfs=tmpfs_of(get("tmpfs")),
            resources=_resources(at, get("deploy")),
            restart=restart,
            **{key: get(key).value is not None and get(key).flag()
               for key in ("init", "tty", "stdin_open", "read_only")},
            stop_signal=_text(get("stop_signal")),
            cap_add=_capabilities(get("cap_add")),
            cap_drop=get("cap_drop").texts(),
            platform=_text(get("platform")),
        )  # fmt: skip

    def _refuse(self, at: Mapping[str, Node]) -> None:
        options = at["security_opt"].items() if "security_opt" in at else ()
        for option in options:
            if not option.text().startswith("no-new-privileges"):
                raise option.refusal("only no-new-privileges is supported")

    def _build(self, node: Node) -> ComposeBuild:
        if isinstance(node.value, str):
            return ComposeBuild(self._context(node))
        node.known(_BUILD)
        at = node.entries()
        args = at["args"].pairs() if "args" in at else {}
        return ComposeBuild(
            context=self._context(at["context"]) if "context" in at else self._folder,
            dockerfile=(_text(at["dockerfile"]) if "dockerfile" in at else None) or "Dockerfile",
            args={
                name: value if value is not None else self._env[name]
                for name, value in args.items()
                if value is not None or name in self._env
            },
            target=(_text(at["target"]) if "target" in at else None) or "",
        )

    def _context(self, node: Node) -> Path:
        if "://" in node.text() or node.text().startswith("git@"):
            raise node.refusal("is no directory; nothing is fetched to build from")
        place = self._below(node)
        if not place.is_dir():
            raise node.error(f"there is no directory {place}")
        return place

    def _below(self, node: Node) -> Path:
        """A path of the task. Raises: UnsupportedError."""
        place = (self._folder / node.text()).resolve()
        if not place.is_relative_to(self._folder):
            raise node.refusal(f"{node.text()} is outside {self._folder}")
        return place

    def _environment(self, files: Node, node: Node) -> dict[str, str]:
        found: dict[str, str] = {}
        listed = [files] if isinstance(files.value, str) else list(files.items())
        for item in listed:
            at = item.entries() if item.is_map else {"path": item}
            if "path" not in at:
                raise item.error("needs a `path`")
            place = self._below(at["path"])
            if "required" in at and not at["required"].flag() and not place.is_file():
                continue
            try:
                found |= read_env_file(place.read_text("utf-8", "replace"), self._env)
            except (OSError, ValueError) as error:
                raise at["path"].error(f"cannot be read: {error}") from error
        for name, value in node.pairs().items():
            if value is not None:
                found[name] = value
            elif name in self._env:
                found[name] = self._env[name]
        return found

    def _joined(self, node: Node, mode: Node, alias: str | None) -> dict[str, tuple[str, ...]]:
        more = () if alias is None else (alias,)
        if not mode.absent and mode.text() not in ("bridge", "none"):
            raise mode.refusal(f"{mode.text()!r} would leave the sandbox; use `networks`")
        if not mode.absent and mode.text() == "none":
            return {}
        if node.value is None:
            return {DEFAULT_NETWORK: more}
        listed = (
            {item.text(): Node(None, item.file, item.path) for item in node.items()}
            if node.is_list
            else node.entries()
        )
        found: dict[str, tuple[str, ...]] = {}
        for name, entry in listed.items():
            if name not in self._networks and name != DEFAULT_NETWORK:
                raise entry.error(f"there is no network {name!r}; declare it under `networks`")
            entry.known(frozenset({"aliases", "priority"}))
            aliases = entry.entries().get("aliases")
            found[name] = (*more, *(aliases.texts() if aliases is not None else ()))
        return found


def _text(node: Node) -> str | None:
    return None if node.absent else node.text()


def _capabilities(node: Node) -> tuple[str, ...]:
    names = tuple(name.upper().removeprefix("CAP_") for name in node.texts())
    for name in names:
        if name not in _CAPABILITIES:
            raise node.refusal(f"the capability {name} would reach beyond the sandbox")
    return names


def _depends_on(node: Node) -> dict[str, Condition]:
    if not node.is_map:
        return dict.fromkeys(node.texts() if node.value is not None else (), "service_started")
    found: dict[str, Condition] = {}
    for name, entry in node.entries().items():
        entry.known(frozenset({"condition"}))
        given = entry.entries().get("condition")
        word = "service_started" if given is None else given.text()
        if word not in ("service_started", "service_healthy", "service_completed_successfully"):
            raise entry.error(f"{word!r} is no condition")
        found[name] = word
    return found


def _healthcheck(node: Node) -> Healthcheck:
    """What the file says of health; an empty `test` is the image's."""
    node.known(_HEALTH)
    at = node.entries()

    def seconds(key: str) -> float:
        return at[key].seconds() if key in at and not at[key].absent else 0.0

    test: tuple[str, ...] = ()
    if "test" in at:
        test = ("CMD-SHELL", at["test"].text()) if isinstance(at["test"].value, str) else tuple(
            at["test"].texts()
        )  # fmt: skip
        if not test or test[0] not in ("NONE", "CMD", "CMD-SHELL"):
            raise at["test"].error("must be a line, or a list that begins with CMD or CMD-SHELL")
        if test[0] != "NONE" and len(test) < 2:
            raise at["test"].error("names no command")
    if "disable" in at and at["disable"].flag():
        test = ("NONE",)
    return Healthcheck(
        test=test,
        interval_sec=seconds("interval"),
        timeout_sec=seconds("timeout"),
        start_period_sec=seconds("start_period"),
        retries=int(at["retries"].number()) if "retries" in at else 0,
    )


def _resources(at: Mapping[str, Node], deploy: Node) -> Resources:
    deploy.known(frozenset({"resources", "replicas"}))
    parts = deploy.entries()
    if "replicas" in parts and parts["replicas"].number() != 1:
        raise parts["replicas"].refusal("a service runs once")
    limits: dict[str, Node] = {}
    if "resources" in parts:
        parts["resources"].known(frozenset({"limits", "reservations"}))
        kinds = parts["resources"].entries()
        if "reservations" in kinds:
            kinds["reservations"].known(frozenset({"cpus", "memory"}))
        if "limits" in kinds:
            kinds["limits"].known(frozenset({"cpus", "memory", "pids"}))
            limits = kinds["limits"].entries()

    def first(*nodes: Node | None) -> Node | None:
        return next((node for node in nodes if node is not None and not node.absent), None)

    memory = first(at.get("mem_limit"), limits.get("memory"))
    cpus = first(at.get("cpus"), limits.get("cpus"))
    pids = first(at.get("pids_limit"), limits.get("pids"))
    shm = first(at.get("shm_size"))
    return Resources(
        memory=None if memory is None else memory.size(),
        cpus=None if cpus is None else cpus.number(),
        pids=None if pids is None else int(pids.number()),
        shm=None if shm is None else shm.size(),
    )
