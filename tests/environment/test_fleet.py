"""A fleet that many tasks share: each has its own place, and no way to another's."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from state_worlds import DOCKERFILE, driver_of, eventually, psql, python, sh

from ramify.contracts.errors import (
    ConfigError,
    EnvironmentFailed,
    SandboxError,
    UnsupportedError,
)
from ramify.contracts.fleet import TaskDatabase
from ramify.contracts.sandbox import BuildSpec, Sandbox, SandboxSpec
from ramify.planes.environment.fleet.accounts import FileAccountBroker
from ramify.planes.environment.fleet.joining import Fleet, Member
from ramify.planes.environment.fleet.make import make_fleet
from ramify.planes.environment.fleet.tenants import PostgresTasks, RedisTasks, SqliteTasks
from ramify.planes.environment.records import StateSpec
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.context import RealClock

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
]
BASE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")
PASSWORD = "of-the-fleet"
TEMPLATE = """
CREATE TABLE mail (id serial PRIMARY KEY, subject text); INSERT INTO mail (subject) VALUES ('hi');
CREATE VIEW seen AS SELECT count(*) FROM mail;
CREATE FUNCTION one() RETURNS int AS 'SELECT 1' LANGUAGE sql;
"""


@dataclass(frozen=True, slots=True)
class Stand:
    provider: LocalProvider
    image: SandboxSpec
    fleet: Fleet

    async def task(self) -> Sandbox:
        return await self.provider.create(self.image)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(
    namespaces_problem: str | None,
    docker_problem: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stand | None]:
    if namespaces_problem or docker_problem:
        yield None  # the marks skip each test, or fail it on CI
        return
    context = tmp_path_factory.mktemp("fleet")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=BASE))
    image = SandboxSpec(build=BuildSpec(str(context)))
    provider = LocalProvider()
    try:
        box = await provider.create(image)
        await sh(box, "pg_ctlcluster 15 main start")
        await psql(box, "CREATE DATABASE office_template", "postgres")
        await psql(box, TEMPLATE, "office_template")
        await box.spawn(f"exec redis-server --save '' --requirepass {PASSWORD} --dir /tmp")
        await eventually(box, "redis-cli ping")
        await sh(
            box,
            f"export REDISCLI_AUTH={PASSWORD}; "
            "redis-cli set template:greeting hello; redis-cli set other:secret s",
        )
        await python(
            box,
            "import sqlite3; d = sqlite3.connect('/srv/template.db'); "
            "d.execute('PRAGMA journal_mode=WAL'); d.execute('CREATE TABLE t (x)'); "
            "d.execute('INSERT INTO t VALUES (1)'); d.commit()",
        )
        broker = FileAccountBroker(
            context / "accounts.json",
            {"Ann": {"MAIL_USER": "ann@office"}, "bob": {}, "cy": {}},
            RealClock(),
            wait_sec=0.3,
        )
        databases: list[TaskDatabase] = [
            PostgresTasks(box, "office_template"),
            RedisTasks(box, PASSWORD),
            SqliteTasks(box, "/srv/template.db", "/srv/tasks", "postgres"),
        ]
        yield Stand(provider, image, Fleet(box, databases, broker, [5432, 6379]))
    finally:
        await provider.aclose()


def environment(member: Member) -> str:
    return " ".join(f"{key}={shlex.quote(value)}" for key, value in member.variables.items())


async def tried(box: Sandbox, member: Member, line: str) -> tuple[int, str]:
    result = await box.exec(f"export {environment(member)}; {line}")
    return result.exit_code, (result.stdout + result.stderr).decode(errors="replace")


async def redis(box: Sandbox, member: Member, *command: str) -> str:
    words = " ".join(map(shlex.quote, command))
    code, said = await tried(box, member, f'redis-cli --no-auth-warning -u "$REDIS_URL" {words}')
    assert code == 0, said
    return said


async def test_two_tasks_have_their_own_places(stand: Stand) -> None:
    one, two = await stand.task(), await stand.task()
    ann = await stand.fleet.join(one, "rollout-1", 600)
    bob = await stand.fleet.join(two, "rollout-2", 600)
    try:
        assert ann.variables["MAIL_USER"] == "ann@office"
        for box, member, text in ((one, ann, "from ann"), (two, bob, "from bob")):
            line = f"""psql -X -At -c "INSERT INTO mail (subject) VALUES ('{text}')" """
            assert (await tried(box, member, line))[0] == 0
            await redis(box, member, "SET", f"{member.variables['REDIS_PREFIX']}x", text)
        for box, member, text in ((one, ann, "from ann"), (two, bob, "from bob")):
            told = await tried(box, member, 'psql -X -At -c "SELECT subject FROM mail ORDER BY id"')
            assert told == (0, f"hi\n{text}\n")
            prefix = member.variables["REDIS_PREFIX"]
            assert await redis(box, member, "GET", f"{prefix}x") == f"{text}\n"
            assert await redis(box, member, "GET", f"{prefix}greeting") == "hello\n"
        alter = 'psql -X -q -c "ALTER TABLE mail ADD x int; DROP VIEW seen; DROP FUNCTION one()"'
        assert (await tried(one, ann, alter))[0] == 0
        assert (
            await psql(stand.fleet.sandbox, "SELECT count(*) FROM mail", "office_template") == "1\n"
        )
    finally:
        for member in (ann, bob):
            await stand.fleet.leave(member)
            await stand.fleet.leave(member)
        for box in (one, two):
            await box.teardown()
    for database in stand.fleet.databases:
        assert await database.tenants() == []
    assert await stand.fleet.broker.leases() == []
    assert (await stand.fleet.sandbox.exec("ls /srv/tasks")).stdout == b""


async def test_a_tenant_cannot_cross(stand: Stand) -> None:
    box, other = await stand.task(), await stand.task()
    me = await stand.fleet.join(box, "attacker", 600)
    victim = await stand.fleet.join(other, "victim", 600)
    theirs, prefix = victim.variables["PGDATABASE"], victim.variables["REDIS_PREFIX"]
    await redis(other, victim, "SET", f"{prefix}x", "secret")
    try:
        for database in (theirs, "postgres", "template1", "office_template"):
            code, said = await tried(box, me, f"PGDATABASE={database} psql -X -c 'SELECT 1'")
            assert code != 0, (database, said)
            assert "permission denied for database" in said, said
        for user in (theirs, "postgres"):
            code, said = await tried(box, me, f"PGUSER={user} psql -X -c 'SELECT 1'")
            assert code != 0, (user, said)
            assert "password authentication failed" in said, said
        for sql in (
            f"SET ROLE {theirs}",
            f"DROP DATABASE {theirs}",
            f"ALTER DATABASE {theirs} SET work_mem = '1MB'",
            f"ALTER ROLE {theirs} PASSWORD 'x'",
            "CREATE ROLE mine SUPERUSER",
            "CREATE DATABASE mine",
            "COPY mail FROM PROGRAM 'id'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT rolpassword FROM pg_authid",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            f"AND usename = '{theirs}' UNION SELECT 1 / 0 > 0",
            "ALTER SYSTEM SET work_mem = '1MB'",
        ):
            code, said = await tried(box, me, f"psql -X -v ON_ERROR_STOP=1 -c {shlex.quote(sql)}")
            assert code != 0, (sql, said)
        for command in (
            ("GET", f"{prefix}x"),
            ("SET", f"{prefix}x", "mine"),
            ("GET", "template:greeting"),
            ("GET", "other:secret"),
            ("KEYS", "*"),
            ("SCAN", "0"),
            ("RANDOMKEY",),
            ("DBSIZE",),
            ("FLUSHALL",),
            ("FLUSHDB",),
            ("SWAPDB", "0", "1"),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
            ("ACL", "SETUSER", "me2", "on", "nopass", "~*", "+@all"),
            ("CLIENT", "LIST"),
            ("MONITOR",),
            ("COPY", f"{prefix}x", f"{me.variables['REDIS_PREFIX']}x"),
            ("RENAME", f"{prefix}x", f"{me.variables['REDIS_PREFIX']}x"),
            ("EVAL", f"return redis.call('GET', '{prefix}x')", "0"),
            ("EVAL", "return redis.call('KEYS', '*')", "0"),
            ("EVAL", "return redis.call('SCAN', '0')", "0"),
            ("SORT", f"{me.variables['REDIS_PREFIX']}l", "BY", "nosort", "GET", f"{prefix}x"),
            ("SUBSCRIBE", f"{prefix}news"),
            ("PUBLISH", f"{prefix}news", "x"),
            ("PUBSUB", "CHANNELS"),
            ("FUNCTION", "LIST"),
            ("SCRIPT", "FLUSH"),
            ("MIGRATE", "127.0.0.1", "6379", f"{prefix}x", "1", "10"),
            ("SHUTDOWN", "NOSAVE"),
            ("DEBUG", "SLEEP", "0"),
            ("SAVE",),
        ):
            said = await redis(box, me, *command)
            refusals = ("NOPERM", "can't access", "can't run this", "not allowed")
            assert any(word in said for word in refusals), (command, said)
        code, said = await tried(box, me, "redis-cli GET template:greeting")
        assert "NOAUTH" in said, said
        assert await redis(other, victim, "GET", f"{prefix}x") == "secret\n"
    finally:
        for member, place in ((me, box), (victim, other)):
            await stand.fleet.leave(member)
            await place.teardown()


async def test_what_was_given_is_worth_nothing_afterwards(stand: Stand) -> None:
    box = await stand.task()
    member = await stand.fleet.join(box, "short", 600)
    session = await box.spawn(
        f"export {environment(member)}; while :; do echo 'SELECT 1;'; sleep 0.1; done | psql -X -At"
    )
    assert await session.read()
    before = dict(member.variables)
    await stand.fleet.leave(member)
    again = await stand.fleet.join(box, "next", 600)
    try:
        stale = Member(member.lease, before)
        assert (await tried(box, stale, "psql -X -c 'SELECT 1'"))[0] != 0
        _, said = await tried(box, stale, 'redis-cli -u "$REDIS_URL" PING')
        assert "WRONGPASS" in said or "AUTH failed" in said
        async with asyncio.timeout(30):
            assert await session.wait() != 0
    finally:
        await session.aclose()
        await stand.fleet.leave(again)
        await box.teardown()


async def test_a_join_that_fails_holds_nothing(stand: Stand) -> None:
    box = await stand.task()
    blocker = await box.spawn(
        ["python3", "-I", "-c", "import socket, time; s = socket.socket(); "
         "s.bind(('127.0.0.1', 6379)); s.listen(); print('on', flush=True); time.sleep(600)"]
    )  # fmt: skip
    assert await blocker.read() == b"on\n"
    with pytest.raises(SandboxError):
        await stand.fleet.join(box, "unlucky", 600)
    await box.teardown()
    assert await stand.fleet.broker.leases() == []
    for database in stand.fleet.databases:
        assert await database.tenants() == []


async def test_sweep_drops_what_the_dead_left(stand: Stand) -> None:
    box = await stand.task()
    member = await stand.fleet.join(box, "alive", 600)
    for database in stand.fleet.databases:
        await database.create("abandoned")
    assert await stand.fleet.sweep() == 3
    for database in stand.fleet.databases:
        assert await database.tenants() == [member.tenant]
    await stand.fleet.leave(member)
    await box.teardown()


@pytest.mark.parametrize("name", ["", "A", "1x", "x" * 41, 'x"; DROP', "x y", "x\n", "../x"])
async def test_a_name_that_cannot_be_one_is_refused(stand: Stand, name: str) -> None:
    for database in stand.fleet.databases:
        with pytest.raises(ConfigError, match="tenant"):
            await database.create(name)


async def test_a_service_that_serves_anybody_is_refused(stand: Stand) -> None:
    box = await stand.task()
    await box.spawn("exec redis-server --save '' --dir /tmp")
    await eventually(box, "redis-cli ping")
    with pytest.raises(EnvironmentFailed, match="requirepass"):
        await RedisTasks(box, PASSWORD).create("x")
    hba = "/etc/postgresql/15/main/pg_hba.conf"
    await sh(box, f"echo 'host all all 127.0.0.1/32 trust' > /tmp/h; cat {hba} >> /tmp/h")
    await sh(box, f"cat /tmp/h > {hba}; pg_ctlcluster 15 main start")
    with pytest.raises(EnvironmentFailed, match="pg_hba"):
        await PostgresTasks(box).create("x")
    await box.teardown()


async def test_a_dead_service_is_said(stand: Stand, tmp_path: Path) -> None:
    box = await stand.task()
    for database in (PostgresTasks(box), RedisTasks(box, PASSWORD)):
        with pytest.raises(EnvironmentFailed):
            await database.create("x")
    with pytest.raises(EnvironmentFailed):
        await SqliteTasks(box, "/no/template.db", "/srv/tasks").create("x")
    await box.teardown()


async def test_a_tenants_place_is_put_back_without_the_others(stand: Stand) -> None:
    one, two = await stand.task(), await stand.task()
    ann = await stand.fleet.join(one, "rollout-1", 600)
    bob = await stand.fleet.join(two, "rollout-2", 600)
    try:
        add = "psql -X -q -c \"INSERT INTO mail (subject) VALUES ('more')\""
        mine = StateSpec(kind="postgres", url=f"postgresql:///{ann.variables['PGDATABASE']}")
        driver = driver_of(stand.fleet.sandbox, mine)
        digest = await driver.digest()
        with tempfile.TemporaryDirectory() as folder:
            await driver.snapshot(Path(folder))
            for box, member in ((one, ann), (two, bob)):
                assert await tried(box, member, add) == (0, "")
            assert await driver.digest() != digest
            await driver.restore(Path(folder))
        assert await driver.digest() == digest
        for box, member, count in ((one, ann, "1\n"), (two, bob, "2\n")):
            told = await tried(box, member, "psql -X -At -c 'SELECT count(*) FROM mail'")
            assert told == (0, count)
        own = StateSpec(kind="postgres", url=ann.variables["DATABASE_URL"])
        with pytest.raises(UnsupportedError, match="superuser"):
            await driver_of(stand.fleet.sandbox, own).snapshot(Path(folder))
    finally:
        for box, member in ((one, ann), (two, bob)):
            await stand.fleet.leave(member)
            await box.teardown()


async def test_a_fleet_is_made_from_what_a_manifest_declares(stand: Stand, tmp_path: Path) -> None:
    states = [
        StateSpec(kind="postgres", url="postgresql://postgres@127.0.0.1:5432/office_template"),
        StateSpec(kind="redis", url=f"redis://:{PASSWORD}@127.0.0.1:6379"),
        StateSpec(kind="sqlite", paths=["/srv/template.db"], user="postgres"),
    ]
    fleet = make_fleet(states, [5432], stand.fleet.sandbox, tmp_path / "book", RealClock(), most=2)
    box = await stand.task()
    member = await fleet.join(box, "r", 600)
    assert await tried(box, member, "psql -X -At -c 'SELECT count(*) FROM mail'") == (0, "1\n")
    assert member.variables["SQLITE_PATH"].startswith("/srv/tasks/")
    await fleet.leave(member)
    await box.teardown()
    for kind in ("files", "command", "http", "process"):
        with pytest.raises(UnsupportedError, match="in-sandbox"):
            make_fleet([StateSpec(kind=kind)], [], box, tmp_path / "x", RealClock())
    for spec in (StateSpec(kind="redis"), StateSpec(kind="sqlite", paths=["/srv/*.db"])):
        with pytest.raises(ConfigError):
            make_fleet([spec], [], box, tmp_path / "x", RealClock())
