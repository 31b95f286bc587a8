"""From what a manifest declares to the fleet that its tasks share."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.fleet import TaskDatabase
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.fleet.accounts import FileAccountBroker
from ramify.planes.environment.fleet.joining import Fleet
from ramify.planes.environment.fleet.tenants import PostgresTasks, RedisTasks, SqliteTasks
from ramify.planes.environment.records import StateSpec


def make_fleet(
    states: Sequence[StateSpec],
    ports: Sequence[int],
    sandbox: Sandbox,
    book: Path,
    clock: Clock,
    most: int = 64,
) -> Fleet:
    """The fleet whose services run, started and healthy, in `sandbox`.

    Each `[[environment.state]]` becomes a place of each task's own: `postgres`: a database made
    from the one that `url` names (default `template1`); `redis`: keys made from those that begin
    with `template:`, on a server whose password `url` has; `sqlite`: a copy of the one file in
    `paths`, in the directory `tasks` beside it, owned by `user`.

    Args:
        states: what the manifest declares.
        ports: of the services, reached at the same port of 127.0.0.1 in a task's sandbox.
        sandbox: of the services.
        book: the file in which leases stand; for this fleet alone.
        clock: time.
        most: how many tasks may be members at once.

    Raises: UnsupportedError (state that cannot be parted by task), ConfigError.
    """
    databases = [_database(spec, sandbox) for spec in states]
    accounts = {f"task{number}": dict[str, str]() for number in range(1, most + 1)}
    return Fleet(sandbox, databases, FileAccountBroker(book, accounts, clock), tuple(ports))


def _database(spec: StateSpec, sandbox: Sandbox) -> TaskDatabase:
    parts = urlsplit(spec.url or "")
    match spec.kind:
        case "postgres":
            template = unquote(parts.path.strip("/")) or "template1"
            return PostgresTasks(sandbox, template, parts.port or 5432)
        case "redis":
            if not parts.password:
                raise ConfigError(
                    "in a shared fleet the server has to ask for a password, and `url` to have it: "
                    "redis://:PASSWORD@127.0.0.1:6379",
                    field="environment.state.url",
                )
            return RedisTasks(sandbox, unquote(parts.password), port=parts.port or 6379)
        case "sqlite":
            if len(spec.paths) != 1 or any(sign in spec.paths[0] for sign in "*?["):
                raise ConfigError(
                    "in a shared fleet `paths` is the one file that each task gets a copy of",
                    field="environment.state.paths",
                )
            (path,) = spec.paths
            folder = posixpath.join(posixpath.dirname(path), "tasks")
            return SqliteTasks(sandbox, path, folder, spec.user or "root")
        case _:
            raise UnsupportedError(
                f"state of kind {spec.kind!r} is one for all who share a fleet, so tasks cannot be "
                'kept apart in it: use topology = "in-sandbox", or keep it in postgres, redis or '
                "sqlite"
            )
