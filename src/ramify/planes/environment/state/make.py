"""From what a manifest declares to the driver that takes care of it."""

from __future__ import annotations

from urllib.parse import urlsplit

from ramify.contracts.drivers import DriverWorld, StateDriver
from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.state.files import FilesDriver
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.hooks import CommandDriver, Declared, HttpDriver
from ramify.planes.environment.state.postgres import PostgresDriver
from ramify.planes.environment.state.process import ProcessDriver
from ramify.planes.environment.state.redis import RedisDriver
from ramify.planes.environment.state.sqlite import SqliteDriver


def make_driver(spec: StateSpec, sandbox: Sandbox, world: DriverWorld) -> StateDriver:
    """The driver of one `[[environment.state]]` in one sandbox. Touches nothing yet.

    Raises: ConfigError (a key that this kind needs is missing, or its value cannot be used).
    """
    own_socket = spec.kind == "postgres" and not (spec.url and urlsplit(spec.url).hostname)
    user = spec.user or ("postgres" if own_socket else "root")
    hands = Hands(sandbox, state_name(spec), user, spec.timeout_sec)
    inner = _make(spec, hands, world)
    if spec.kind == "http" or (spec.digest is None and spec.mutate is None):
        return inner
    return Declared(inner, hands, spec.digest, spec.mutate)


def state_name(spec: StateSpec) -> str:
    """What a part of the state is called in reports, e.g. `sqlite /data/*.db`. No passwords."""
    if spec.name is not None:
        return spec.name
    places: list[str] = [*spec.paths]
    if spec.service is not None:
        places.append(spec.service)
    if spec.url is not None:
        url = urlsplit(spec.url)
        places.append(f"{url.hostname or ''}:{url.port or ''}{url.path}")
    return " ".join([spec.kind, *places])


def _make(spec: StateSpec, hands: Hands, world: DriverWorld) -> StateDriver:
    match spec.kind:
        case "sqlite":
            return SqliteDriver(hands, _paths(spec, hands))
        case "files":
            return FilesDriver(hands, _paths(spec, hands), spec.exclude)
        case "postgres":
            return PostgresDriver(hands, spec.url)
        case "redis":
            return RedisDriver(hands, spec.url, world)
        case "command":
            return CommandDriver(hands, spec)
        case "http":
            return HttpDriver(hands, spec, world)
        case "process":
            return ProcessDriver(hands)


def _paths(spec: StateSpec, hands: Hands) -> list[str]:
    if not spec.paths or not all(path.startswith("/") for path in spec.paths):
        raise ConfigError(
            f"{hands.name}: a state of kind {spec.kind!r} needs `paths`, each absolute",
            field="environment.state.paths",
        )
    return spec.paths
