"""A manifest of a shared fleet: rollouts apart, put back, branched, and cleaned up after."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from fleet_world import Estate, Programs, Tenancy, estate_on, shared

import ramify
from ramify.contracts.environment import Environment
from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.tree import Outcome
from ramify.planes.environment.fleet.drivers import check_shared
from ramify.planes.environment.fleet.world import FleetEnvironment
from ramify.planes.environment.manifest import load_manifest
from ramify.testing.check import Check
from ramify.testing.conformance_environment import (
    ENVIRONMENT_CHECKS,
    EnvironmentBench,
    Opened,
)

pytestmark = [pytest.mark.namespaces, pytest.mark.docker]


@pytest_asyncio.fixture(params=["local", pytest.param("docker", marks=pytest.mark.proof)])
async def estate(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Estate]:
    async with estate_on(request.param, tmp_path) as made:
        yield made


@pytest_asyncio.fixture(params=["local", "docker"])
async def estate_on_both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Estate]:
    async with estate_on(request.param, tmp_path) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Estate]:
    """One whose fleet stands while the contract is gone through; what breaks it is replaced."""
    async with estate_on("local", tmp_path_factory.mktemp("standing")) as made:
        yield made


async def leases(estate: Estate) -> int:
    book = json.loads(await asyncio.to_thread(estate.book.read_text))
    return sum(lease["expires_at"] > 0 for lease in book["leases"].values())


async def test_rollouts_at_once_are_apart(estate: Estate) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(estate.join()) for _ in range(2)]
    ann, bob = (task.result() for task in tasks)
    assert await leases(estate) == 2
    await ann.add("from-ann")
    await bob.add("from-bob")
    assert await ann.seen() == ["hi", "from-ann", "from-ann", "hello"]
    assert await bob.seen() == ["hi", "from-bob", "from-bob", "hello"]
    his = await bob.variables()
    place, prefix = his["PGDATABASE"], his["REDIS_PREFIX"]
    guesses = ["", place, "postgres", "of-the-fleet", (await ann.variables())["PGPASSWORD"]]
    for password in guesses:
        line = f"PGUSER={place} PGDATABASE={place} PGPASSWORD='{password}' psql -X -w -c 'SELECT 1'"
        code, said = await ann.sh(line)
        assert code != 0, (password, said)
    code, said = await ann.sh(f"PGDATABASE={place} psql -X -c 'SELECT * FROM mail'")
    assert code != 0, said
    assert "permission denied for database" in said
    code, said = await ann.sh("psql -X -h /run/postgresql -U postgres -c 'SELECT 1'")
    assert code != 0, said
    for password in (*guesses[1:3], guesses[4]):
        line = f"redis-cli --no-auth-warning --user {place} --pass '{password}' GET {prefix}l"
        assert "WRONGPASS" in (await ann.sh(line))[1]
    own = 'redis-cli --no-auth-warning -u "$REDIS_URL"'
    for command in (f"LRANGE {prefix}l 0 -1", f"DEL {prefix}l", "KEYS '*'", "FLUSHALL"):
        assert "NOPERM" in (await ann.sh(f"{own} {command}"))[1], command
    assert await bob.seen() == ["hi", "from-bob", "from-bob", "hello"]
    told = json.dumps(await ann.world.query())
    assert "from-ann" in told
    assert "from-bob" not in told


async def test_only_the_own_place_is_put_back(estate: Estate) -> None:
    ann, bob = await estate.join(), await estate.join()
    await ann.add("one")
    snapshot = await ann.world.snapshot()
    await ann.add("two")
    await bob.add("theirs")
    await ann.world.restore(snapshot)
    assert await ann.seen() == ["hi", "one", "one", "hello"]
    code, said = await ann.sh("psql -X -q -c 'ALTER TABLE mail ADD extra int; DROP VIEW seen'")
    assert code == 0, said
    await ann.world.reset()
    assert await ann.seen() == ["hi", "hello"]
    await ann.add("again")
    assert await bob.seen() == ["hi", "theirs", "theirs", "hello"]
    with pytest.raises(EnvironmentFailed, match="no snapshot of this world"):
        await bob.world.restore(snapshot)
    await ann.world.teardown()
    await ann.world.teardown()
    assert await leases(estate) == 1
    assert (await ann.sh("psql -X -c 'SELECT 1'"))[0] != 0
    assert await bob.seen() == ["hi", "theirs", "theirs", "hello"]


async def test_children_of_a_branch_are_apart(estate_on_both: Estate) -> None:
    estate = estate_on_both
    parent, other = await estate.join(), await estate.join()
    await parent.add("before")
    await parent.sh("psql -X -q -c \"ALTER DATABASE $PGDATABASE SET work_mem = '1MB'\"")
    assert set((await parent.world.quiesce(False)).values()) == {"hook"}
    assert (await parent.sh("psql -X -c 'SELECT 1'"))[0] != 0
    await parent.world.resume()
    await parent.add("more")
    now = ["hi", "before", "more", "before", "more", "hello"]
    assert await parent.seen() == now
    before = (await parent.world.describe()).parts
    kept = await parent.variables()
    await parent.world.quiesce(False)
    assert isinstance(parent.sandbox, Freezable)
    image = await parent.sandbox.freeze()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(estate.fork(parent, image)) for _ in range(2)]
        one, two = (task.result() for task in tasks)
        assert await leases(estate) == 4
        for child in (one, two):
            assert (await child.world.describe()).parts == before
            assert await child.seen() == now
        await one.add("one")
        await two.add("two")
        assert await one.seen() == [*now[:3], "one", *now[3:5], "one", "hello"]
        assert await two.seen() == [*now[:3], "two", *now[3:5], "two", "hello"]
        code, said = await one.sh(
            f"PGUSER={kept['PGUSER']} PGDATABASE={kept['PGDATABASE']} "
            f"PGPASSWORD='{kept['PGPASSWORD']}' psql -X -c 'SELECT 1'"
        )
        assert "not permitted to log in" in said, (code, said)
        said = (await two.sh(f"redis-cli --no-auth-warning -u '{kept['REDIS_URL']}' PING"))[1]
        assert "WRONGPASS" in said
        alter = (
            "psql -X -q -c 'ALTER TABLE mail ADD x kind; DROP VIEW seen; DROP TYPE kind CASCADE'"
        )
        assert (await one.sh(alter))[0] == 0
        third = await estate.fork(parent, image)
        assert await third.seen() == now
        assert await other.seen() == ["hi", "hello"]
        for tenancy in (one, third, parent, two):  # in whichever order, nothing is left
            await tenancy.world.teardown()
        assert await leases(estate) == 1
    finally:
        for tenancy in estate.tenants[2:]:
            await tenancy.world.teardown()
            await tenancy.sandbox.teardown()
        await estate.provider.discard(image)


async def test_a_branch_with_a_file_is_refused(estate: Estate) -> None:
    """And the tenant goes on as if nothing had been asked."""
    text = estate.manifest.read_text()
    where = text.index('kind = "redis"')
    text = text[:where] + 'kind = "sqlite"\npaths = ["/app/template.db"]\n'
    name, hook = 'name = "redis"', 'on_branch = "hook"'
    first, _, rest = text.partition(name)
    estate.manifest.write_text(first + name + rest.replace(hook, 'on_branch = "restart"', 1))
    with sqlite3.connect(estate.manifest.parent / "files" / "template.db") as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    ann = await estate.join()
    with pytest.raises(UnsupportedError, match="SQLite file in a shared fleet cannot be branched"):
        await ann.world.quiesce(False)
    insert = "psql -X -At -c \"INSERT INTO mail (subject) VALUES ('on') RETURNING id\""
    assert await ann.sh(f"{insert} -q") == (0, "2\n")
    with pytest.raises(EnvironmentFailed, match="without `quiesce`"):
        await ann.world.fork(ann.sandbox, ann.ctx)


async def healthy_for_ever(tenancy: Tenancy) -> None:
    for _ in range(400):
        await tenancy.world.readiness()
        await asyncio.sleep(0.05)


async def test_a_broken_fleet_is_made_anew(estate: Estate) -> None:
    first = await estate.join()
    await first.add("lost")
    await crash(first.world, first.sandbox)
    with pytest.raises(EnvironmentFailed, match="'redis' ended"):
        await healthy_for_ever(first)
    second = await estate.join()
    await second.add("new")
    await first.world.teardown()
    assert await leases(estate) == 1
    assert await second.seen() == ["hi", "new", "new", "hello"]


# ---- the contract


async def change(world: Environment, sandbox: Sandbox) -> None:
    await Programs(sandbox).add(uuid.uuid4().hex)


async def look(world: Environment, sandbox: Sandbox) -> object:
    return await Programs(sandbox).seen()


async def crash(world: Environment, sandbox: Sandbox) -> None:
    assert isinstance(world, FleetEnvironment)
    url = urlsplit((await world.urls())["redis"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(b"AUTH of-the-fleet\r\nSHUTDOWN NOSAVE NOW FORCE\r\n")
    await reader.read()  # to the end
    writer.transport.abort()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", ENVIRONMENT_CHECKS, ids=lambda check: check.name)
async def test_the_contract(check: Check[EnvironmentBench], standing: Estate) -> None:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Opened]:
        sandbox, ctx = await standing.sandbox()
        world = await standing.world()
        try:
            yield world, sandbox, ctx
        finally:
            await world.teardown()
            await sandbox.teardown()

    await check.run(EnvironmentBench(opened, change, look, crash))


# ---- whole runs

VERIFY = """\
python3 -I - <<'P'
import json
state = json.load(open("/tests/world.json"))["state"]
text = json.dumps(state)
rows = [row for part in state.values() for row in part.values() if '"subject"' in row]
print(state)
right = len(rows) == %d and text.count("by-us") == %d
open("/logs/verifier/reward.txt", "w").write(str(int(right)))
P
"""
ADD = (
    '. "$FLEET_ENV"; psql -X -q -v ON_ERROR_STOP=1 -c "INSERT INTO mail (subject) VALUES (\'{}\')"'
)


def task_of(place: Path, rows: int, ours: int, solve: str) -> Path:
    root = place / "task"
    for name, text in {
        "task.toml": '[ramify]\nworld = "../shared/manifest.toml"\n',
        "instruction.md": "Write a mail.\n",
        "tests/test.sh": VERIFY % (rows, ours),
        "solution/solve.sh": solve,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


async def test_a_job_branches_in_a_shared_fleet(tmp_path: Path) -> None:
    shared(tmp_path / "shared")
    script = tmp_path / "walk.txt"
    count = 'redis-cli --no-auth-warning -u "$REDIS_URL" INCR "${REDIS_PREFIX}n"'
    both = f"{ADD.format('by-us')} && {count}"
    script.write_text(f"{ADD.format('by-us')}\n{both}\n")
    report = await ramify.run(
        task_of(tmp_path, 3, 2, ""),
        agent="scripted",
        sandbox="local",
        options=ramify.RunOptions(
            branch="group:2@step:0",
            repeats=2,
            concurrency=2,
            agent_options={"path": str(script)},
            out=tmp_path / "job",
            max_retries=0,
        ),
    )
    for result in report.results:
        assert (result.outcome, result.reward, result.error) == (Outcome.SCORED, 1.0, None)
        events = (tmp_path / "job" / "events-1.jsonl").read_text().splitlines()
        assert (result.leaves, result.dropped) == (2, 0), [e for e in events if '"log"' in e]
    (book,) = (tmp_path / "job").glob("worlds/fleet-*/accounts.json")
    held = json.loads(book.read_text())["leases"].values()
    assert [lease["expires_at"] for lease in held] == [0.0] * len(held)
    assert len(held) > 2


def marked(mark: str) -> list[str]:
    """Processes of this machine with this text in their environment."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "comm").read_text().strip())
        except OSError:
            continue  # it ended
    return found


async def test_what_a_killed_engine_held_is_free(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    health = 'port = 5432\nenv = { MARK = "' + mark + '" }\n'
    shared(tmp_path / "shared", ("port = 5432\n", health))
    task = task_of(tmp_path, 2, 1, f"{ADD.format('by-us')} && sleep 4")
    line = [sys.executable, "-m", "ramify.cli.main", "run", str(task)]
    line += ["--agent", "oracle", "--sandbox", "local", "--out", str(tmp_path / "job")]
    engine = await _engine(line)
    async with asyncio.timeout(120):
        while not (held := _held(tmp_path)):
            assert engine.returncode is None, await engine.communicate()
            await asyncio.sleep(0.05)
    assert "postgres" in marked(mark)
    os.kill(engine.pid, signal.SIGKILL)
    await engine.communicate()
    assert _held(tmp_path) == held
    async with asyncio.timeout(20):
        while marked(mark):  # noqa: ASYNC110  (they are other processes)
            await asyncio.sleep(0.05)
    again = await _engine(line)
    said, _ = await again.communicate()
    assert again.returncode == 0, said
    assert _held(tmp_path) == []
    assert marked(mark) == []


async def _engine(line: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


def _held(place: Path) -> list[str]:
    return [
        name
        for book in (place / "job").glob("worlds/fleet-*/accounts.json")
        for name, lease in json.loads(book.read_text())["leases"].items()
        if lease["expires_at"] > 0
    ]


# ---- what is refused


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ('topology = "shared', 'isolation = "persistent"\ntopology = "shared', UnsupportedError,
         "persistent"),
        ('kind = "redis"', 'kind = "redis"\nmutate = "true"', ConfigError, "mutate"),
        ('kind = "redis"\nservice = "redis"\nurl = "redis://:of-the-fleet@127.0.0.1:6379"',
         'kind = "postgres"\nservice = "redis"\nurl = "postgresql:///other"',
         ConfigError, "one place of kind"),
    ],
)  # fmt: skip
def test_what_a_fleet_cannot_have(
    tmp_path: Path, old: str, new: str, error: type[Exception], match: str
) -> None:
    manifest = load_manifest(shared(tmp_path / "shared", (old, new)))
    with pytest.raises(error, match=match):
        check_shared(manifest)
