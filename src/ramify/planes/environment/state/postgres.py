"""State in a PostgreSQL server: whole databases and roles, put back while the server lives."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import ExecResult
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.state import postgres_sql as sql
from ramify.planes.environment.state.hands import Hands, tail
from ramify.planes.environment.state.postgres_programs import PORT_KNOWN, PORT_UNKNOWN
from ramify.planes.environment.state.postgres_rows import entries, rows_digest, schema_text
from ramify.planes.environment.state.sealed import seal, unseal

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENTRIES = 100_000


class _Database(msgspec.Struct, frozen=True):
    """A database of a snapshot: its properties, its dump `N.dump`, and its schema's digest."""

    name: str
    owner: str
    acl: str | None
    encoding: str
    collate: str
    ctype: str
    connections: int
    settings: tuple[str, ...]
    schema: str = ""


_decoder = msgspec.json.Decoder(_Database)


class PostgresDriver:
    """Implements `StateDriver` for the databases of a PostgreSQL server (13 or newer) inside.

    Without a `url`, all databases that are no templates, and the roles; with one, the database
    that it names. `postgresql:///DATABASE` and no `url` mean the local socket, as the server's own
    user; otherwise TCP, as the role of the address, which has to be a superuser (others may not
    let triggers sleep, and would put back something else). `psql`, `pg_dump` and `pg_restore` of
    the image do the work. A snapshot is of one moment for each database.

    How `restore` goes depends on what has changed. Where the schema is what it was, rows,
    sequences and large objects are replaced in one transaction: connections stay, and see either
    the old or the new; a transaction that holds its locks longer than a third of `timeout_sec` is
    ended together with its connection. Where the schema has changed, a new database is built
    beside the live one, and takes its place by renaming; then connections to the old one end,
    and services have to connect again. In both cases the live database is unchanged
    where something fails. Statistics and the physical order of rows are not state, materialized
    views are refreshed afterwards, and the data of extensions is as their installation makes it.

    `called`: what digest and description say in place of the name of the database in `url` (and
    of its role, if that has the same), so that two places made alike are alike in them.
    """

    def __init__(self, hands: Hands, url: str | None, called: str = "") -> None:
        self._hands = hands
        self._called = called
        self._only, self._env = _connection(hands, url)
        self._programs = PORT_KNOWN if "PGPORT" in self._env else PORT_UNKNOWN

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`. Raises UnsupportedError unless the role is a superuser."""
        databases: list[_Database] = []
        await self._need_superuser()
        async with self._hands.place() as work:
            for number, database in enumerate(await self._databases()):
                target = inside(f"{work}/{number}.dump")
                await self._shell(
                    f"pg_dump --format=custom --compress=1 --file={target} {_db(database.name)}",
                    f"dump {database.name}",
                )
                text = await self._shell(f"pg_restore --schema-only --file=- {target}", "read it")
                databases.append(msgspec.structs.replace(database, schema=self._sha_of(text)))
            if self._only is None:
                await self._shell(
                    f"pg_dumpall --roles-only > {inside(f'{work}/roles.sql')}", "dump the roles"
                )
            await self._hands.take(work, place)
        await seal(place, "postgres", self.name, databases)

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        databases = await unseal(place, "postgres", self.name, list[_Database])
        await self._need_superuser()
        live = {database.name: database for database in await self._databases()}
        roles = self._only is None
        async with self._hands.place() as work:
            await self._hands.give(place, f"{work}/state")
            if roles:  # those that exist are an error, which is no news
                line = f"psql -X -q -d {_db('template1')} -f {inside(f'{work}/state/roles.sql')}"
                await self._shell(f"{line} || :", "make the roles")
            for number, database in enumerate(databases):
                dump = f"{work}/state/{number}.dump"
                if database.name in live and await self._same(database, live[database.name]):
                    await self._refill(database.name, dump, work)
                else:
                    await self._replace(database, dump, database.name in live)
        if self._only is None:
            for name in live.keys() - {database.name for database in databases}:
                await self._sql(
                    f"DROP DATABASE {sql.identifier(name)} WITH (FORCE);", _beside(name)
                )
        if roles:
            await self._check_roles((place / "roles.sql").read_bytes())

    async def digest(self) -> str:
        """See `StateDriver`. Over schema, rows, sequences, large objects, properties, roles."""
        told: list[object] = [(await self._roles()).decode("utf-8", "backslashreplace")]
        for database in await self._databases():
            about = msgspec.structs.replace(database, schema=await self._schema(database.name))
            async with Scratch() as folder:
                await self._rows(database.name, folder / "rows")
                digest = await asyncio.to_thread(rows_digest, folder / "rows")
            told.append([msgspec.to_builtins(about), digest])
        return _sha(self._alias(json.dumps(told)))

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. A part for each database: rows by primary key, else by content."""
        found: dict[str, dict[str, str]] = {}
        for database in await self._databases():
            part = found.setdefault(f"postgres {self._called or database.name}", {})
            async with Scratch() as folder:
                await self._rows(database.name, folder / "rows")
                rows = await asyncio.to_thread(entries, folder / "rows", _ENTRIES)
                if rows is None:
                    rows = {"digest": await asyncio.to_thread(rows_digest, folder / "rows")}
            part["schema"] = await self._schema(database.name)
            part["database"] = self._alias(json.dumps(msgspec.to_builtins(database)))
            part.update(rows)
        if roles := await self._roles():
            found["postgres roles"] = {"digest": _sha(roles.decode("utf-8", "backslashreplace"))}
        return found

    async def mutate(self) -> str:
        """Make a table and a row in the first database."""
        name = (await self._databases())[0].name
        await self._sql(
            "CREATE TABLE IF NOT EXISTS ramify_check (at text);\n"
            "INSERT INTO ramify_check VALUES (clock_timestamp()::text);",
            name,
        )
        return f"a row of a new table ramify_check in {name}"

    async def _refill(self, name: str, dump: str, work: str) -> None:
        """Replace the content of a database whose schema is right, in one transaction."""
        emptied, data = inside(f"{work}/emptied.sql"), inside(f"{work}/data.sql")
        await self._hands.run(f"cat > {emptied}", "write", stdin=sql.EMPTIED.encode())
        await self._shell(
            f"pg_restore --data-only --single-transaction --file={data} {inside(dump)}",
            "unpack the rows",
        )
        line = f"psql -X -q -At -v ON_ERROR_STOP=1 -d {_db(name)} -f {emptied} -f {data}"
        started = time.monotonic()
        while True:
            result = await self._ask(line)
            if result.ok:
                await self._sql(sql.REFRESHED, name)
                return
            said = tail(result)
            waited = time.monotonic() - started
            if "lock timeout" not in said and "deadlock detected" not in said:
                raise self._hands.failed(f"cannot put back the rows of {name}: {said}")
            if waited > self._hands.timeout_sec * 0.7:
                raise self._hands.failed(f"{name} stays locked by another connection: {said}")
            if waited > self._hands.timeout_sec / 3:
                await self._sql(sql.END_TRANSACTIONS, name)

    async def _replace(self, database: _Database, dump: str, there: bool) -> None:
        """Build a database beside the live one, then let it take its place."""
        new = f"ramify_{secrets.token_hex(8)}"
        name, ident, beside = database.name, sql.identifier, _beside(database.name)
        await self._sql(
            f"CREATE DATABASE {ident(new)} TEMPLATE template0 OWNER {ident(database.owner)} "
            f"ENCODING {sql.literal(database.encoding)} "
            f"LC_COLLATE {sql.literal(database.collate)} LC_CTYPE {sql.literal(database.ctype)};",
            beside,
        )
        try:
            await self._shell(
                f"pg_restore --exit-on-error --single-transaction -d {_db(new)} {inside(dump)}",
                f"build {name} anew",
            )
            acl = "NULL" if database.acl is None else f"{sql.literal(database.acl)}::aclitem[]"
            properties = [
                f"ALTER DATABASE {ident(name)} CONNECTION LIMIT {database.connections};",
                f"UPDATE pg_database SET datacl = {acl} WHERE datname = {sql.literal(name)};",
            ]
            for setting in database.settings:
                key, _, value = setting.partition("=")
                properties.append(
                    f"ALTER DATABASE {ident(name)} SET {key} TO {sql.literal(value)};"
                )
            old = f"{new}_old" if there else None
            await self._sql(sql.swap(name, new, old, properties), beside)
        except EnvironmentFailed:
            await self._ask(
                f"psql -X -q -d {_db(beside)} -c {_word(f'DROP DATABASE IF EXISTS {ident(new)}')}"
            )
            raise

    async def _same(self, wanted: _Database, live: _Database) -> bool:
        """Whether only rows can differ."""
        schema = await self._schema(live.name)
        return msgspec.structs.replace(live, schema=schema) == wanted

    async def _check_roles(self, wanted: bytes) -> None:
        """Drop roles made since; refuse where those that stay cannot be made what they were."""
        names = set(wanted.decode(errors="replace").splitlines())
        beside = "template1"
        for name in (await self._sql(sql.ROLES, beside)).decode(errors="replace").splitlines():
            created = {f"CREATE ROLE {name};", f"CREATE ROLE {sql.identifier(name)};"}
            if not created & names:
                await self._sql(f"DROP ROLE {sql.identifier(name)};", beside)
        if schema_text(await self._roles()) != schema_text(wanted):
            raise self._hands.failed(
                "the data is back, but a role has another membership or setting than it had"
            )

    async def _databases(self) -> list[_Database]:
        told = await self._sql(sql.DATABASES, self._only or "template1")
        lines = told.decode("utf-8", "replace").replace("\\\\", "\\").splitlines()
        found = [_decoder.decode(line) for line in lines]
        return [d for d in found if self._only is None or d.name == self._only]

    async def _need_superuser(self) -> None:
        if (await self._sql(sql.SUPERUSER, self._only or "template1")).strip() != b"on":
            raise UnsupportedError(
                f"{self.name}: only a superuser can put a database back exactly, and the role of "
                f"`url` is none: use postgresql:///{self._only or 'DATABASE'}, which is the "
                "server's own user over the local socket"
            )

    async def _roles(self) -> bytes:
        if self._only is not None:
            return b""
        return schema_text(await self._shell("pg_dumpall --roles-only", "read roles")).encode()

    async def _schema(self, name: str) -> str:
        line = f"pg_dump --format=custom --schema-only {_db(name)} | pg_restore --file=-"
        return self._sha_of(await self._shell(line, f"read the schema of {name}"))

    def _sha_of(self, dump: bytes) -> str:
        """The digest of a dump's schema."""
        return _sha(self._alias(schema_text(dump)))

    def _alias(self, text: str) -> str:
        """With another name in place of the only database's, where one was given."""
        return text.replace(self._only, self._called) if self._only and self._called else text

    async def _rows(self, name: str, local: Path) -> None:
        """Copy all rows of a database, one line each, to the host."""
        async with self._hands.place() as work:
            line = f"psql -X -q -At -v ON_ERROR_STOP=1 -d {_db(name)} > {inside(f'{work}/rows')}"
            await self._shell(line, f"read the rows of {name}", sql.ROWS)
            await self._hands.take(f"{work}/rows", local)

    async def _sql(self, text: str, database: str) -> bytes:
        line = f"psql -X -q -At -v ON_ERROR_STOP=1 -d {_db(database)}"
        return await self._shell(line, f"ask the database {database}", text)

    async def _shell(self, line: str, doing: str, stdin: str | None = None) -> bytes:
        result = await self._ask(line, stdin)
        if not result.ok:
            raise self._hands.failed(f"cannot {doing}: {tail(result)}")
        return result.stdout

    async def _ask(self, line: str, stdin: str | None = None) -> ExecResult:
        data = None if stdin is None else stdin.encode("utf-8", "surrogateescape")
        return await self._hands.ask(f"{self._programs}\n{line}", stdin=data, env=self._env)


def _connection(hands: Hands, url: str | None) -> tuple[str | None, dict[str, str]]:
    """The only database (None: all) and the variables by which the programs find the server."""
    env = {"PGOPTIONS": sql.SETTINGS, "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "ramify"}
    if url is None:
        return None, env
    parts = urlsplit(url)
    name = unquote(parts.path.strip("/"))
    if (
        parts.scheme not in ("postgres", "postgresql")
        or parts.hostname not in (None, *_LOOPBACK)
        or not name
    ):
        raise ConfigError(
            f"{hands.name}: the address is neither postgresql:///DATABASE nor "
            "postgresql://USER:PASSWORD@127.0.0.1:PORT/DATABASE",
            field="environment.state.url",
        )
    env["PGPORT"] = str(parts.port or 5432)
    if parts.hostname:
        env["PGHOST"] = parts.hostname
    if parts.username:
        env["PGUSER"] = unquote(parts.username)
    if parts.password:
        env["PGPASSWORD"] = unquote(parts.password)
    return name, env


def _db(name: str) -> str:
    """A database as a word of the shell; a connection string, as a name may look like one."""
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return _word(f"dbname='{escaped}'")


def _word(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _beside(name: str) -> str:
    """A database to be in while `name` is replaced."""
    return "template1" if name == "postgres" else "postgres"


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
