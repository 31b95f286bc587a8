"""State drivers where it gets difficult: locks, images that lack programs, hostile answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from state_worlds import (
    DOCKERFILE,
    driver_of,
    eventually,
    files_world,
    postgres_world,
    psql,
    python,
    sh,
    sqlite_world,
)

from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    BuildSpec,
    Sandbox,
    SandboxSpec,
)
from ramify.planes.environment.records import StateSpec
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
]
BASE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(
    namespaces_problem: str | None, docker_problem: str | None
) -> AsyncIterator[LocalProvider | None]:
    if namespaces_problem or docker_problem:
        yield None  # the marks skip each test, or fail it on CI
        return
    provider = LocalProvider()
    try:
        yield provider
    finally:
        await provider.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def box(
    provider: LocalProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sandbox]:
    context = tmp_path_factory.mktemp("servers")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=BASE))
    box = await provider.create(SandboxSpec(build=BuildSpec(str(context))))
    yield box
    await box.teardown()


async def line_of(process: Process) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = await process.read()
        assert data, await process.read_err()
        line += data
    return line


NO_PYTHON = "for p in $(command -v -p python3; which -a python3); do rm -f $p; done"


async def test_sqlite_without_python_in_the_image(box: Sandbox, tmp_path: Path) -> None:
    await sqlite_world(box)
    await sh(box, NO_PYTHON)
    driver = driver_of(box, StateSpec(kind="sqlite", paths=["/data/**/*.db"]))
    digest, described = await driver.digest(), await driver.describe()
    await driver.snapshot(tmp_path)
    await sh(box, "sqlite3 '/data/a b/x.db' 'DELETE FROM t; CREATE TABLE n (x)'; rm /data/it*/x.db")
    await sh(box, "cd /data; sqlite3 new.db 'CREATE TABLE x (y)'")
    assert await driver.digest() != digest
    await driver.restore(tmp_path)
    assert await driver.describe() == described
    assert await driver.digest() == digest
    await driver.mutate()
    assert await driver.digest() != digest
    await sh(box, "rm -f $(which -a sqlite3)")
    bare = driver_of(box, StateSpec(kind="sqlite", paths=["/data/**/*.db"]))
    with pytest.raises(UnsupportedError, match=r"python3 .* sqlite3"):
        await bare.digest()


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
async def test_a_locked_database_is_waited_for_and_then_said(
    box: Sandbox, tmp_path: Path, mode: str
) -> None:
    await sqlite_world(box, mode)
    spec = StateSpec(kind="sqlite", paths=["/data/a b/x.db"], timeout_sec=4)
    driver = driver_of(box, spec)
    await driver.snapshot(tmp_path)
    await python(
        box,
        "import sqlite3; d = sqlite3.connect('/data/a b/x.db'); d.execute('DELETE FROM t'); "
        "d.commit()",
    )
    digest = await driver.digest()
    holder = await box.spawn(
        ["python3", "-I", "-u", "-c",
         "import sqlite3, sys; d = sqlite3.connect('/data/a b/x.db', isolation_level=None); "
         "d.execute('BEGIN IMMEDIATE'); print('held'); sys.stdin.readline(); d.rollback(); "
         "print('free'); sys.stdin.readline()"]
    )  # fmt: skip
    assert await line_of(holder) == b"held\n"
    with pytest.raises(EnvironmentFailed, match="locked"):
        await driver.restore(tmp_path)
    assert await driver.digest() == digest  # nothing half done
    restoring = asyncio.create_task(driver.restore(tmp_path))
    await asyncio.sleep(0.5)
    await holder.write(b"\n")
    assert await line_of(holder) == b"free\n"
    await restoring
    assert await driver.digest() != digest
    await holder.aclose()


async def test_what_is_no_database_any_more_is_said(box: Sandbox, tmp_path: Path) -> None:
    await sqlite_world(box)
    driver = driver_of(box, StateSpec(kind="sqlite", paths=["/data/*/*.db"]))
    await driver.snapshot(tmp_path)
    await sh(box, "echo 'this is no database, and nobody can say what it was' > '/data/a b/x.db'")
    for doing in (driver.digest(), driver.restore(tmp_path), driver.snapshot(tmp_path / "new")):
        with pytest.raises(EnvironmentFailed, match=r"not a database"):
            await doing


async def test_a_live_database_is_not_a_file(box: Sandbox, tmp_path: Path) -> None:
    """Copying it would be silently wrong: the last writes are in its log."""
    await sqlite_world(box)
    holder = await box.spawn(
        ["python3", "-I", "-u", "-c",
         "import sqlite3, time; d = sqlite3.connect('/data/a b/x.db'); "
         "d.execute('DELETE FROM t'); d.commit(); print('on'); time.sleep(600)"]
    )  # fmt: skip
    assert await line_of(holder) == b"on\n"
    driver = driver_of(box, StateSpec(kind="files", paths=["/data"]))
    with pytest.raises(UnsupportedError, match=r'/data/a b/x\.db .*kind = "sqlite"'):
        await driver.snapshot(tmp_path)
    await holder.aclose()


async def test_an_open_file_stays_the_file_it_was(box: Sandbox, tmp_path: Path) -> None:
    parts = await files_world(box)
    holder = await box.spawn(
        ["python3", "-I", "-u", "-c",
         "import os\nf = os.open('/srv/w/one', os.O_WRONLY | os.O_APPEND)\n"
         "while input(): os.write(f, b'line'); print(os.fstat(f).st_nlink)"]
    )  # fmt: skip
    await parts.driver.snapshot(tmp_path)
    digest = await parts.driver.digest()
    await holder.write(b"x\n")
    assert await line_of(holder) == b"2\n"
    assert await parts.driver.digest() != digest
    await parts.driver.restore(tmp_path)
    assert await parts.driver.digest() == digest
    await holder.write(b"x\n")
    assert await line_of(holder) == b"2\n"
    assert await sh(box, "cat /srv/w/one") == "oneline"
    await holder.aclose()


async def test_postgres_ends_a_transaction_that_does_not_end(box: Sandbox, tmp_path: Path) -> None:
    await postgres_world(box)
    spec = StateSpec(kind="postgres", url="postgresql:///shop", timeout_sec=20)
    driver = driver_of(box, spec)
    digest = await driver.digest()
    await driver.snapshot(tmp_path)
    holder = await box.spawn(
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "psql", "-X", "-At",
         "-d", "shop"]
    )  # fmt: skip
    await holder.write(b"BEGIN; UPDATE t SET v = 'held'; SELECT 'held';\n")
    async with asyncio.timeout(30):
        while b"held" not in await holder.read():
            continue
    await driver.restore(tmp_path)
    assert await driver.digest() == digest
    await holder.aclose()


async def test_postgres_a_restore_that_fails_in_the_middle_changes_nothing(
    box: Sandbox, tmp_path: Path
) -> None:
    await postgres_world(box)
    fails = "current_setting('ramify.fail', true) = 'on'"
    await psql(
        box,
        "CREATE FUNCTION maybe() RETURNS trigger AS $$ BEGIN IF " + fails + " THEN RAISE EXCEPTION "
        "'on purpose'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql; "
        "CREATE TRIGGER maybe BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION maybe(); "
        "ALTER TABLE t ENABLE ALWAYS TRIGGER maybe",
    )
    driver = driver_of(box, StateSpec(kind="postgres", url="postgresql:///shop"))
    await driver.snapshot(tmp_path)
    await psql(
        box, "DELETE FROM child; INSERT INTO t (v) VALUES ('x'); SELECT lo_put(4711, 0, 'L')"
    )
    digest = await driver.digest()
    conf = "/etc/postgresql/15/main/postgresql.conf"
    await sh(box, f"echo \"ramify.fail = 'on'\" >> {conf}; pg_ctlcluster 15 main reload")
    await eventually(box, f'[ "$(psql -At -d shop -c "SELECT {fails}")" = t ]', "postgres")
    with pytest.raises(EnvironmentFailed, match="on purpose"):
        await driver.restore(tmp_path)
    assert await driver.digest() == digest
    await sh(box, f"sed -i /ramify/d {conf}; pg_ctlcluster 15 main reload")
    await eventually(box, f'[ "$(psql -At -d shop -c "SELECT {fails}")" != t ]', "postgres")
    await driver.restore(tmp_path)
    assert await psql(box, "SELECT count(*) FROM t") == "3\n"
    assert await psql(box, "SELECT encode(lo_get(4711), 'escape')") == "large\n"


async def test_processes_are_named_and_their_memory_is_not_pretended(
    box: Sandbox, tmp_path: Path
) -> None:
    odd = 'it\'s \n"odd" \\x \udcff'
    server = await box.spawn(["python3", "-m", "http.server", "8077", "--bind", "127.0.0.1"])
    other = await box.spawn(
        ["python3", "-I", "-c", "import time; time.sleep(600)", odd.replace("\udcff", "ÿ")],
        user="nobody", cwd="/srv",
    )  # fmt: skip
    await eventually(box, "grep -q :1F8D /proc/net/tcp")
    await asyncio.sleep(0.2)
    driver = driver_of(box, StateSpec(kind="process", service="web"))
    (part,) = (await driver.describe()).values()
    shown = " ".join(part.values())
    assert str(server.pid) in part
    assert '"ports": [8077]' in part[str(server.pid)]
    assert '"cwd": "/"' in part[str(server.pid)]
    assert "odd" in part[str(other.pid)]
    assert '"uid": "65534"' in part[str(other.pid)]
    assert "/proc" not in shown
    digest = await driver.digest()
    assert await driver.digest() == digest
    await driver.snapshot(tmp_path)
    await driver.restore(tmp_path)
    await other.aclose()
    with pytest.raises(UnsupportedError, match=rf"live checkpoint.*{other.pid} \(gone\)"):
        await driver.restore(tmp_path)
    assert await driver.digest() != digest
    with pytest.raises(UnsupportedError):
        await driver.mutate()
    await server.aclose()


HOSTILE = """
import socket
server = socket.create_server(("127.0.0.1", 8000))
while True:
    c, _ = server.accept()
    line = c.recv(65536).split(b" ")[1]
    if line == b"/endless":
        try:
            c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            while True: c.sendall(b"x" * 65536)
        except OSError: pass
    elif line == b"/away":
        c.sendall(b"HTTP/1.1 302 F\\r\\nLocation: http://127.0.0.1:1/\\r\\n"
                  b"Content-Length: 0\\r\\n\\r\\n")
    elif line == b"/broken":
        c.sendall(b"HTTP/1.1 500 No\\r\\nContent-Length: 3\\r\\n\\r\\nwhy")
    elif line == b"/junk":
        c.sendall(b"junk\\r\\n\\r\\n")
    elif line == b"/slow":
        import time; time.sleep(5)
    c.close()
"""


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/endless", "longer"),
        ("/away", "302"),
        ("/broken", "500 why"),
        ("/junk", ""),
        ("/slow", ""),
    ],
)
async def test_a_service_that_answers_wrongly_is_said(box: Sandbox, path: str, why: str) -> None:
    await box.spawn(["python3", "-I", "-c", HOSTILE])
    await eventually(box, "grep -q :1F40 /proc/net/tcp")
    spec = StateSpec(
        kind="http", service="s", snapshot=path, restore="/r", digest=path,
        timeout_sec=3 if path == "/slow" else 30,
    )  # fmt: skip
    with pytest.raises(EnvironmentFailed, match=f"http s: .*{why}"):
        await driver_of(box, spec).digest()


async def test_a_command_that_fails_or_hangs_is_said(box: Sandbox, tmp_path: Path) -> None:
    for line, why in (("echo the reason >&2; exit 3", "the reason"), ("sleep 60", "within 1 s")):
        spec = StateSpec(kind="command", snapshot=line, restore="true", timeout_sec=1)
        with pytest.raises(EnvironmentFailed, match=why):
            await driver_of(box, spec).digest()
    assert (await box.exec("ls -A /tmp | grep ramify")).stdout == b""


async def test_a_declared_digest_and_mutation_take_the_place_of_ours(
    box: Sandbox, tmp_path: Path
) -> None:
    spec = StateSpec(
        kind="files", paths=["/srv"], digest="cat /srv/count", mutate="echo 2 > /srv/count"
    )
    await sh(box, "echo 1 > /srv/count")
    driver = driver_of(box, spec)
    digest = await driver.digest()
    await driver.snapshot(tmp_path)
    await sh(box, "touch /srv/unseen")
    assert await driver.digest() == digest
    assert await driver.mutate() == "echo 2 > /srv/count"
    assert await driver.digest() != digest
    await driver.restore(tmp_path)
    assert await driver.digest() == digest


async def test_postgres_over_tcp_as_a_superuser(box: Sandbox, tmp_path: Path) -> None:
    await postgres_world(box)
    await psql(box, "CREATE ROLE boss SUPERUSER LOGIN PASSWORD 'a ''b@/'")
    url = "postgresql://boss:a%20%27b%40%2F@127.0.0.1:5432/shop"
    driver = driver_of(box, StateSpec(kind="postgres", url=url))
    digest, described = await driver.digest(), await driver.describe()
    await driver.snapshot(tmp_path)
    for sql in ("DELETE FROM child; UPDATE t SET v = 'x'", "DROP TABLE t CASCADE"):
        await psql(box, sql)
        assert await driver.digest() != digest
        await driver.restore(tmp_path)
        assert await driver.describe() == described
        assert await driver.digest() == digest
    wrong = driver_of(box, StateSpec(kind="postgres", url=url.replace("boss:a", "boss:b")))
    with pytest.raises(EnvironmentFailed, match="password authentication failed"):
        await wrong.digest()


async def test_one_database_of_redis_leaves_the_others(box: Sandbox, tmp_path: Path) -> None:
    await box.spawn("exec redis-server --save '' --requirepass p --dir /tmp")
    await eventually(box, "redis-cli ping")
    r = "REDISCLI_AUTH=p redis-cli"
    await sh(box, f"{r} -n 3 set mine 1 px 900000; {r} set other 1; {r} -n 4 set far 1")
    driver = driver_of(box, StateSpec(kind="redis", url="redis://:p@127.0.0.1:6379/3"))
    digest = await driver.digest()
    await driver.snapshot(tmp_path)
    await sh(box, f"{r} -n 3 del mine; {r} -n 3 set new 1; {r} set other 2; {r} -n 4 del far")
    assert await driver.digest() != digest
    await driver.restore(tmp_path)
    assert await driver.digest() == digest
    assert await sh(box, f"{r} get other; {r} -n 4 exists far; {r} -n 3 keys '*'") == "2\n0\nmine\n"
    left = int(await sh(box, f"{r} -n 3 pttl mine"))
    assert 800_000 < left <= 900_000
    refused = driver_of(box, StateSpec(kind="redis", url="redis://:wrong@127.0.0.1:6379"))
    with pytest.raises(EnvironmentFailed, match="WRONGPASS"):
        await refused.digest()
