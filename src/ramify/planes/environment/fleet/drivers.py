"""What takes care of a tenant's own place in each service of a fleet."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ramify.contracts.drivers import DriverWorld, StateDriver
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.fleet.joining import Member
from ramify.planes.environment.fleet.tenants import place_of
from ramify.planes.environment.manifest import Manifest
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.make import make_driver, state_name
from ramify.planes.environment.state.postgres import PostgresDriver
from ramify.planes.environment.state.redis import RedisDriver

_CALLED = "tenant"
"""What each tenant's database is called in digests and descriptions."""


def check_shared(manifest: Manifest) -> None:
    """Whether a manifest can be one of a shared fleet.

    Raises: ConfigError, UnsupportedError.
    """
    file, environment = str(manifest.path), manifest.environment
    if environment.isolation == "persistent":
        raise UnsupportedError(
            f'{file}: isolation = "persistent" is not served in a shared fleet: each task gets a '
            'new place; use "per_task", or topology = "in-sandbox"'
        )
    if not any(service.port for service in environment.services):
        raise ConfigError(
            "a shared fleet needs services with a port that tasks reach",
            file=file,
            field="environment.services",
        )
    kinds: set[str] = set()
    for index, spec in enumerate(manifest.state):
        field = f"environment.state[{index}]"
        if spec.kind in kinds:
            raise ConfigError(
                f"a task has one place of kind {spec.kind!r} in a shared fleet",
                file=file,
                field=field,
            )
        if spec.digest is not None or spec.mutate is not None:
            raise ConfigError(
                "`digest` and `mutate` would be about the whole service, not a task's place in "
                "it; leave them out in a shared fleet",
                file=file,
                field=field,
            )
        kinds.add(spec.kind)


def tenant_drivers(
    states: Sequence[StateSpec], member: Member, sandbox: Sandbox, world: DriverWorld
) -> list[StateDriver]:
    """The drivers of a member's places, in the order of `states`; for no other tenant's.

    `sandbox` and `world` are the fleet's.
    """
    return [_driver(spec, member, sandbox, world) for spec in states]


def _driver(spec: StateSpec, member: Member, sandbox: Sandbox, world: DriverWorld) -> StateDriver:
    place, told = place_of(member.tenant), member.variables
    if spec.kind == "postgres":
        hands = Hands(sandbox, state_name(spec), "postgres", spec.timeout_sec)
        return PostgresDriver(hands, f"postgresql://:{told['PGPORT']}/{place}", _CALLED)
    if spec.kind == "redis":
        hands = Hands(sandbox, state_name(spec), "root", spec.timeout_sec)
        server = (spec.url or "").partition("?")[0].rstrip("/").removesuffix("/0")
        return RedisDriver(hands, f"{server}/0", world, told["REDIS_PREFIX"])
    own = msgspec.structs.replace(spec, name=state_name(spec), paths=[told["SQLITE_PATH"]])
    return make_driver(own, sandbox, world)
