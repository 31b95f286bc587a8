"""Places of single tasks in PostgreSQL, Redis and SQLite: one tenant cannot touch another's."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.postgres_programs import PORT_KNOWN
from ramify.planes.environment.state.postgres_sql import identifier, literal
from ramify.planes.environment.state.redis import FORGET
from ramify.planes.environment.state.resp import ReplyError, RespClient
from ramify.planes.environment.state.sqlite_inside import call, find_engine

_TENANT = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PREFIX = "ramify_task_"
_TIMEOUT_SEC = 120.0

# What the template holds belongs to whoever made it; in its copy it is the tenant's.
_HAND_OVER = """
DO $$ DECLARE line text; BEGIN
  FOR line IN
    SELECT format('ALTER SCHEMA %I OWNER TO {owner}', nspname) FROM pg_namespace
      WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    UNION ALL SELECT format('ALTER TABLE %s OWNER TO {owner}', c.oid::regclass)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        AND (relkind IN ('r', 'p', 'v', 'm', 'f') OR relkind = 'S' AND NOT EXISTS (
          SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i')))
    UNION ALL SELECT format('ALTER ROUTINE %s OWNER TO {owner}', p.oid::regprocedure)
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
      WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND p.prolang <> 13
        AND NOT p.prosecdef
  LOOP EXECUTE line; END LOOP;
END $$;
"""

# A copy of a tenant's database holds what is the tenant's; in the copy it is the new one's. Shared
# objects change hands with it, so the database itself is given back; settings do not come along.
_INHERIT = """
BEGIN;
REASSIGN OWNED BY {origin} TO {owner};
ALTER DATABASE {origin} OWNER TO {origin};
DROP OWNED BY {origin};
INSERT INTO pg_db_role_setting
  SELECT n.oid, 0, s.setconfig FROM pg_db_role_setting s, pg_database o, pg_database n
  WHERE s.setrole = 0 AND s.setdatabase = o.oid AND '"' || o.datname || '"' = '{origin}'
    AND n.datname = current_database();
COMMIT;
"""


class PostgresTasks:
    """Implements `TaskDatabase`: a database and a role for each tenant of a PostgreSQL server.

    The database is a copy of `template`, to which nobody may be connected meanwhile, and belongs
    to the tenant's role, which may log in with a password of its own and nothing else. Nobody but
    a superuser may connect to a database that is not his (databases that are there already are
    closed to others at the first `create`). Names of databases and roles can be listed by
    every tenant, as in any PostgreSQL server. Functions of the template that run with their
    owner's rights (SECURITY DEFINER) stay the owner's: do not put such into a template. A server
    that lets a superuser in over TCP without a password is refused.
    """

    def __init__(
        self, sandbox: Sandbox, template: str = "template1", port: int = 5432, limit: int = 20
    ) -> None:
        self._hands = Hands(sandbox, "postgres of the fleet", "postgres", _TIMEOUT_SEC)
        self._template, self._port, self._limit = template, port, limit
        self._turn = asyncio.Lock()

    async def create(self, tenant: str, source: str | None = None) -> dict[str, str]:
        """See `TaskDatabase`. Returns the variables of libpq and `DATABASE_URL`."""
        name, password = place_of(tenant), secrets.token_urlsafe(24)
        ident, origin = identifier(name), place_of(source) if source else self._template
        await self._refuse_open()
        await self.drop(tenant)
        async with self._turn:  # one copy of the template at a time
            await self._sql(
                "SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', datname) FROM pg_database "
                "WHERE datallowconn \\gexec\n"
                f"CREATE ROLE {ident} LOGIN PASSWORD {literal(password)} NOSUPERUSER NOCREATEDB "
                f"NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT {self._limit};\n"
                f"CREATE DATABASE {ident} TEMPLATE {identifier(origin)} OWNER {ident};\n"
                f"REVOKE ALL ON DATABASE {ident} FROM PUBLIC;\n"
            )
            text = _HAND_OVER if source is None else _INHERIT
            text = text.replace("{owner}", ident).replace("{origin}", identifier(origin))
            await self._sql(text, name)
        host = f"127.0.0.1:{self._port}"
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._port),
            "PGUSER": name,
            "PGPASSWORD": password,
            "PGDATABASE": name,
            "DATABASE_URL": f"postgresql://{name}:{password}@{host}/{name}",
        }

    async def drop(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        name = identifier(place_of(tenant))
        await self._sql(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE);\nDROP ROLE IF EXISTS {name};"
        )

    async def suspend(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        name = place_of(tenant)
        await self._sql(
            f"ALTER ROLE {identifier(name)} NOLOGIN;\n"
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE usename = {literal(name)} OR datname = {literal(name)};"
        )

    async def admit(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        await self._sql(f"ALTER ROLE {identifier(place_of(tenant))} LOGIN;")

    async def tenants(self) -> list[str]:
        """See `TaskDatabase`."""
        told = await self._sql(
            "SELECT rolname FROM pg_roles UNION SELECT datname FROM pg_database ORDER BY 1;"
        )
        return [name.removeprefix(_PREFIX) for name in told.split() if name.startswith(_PREFIX)]

    async def _refuse_open(self) -> None:
        line = f"psql -X -w -h 127.0.0.1 -p {self._port} -U postgres -d postgres -c 'SELECT 1'"
        if (await self._hands.ask(PORT_KNOWN + line, env={"PGPASSWORD": ""})).ok:
            raise EnvironmentFailed(
                "postgres of the fleet: it lets `postgres` in over TCP without a password, and so "
                "every tenant: ask for one (scram-sha-256) in pg_hba.conf"
            )

    async def _sql(self, text: str, database: str = "postgres") -> str:
        told = await self._hands.run(
            f"{PORT_KNOWN}psql -X -q -At -v ON_ERROR_STOP=1 -p {self._port} -d {database}",
            "change a tenant's database",
            stdin=f"SET client_min_messages = error;\n{text}".encode(),
        )
        return told.decode(errors="replace")


# Everything that sees or touches more than the keys it names is left out: SCAN and RANDOMKEY tell
# names of others, FUNCTION and SCRIPT are shared by all, and `dangerous` has FLUSHALL, KEYS, SORT.
_RIGHTS = (
    "reset", "on", "-@all", "+@read", "+@write", "+@connection", "+@transaction", "+@pubsub",
    "+eval", "+evalsha", "+eval_ro", "+evalsha_ro", "-@dangerous", "-@admin", "-scan",
    "-randomkey", "-dbsize", "-pubsub", "-swapdb", "-function", "-script", "-fcall", "-fcall_ro",
)  # fmt: skip
_COPY = """
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  redis.call('COPY', key, ARGV[2] .. string.sub(key, #ARGV[1] + 1), 'REPLACE')
end
"""


class RedisTasks:
    """Implements `TaskDatabase`: an ACL user of a Redis server (7 or newer) for each tenant.

    A tenant's keys and channels begin with `<tenant>:`, and it can name no others; the keys of the
    template, `<template>:...`, are copied to it. Commands that tell names of keys (SCAN, KEYS,
    RANDOMKEY), change the server or are shared (FUNCTION) are refused to it. Only database 0.

    `password` is that of the server's `default` user (`requirepass`). A server that serves anybody
    without one is refused: its tenants could be anybody.
    """

    def __init__(
        self, sandbox: Sandbox, password: str, template: str = "template", port: int = 6379
    ) -> None:
        self._sandbox, self._template, self._port = sandbox, template, port
        self._password = password

    async def create(self, tenant: str, source: str | None = None) -> dict[str, str]:
        """See `TaskDatabase`. Returns `REDIS_URL` and `REDIS_PREFIX`."""
        name, password = place_of(tenant), secrets.token_urlsafe(24)
        prefix, origin = f"{name}:", place_of(source) if source else self._template
        await self._refuse_open()
        await self.drop(tenant)
        async with self._connected() as redis:
            await redis.call("EVAL", _COPY, 0, f"{origin}:", prefix)
            await redis.call(
                "ACL", "SETUSER", name, *_RIGHTS, f">{password}", f"~{prefix}*", f"&{prefix}*"
            )
        url = f"redis://{name}:{password}@127.0.0.1:{self._port}/0"
        return {"REDIS_URL": url, "REDIS_PREFIX": prefix}

    async def drop(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        name = place_of(tenant)
        async with self._connected() as redis:
            await redis.call("ACL", "DELUSER", name)  # ends its connections, too
            await redis.call("EVAL", FORGET, 0, f"{name}:")

    async def suspend(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        async with self._connected() as redis:
            await redis.call("ACL", "SETUSER", place_of(tenant), "off")
            await redis.call("CLIENT", "KILL", "USER", place_of(tenant))

    async def admit(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        async with self._connected() as redis:
            await redis.call("ACL", "SETUSER", place_of(tenant), "on")

    async def tenants(self) -> list[str]:
        """See `TaskDatabase`."""
        async with self._connected() as redis:
            told = await redis.call("ACL", "USERS")
        users = told if isinstance(told, list) else []
        names = [user.decode(errors="replace") for user in users if isinstance(user, bytes)]
        return [name.removeprefix(_PREFIX) for name in sorted(names) if name.startswith(_PREFIX)]

    async def _refuse_open(self) -> None:
        async with self._connected(as_anybody=True) as redis:
            (reply,) = await redis.pipeline([("PING",)])
        if not isinstance(reply, ReplyError):
            raise EnvironmentFailed(
                "redis of the fleet: it serves anybody without a password, and so every tenant: "
                "start it with `requirepass`"
            )

    @asynccontextmanager
    async def _connected(self, as_anybody: bool = False) -> AsyncGenerator[RespClient]:
        try:
            endpoint = await self._sandbox.expose_port(self._port)
            async with asyncio.timeout(_TIMEOUT_SEC), RespClient(endpoint) as redis:
                if not as_anybody:
                    await redis.call("AUTH", self._password)
                yield redis
        except OSError as error:  # TimeoutError is one
            why = str(error) or type(error).__name__
            raise EnvironmentFailed(f"redis of the fleet: no answer: {why}") from error
        except ReplyError as error:
            raise EnvironmentFailed(f"redis of the fleet refuses: {error}") from error


class SqliteTasks:
    """Implements `TaskDatabase`: a SQLite file for each tenant, beside a service of the fleet.

    A file has no users: it is the service that opens the file of the tenant that asks, and the
    tenant's own sandbox has no way to the file at all. `folder` is made; the files in it belong
    to `owner`, as whom the service runs.
    """

    def __init__(self, sandbox: Sandbox, template: str, folder: str, owner: str = "root") -> None:
        self._hands = Hands(sandbox, f"sqlite {folder}", "root", _TIMEOUT_SEC)
        self._template, self._folder, self._owner = template, folder.rstrip("/"), owner

    async def create(self, tenant: str, source: str | None = None) -> dict[str, str]:
        """See `TaskDatabase`. Returns `SQLITE_PATH`, as the fleet's services see it."""
        path, hands = self._path(tenant), self._hands
        if source is not None:
            raise self._unsupported()
        engine = await find_engine(hands)
        if engine is None:
            raise UnsupportedError(f"{hands.name}: neither python3 nor sqlite3 is in the image")
        await self.drop(tenant)
        await hands.run(
            f"umask 077; mkdir -p {inside(self._folder)} && : > {inside(path)}", "make the file"
        )
        await call(hands, engine, "out", [self._template, path])
        owner = f"chown {self._owner}: {inside(self._folder)} {inside(path)}"
        await hands.run(owner, "give the file its owner")
        return {"SQLITE_PATH": path}

    async def drop(self, tenant: str) -> None:
        """See `TaskDatabase`."""
        path = inside(self._path(tenant))
        await self._hands.run(f"rm -f {path} {path}-wal {path}-shm {path}-journal", "remove it")

    async def tenants(self) -> list[str]:
        """See `TaskDatabase`."""
        found = await self._hands.expand([f"{self._folder}/{_PREFIX}*.db"])
        names = [path.rpartition("/")[2].removesuffix(".db") for path in found]
        return [name.removeprefix(_PREFIX) for name in names]

    async def suspend(self, tenant: str) -> None:
        """Refused: a file knows no users, so whoever has its name would still be served."""
        raise self._unsupported()

    async def admit(self, tenant: str) -> None:
        """Nothing: nobody can have been suspended."""

    def _unsupported(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self._hands.name}: a SQLite file in a shared fleet cannot be branched: it has no "
            "users, so the service could not keep the copies of a branch apart; keep the state "
            'in postgres or redis, or use topology = "in-sandbox"'
        )

    def _path(self, tenant: str) -> str:
        return f"{self._folder}/{place_of(tenant)}.db"


def place_of(tenant: str) -> str:
    """What a tenant's place is called in a service."""
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"{tenant!r} cannot be the name of a tenant: small letters, digits and underscores, a "
            "letter first, at most 40"
        )
    return f"{_PREFIX}{tenant}"
