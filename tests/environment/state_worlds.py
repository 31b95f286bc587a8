"""Live worlds for the state drivers: one for each kind, with changes, a writer and a killer."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.drivers import StateDriver
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Endpoint,
    Sandbox,
)
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.state.make import make_driver
from ramify.testing.conformance_state import NumberWriter, StateBench

DOCKERFILE = """
FROM {base}
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends postgresql redis-server sqlite3 python3 && \
    rm -rf /var/lib/apt/lists/*
"""
HOSTILE = 'it\'s "quoted"\n--; DROP TABLE t;\\ żółw \U0001f422'


class Site:
    """The least of a world that drivers ask: ports of the sandbox."""

    def __init__(self, sandbox: Sandbox, port: int = 8000) -> None:
        self._sandbox, self._port = sandbox, port

    async def base_url(self, service: str) -> str:
        endpoint = await self.endpoint(self._port)
        return f"http://{endpoint.host}:{endpoint.port}"

    async def endpoint(self, port: int) -> Endpoint:
        return await self._sandbox.expose_port(port)

    async def stop(self, service: str) -> None:
        raise AssertionError("a driver stops no service by itself")

    async def start(self, service: str) -> None:
        raise AssertionError("a driver starts no service by itself")


def driver_of(sandbox: Sandbox, spec: StateSpec, port: int = 8000) -> StateDriver:
    return make_driver(spec, sandbox, Site(sandbox, port))


async def sh(sandbox: Sandbox, script: str, user: str = "root", stdin: bytes | None = None) -> str:
    result = await sandbox.exec(script, user=user, stdin=stdin)
    assert result.ok, (script, result)
    return result.stdout.decode("utf-8", "surrogateescape")


async def python(sandbox: Sandbox, script: str) -> str:
    result = await sandbox.exec(["python3", "-I", "-"], stdin=script.encode())
    assert result.ok, (script, result)
    return result.stdout.decode()


async def eventually(sandbox: Sandbox, script: str, user: str = "root") -> None:
    async with asyncio.timeout(60):
        while not (await sandbox.exec(script, user=user)).ok:  # noqa: ASYNC110  (it is inside)
            await asyncio.sleep(0.05)


# The writer inside: `write(n)` returns when n is acknowledged. It reads orders line by line and
# answers each; between `go` and `pause` it writes.
WRITER = """
import os, select, sys, time
{setup}
n, going = 0, False
os.set_blocking(0, False)
while True:
    ready = select.select([0], [], [], 0 if going else None)[0]
    if ready:
        line = os.read(0, 65536)
        if not line:
            break
        for order in line.split():
            if order == b"go": going = True
            if order == b"pause": going = False
            os.write(1, b"%d\\n" % n)
    if going:
        write(n + 1)
        n += 1
"""


class Writer:
    """Implements `NumberWriter` with a Python program inside."""

    def __init__(self, sandbox: Sandbox, setup: str, read: Callable[[], Awaitable[str]]) -> None:
        self._sandbox, self._setup, self._read = sandbox, setup, read
        self._process: Process | None = None
        self._buffer = b""

    async def go(self) -> None:
        await self._order("go")

    async def pause(self) -> None:
        await self._order("pause")

    async def acknowledged(self) -> int:
        return await self._order("told")

    async def stored(self) -> list[int]:
        return [int(word) for word in (await self._read()).split()]

    async def _order(self, order: str) -> int:
        if self._process is None:
            script = WRITER.format(setup=self._setup)
            self._process = await self._sandbox.spawn(["python3", "-I", "-u", "-c", script])
        await self._process.write(f"{order}\n".encode())
        while b"\n" not in self._buffer:
            data = await self._process.read()
            if not data:
                raise AssertionError(f"the writer died: {await self._process.read_err()!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return int(line)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a world offers to the suite."""

    driver: StateDriver
    change: Callable[[int], Awaitable[None]]
    foreign: StateDriver | None = None
    writer: NumberWriter | None = None
    kill: Callable[[], Awaitable[None]] | None = None

    def bench(self, scratch: Path, rounds: int) -> StateBench:
        return StateBench(
            self.driver, self.change, scratch, self.foreign, self.writer, self.kill, rounds
        )


SQLITE_SETUP = """
import sqlite3
for name, mode in (("/data/a b/x.db", "{mode}"), ("/data/it's/x.db", "DELETE")):
    db = sqlite3.connect(name)
    db.execute("PRAGMA journal_mode=" + mode)
    db.execute("CREATE TABLE numbers (n INTEGER)")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v, f REAL)")
    db.execute("CREATE TABLE w (k TEXT COLLATE NOCASE PRIMARY KEY, v) WITHOUT ROWID")
    db.execute('CREATE TABLE "odd ""name" ("rowid" TEXT, "a b" BLOB)')
    db.execute("CREATE INDEX at ON t(v)")
    db.execute("CREATE VIEW seen AS SELECT count(*) FROM t")
    values = [None, 1, -2**63, 2**63 - 1, 1e308, 5e-324, "", "ż\\n'\\"", b"", b"\\x00" * 70000]
    db.executemany("INSERT INTO t (v, f) VALUES (?, 0.1)", [(v,) for v in values])
    db.executemany("INSERT INTO w VALUES (?, ?)", [("K" + str(i), i) for i in range(300)])
    db.execute('INSERT INTO "odd ""name" VALUES (?, ?)', (None, b"x"))
    db.commit()
    db.close()
"""
SQLITE_WRITE = """
import sqlite3
both = [sqlite3.connect(p, timeout=30, isolation_level=None)
        for p in ("/data/a b/x.db", "/data/it's/x.db")]
def write(n):
    both[0].execute("INSERT INTO numbers VALUES (?)", (n,))
    both[1].execute("SELECT count(*) FROM t").fetchone()
"""
SQLITE_CHANGES = (
    "INSERT INTO t (v) VALUES ('new'); DELETE FROM t WHERE id = 2",
    "UPDATE w SET v = x'00' WHERE k = 'k7'; PRAGMA user_version = 9",
    "DROP TABLE t; CREATE TABLE t (other TEXT, v)",
    "ALTER TABLE w ADD COLUMN extra DEFAULT 5",
    "DELETE FROM w",
    "CREATE TABLE big (b); WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c "
    "LIMIT 400) INSERT INTO big SELECT randomblob(4000) FROM c",
)


async def sqlite_world(sandbox: Sandbox, mode: str = "WAL") -> Parts:
    await sh(sandbox, "mkdir -p '/data/a b' \"/data/it's\"; chmod 777 /data /data/*")
    await python(sandbox, SQLITE_SETUP.format(mode=mode))
    await sh(sandbox, "chown -R 1234:1234 /data; chmod 640 '/data/a b/x.db'")

    async def change(number: int) -> None:
        sql = SQLITE_CHANGES[number % len(SQLITE_CHANGES)]
        await python(
            sandbox,
            "import glob, sqlite3\nfor path in glob.glob('/data/*/x.db'):\n"
            "    d = sqlite3.connect(path, timeout=60, isolation_level=None)\n"
            f"    d.executescript({sql!r})\n    d.close()",
        )
        if number % 4 == 1:
            await sh(sandbox, "rm \"/data/it's/x.db\"; chmod 600 '/data/a b/x.db'")
        if number % 4 == 2:
            await python(
                sandbox,
                "import sqlite3; d = sqlite3.connect('/data/a b/-new.db'); "
                "d.execute('CREATE TABLE x (y)'); d.close()",
            )

    async def read() -> str:
        return await python(
            sandbox,
            "import sqlite3; d = sqlite3.connect('/data/a b/x.db', timeout=60); "
            "print(*[n for n, in d.execute('SELECT n FROM numbers ORDER BY rowid')])",
        )

    spec = StateSpec(kind="sqlite", paths=["/data/*/*.db"])
    return Parts(
        driver_of(sandbox, spec),
        change,
        foreign=driver_of(sandbox, StateSpec(kind="sqlite", paths=["/data/it's/*.db"])),
        writer=Writer(sandbox, SQLITE_WRITE, read),
    )


FILES_SETUP = r"""
mkdir -p /srv/w/sub/deep /srv/w/empty /srv/w/cache; cd /srv/w
printf one > one; printf x > "$(printf -- '-n\nq\377')"; printf two > "sub/it's \"two\""
ln -s one link; ln -s /etc/passwd abs; ln -s nowhere dangling; mkfifo pipe; ln one second
chmod 4755 one; chmod 700 sub/deep; chown 12:34 sub/deep link; head -c 300000 /dev/zero > big
printf c > cache/c; : > /srv/log; printf 'a = 1\n' > /etc/w.conf
"""
FILES_CHANGES = (
    "printf more >> one; rm sub/it*; printf 2 > 'new\n1'",
    "rm link; mkdir link; printf 1 > link/1; chmod 600 big",
    "rm -r sub; printf s > sub; rm pipe; printf p > pipe",
    "ln -sfn /tmp dangling; mv one two; mkdir -p a/b/c; printf x > a/b/c/x",
    "chown 5:6 empty; rm -- -n*; rm abs; printf ab > abs; rm /etc/w.conf",
    "rm -r /srv/w; ln -s /etc /srv/w",
)


async def files_world(sandbox: Sandbox) -> Parts:
    await sh(sandbox, FILES_SETUP)

    async def change(number: int) -> None:
        line = FILES_CHANGES[number % len(FILES_CHANGES)]
        await sh(sandbox, f"cd /srv/w; printf y > cache/{number}; {line}")

    spec = StateSpec(kind="files", paths=["/srv/w", "/etc/w.*"], exclude=["cache/*"])
    other = StateSpec(kind="files", paths=["/srv/log"])
    return Parts(driver_of(sandbox, spec), change, driver_of(sandbox, other))


POSTGRES_SETUP = """
CREATE TABLE numbers (n bigint);
CREATE TABLE t (id serial PRIMARY KEY, v text, f float8, b bytea, j jsonb, a int[], n numeric);
INSERT INTO t (v, f, b, j, a, n) VALUES
  (NULL, 'NaN', '\\x00ff', '{"a": [1, null]}', '{1,NULL}', 1e200),
  ('', '-Infinity', '', 'null', '{}', 'NaN'),
  (E'tab\\t nl\\n \\\\ żółw', 0.1, NULL, NULL, NULL, -0);
CREATE TABLE parts (a int, b text, PRIMARY KEY (a, b)) PARTITION BY RANGE (a);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t, twice int GENERATED ALWAYS AS (t * 2)
  STORED);
INSERT INTO child (id, t) VALUES (1, 1); INSERT INTO parts VALUES (1, 'x');
CREATE TABLE nokey (a text); INSERT INTO nokey VALUES ('x'), ('x'), (NULL);
CREATE SCHEMA "o'dd ""s"; CREATE TABLE "o'dd ""s"."-T'able" ("a b" int PRIMARY KEY);
INSERT INTO "o'dd ""s"."-T'able" VALUES (7);
CREATE VIEW seen AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW kept AS SELECT v FROM t;
CREATE FUNCTION loud() RETURNS trigger AS 'BEGIN RAISE EXCEPTION ''no''; END' LANGUAGE plpgsql;
CREATE TRIGGER no BEFORE INSERT ON nokey FOR EACH ROW EXECUTE FUNCTION loud();
SELECT lo_from_bytea(4711, 'large');
"""
POSTGRES_CHANGES = (
    "INSERT INTO t (v) VALUES ('new'); DELETE FROM child; UPDATE parts SET b = 'y'",
    'ALTER TABLE t ADD COLUMN extra int DEFAULT 5; DROP SCHEMA "o\'dd ""s" CASCADE',
    "SELECT nextval('t_id_seq'); SELECT lo_put(4711, 0, 'L'); DELETE FROM nokey",
    "DROP TABLE child; CREATE ROLE {role}; GRANT SELECT ON t TO {role}",
    "SELECT lo_create(0); UPDATE t SET f = 1 WHERE id = 1",
    "CREATE TABLE other (x int); ALTER DATABASE shop SET work_mem = '1MB'",
)
POSTGRES_WRITE = """
import subprocess
psql = subprocess.Popen(
    ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "psql", "-X", "-d",
     "shop"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/")
def write(n):
    while True:
        psql.stdin.write(b"INSERT INTO numbers VALUES (%d);\\n" % n)
        psql.stdin.flush()
        said = psql.stdout.readline()
        if said.startswith(b"INSERT 0 1"):
            return
        if not said:
            raise SystemExit("psql ended")
        if b"terminating" in said or b"FATAL" in said:
            raise SystemExit(said)
"""


async def psql(sandbox: Sandbox, sql: str, database: str = "shop") -> str:
    line = f"psql -X -q -At -v ON_ERROR_STOP=1 -d {database}"
    return await sh(sandbox, line, "postgres", sql.encode())


async def postgres_world(sandbox: Sandbox) -> Parts:
    await sh(sandbox, "pg_ctlcluster 15 main start")
    await psql(sandbox, "CREATE DATABASE shop", "postgres")
    await psql(sandbox, POSTGRES_SETUP)

    async def change(number: int) -> None:
        sql = POSTGRES_CHANGES[number % len(POSTGRES_CHANGES)]
        await psql(sandbox, sql.replace("{role}", f"role{number}"))

    async def read() -> str:
        return await psql(sandbox, "SELECT n FROM numbers ORDER BY ctid")

    async def kill() -> None:
        await sh(sandbox, "kill -9 $(head -1 /var/lib/postgresql/15/main/postmaster.pid)")

    return Parts(
        driver_of(sandbox, StateSpec(kind="postgres")),
        change,
        driver_of(sandbox, StateSpec(kind="postgres", name="another", user="postgres")),
        Writer(sandbox, POSTGRES_WRITE, read),
        kill,
    )


REDIS_SETUP = r"""
r="redis-cli"; $r set a 1; $r set "$(printf "it's \"q\"\n\377")" v; $r -n 3 hset h f 1 g 2
$r rpush l 1 2; $r zadd z 1.5 m -inf n; $r xadd s 1-1 a b; $r xgroup create s grp 0
$r set timed x ex 100000; $r sadd st a b c; head -c 100000 /dev/urandom | $r -x set big
$r setbit bits 100 1; $r pfadd hll a b c; $r sadd ints 1 2 3
"""
REDIS_CHANGES = (
    "$r set a 2; $r del l",
    "$r flushall; $r -n 7 set x 1",
    "$r persist timed; $r zadd z 2 m",
    "$r del z; $r set z text; $r -n 3 hset h f 3",
    "$r xreadgroup group grp c streams s '>'; $r spop st",
    "$r function load \"#!lua name=l$n\nredis.register_function('f$n', function() end)\"",
)
REDIS_WRITE = """
import socket
server = socket.create_connection(("127.0.0.1", 6379))
def write(n):
    server.sendall(b"RPUSH numbers %d\\r\\n" % n)
    if server.recv(4096)[:1] != b":":
        raise SystemExit("refused")
"""


async def redis_world(sandbox: Sandbox) -> Parts:
    server = await sandbox.spawn("exec redis-server --save '' --port 6379 --dir /tmp")
    await eventually(sandbox, "redis-cli ping")
    await sh(sandbox, REDIS_SETUP)

    async def change(number: int) -> None:
        line = REDIS_CHANGES[number % len(REDIS_CHANGES)]
        await sh(sandbox, f"n={number}; r=redis-cli; {line}")

    async def read() -> str:
        return await sh(sandbox, "redis-cli lrange numbers 0 -1")

    async def kill() -> None:
        await server.aclose()

    return Parts(
        driver_of(sandbox, StateSpec(kind="redis")),
        change,
        driver_of(sandbox, StateSpec(kind="redis", url="redis://127.0.0.1:6379/3")),
        Writer(sandbox, REDIS_WRITE, read),
        kill,
    )


SERVICE = """
import http.server, json, threading
state, lock = {"count": 0, "said": ["hi"]}, threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body=b""):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(json.dumps(state, sort_keys=True).encode())
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with lock:
            if self.path == "/restore":
                state.clear()
                state.update(json.loads(body))
            if self.path == "/more":
                state["count"] += 1
                state["said"].append(str(state["count"]) + " it's")
            self.answer(json.dumps(state, sort_keys=True).encode())
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


async def http_world(sandbox: Sandbox) -> Parts:
    server = await sandbox.spawn(["python3", "-I", "-c", SERVICE])
    probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/').read()"
    await eventually(sandbox, f"python3 -I -c {shlex.quote(probe)} 2>/dev/null")

    async def change(number: int) -> None:
        await python(
            sandbox,
            "import urllib.request as u\n"
            f"for _ in range({number} + 1): u.urlopen('http://127.0.0.1:8000/more', b'x').read()",
        )

    async def kill() -> None:
        await server.aclose()

    spec = StateSpec(
        kind="http", service="notes", snapshot="/dump", restore="/restore", digest="/state",
        mutate="/more",
    )  # fmt: skip
    other = StateSpec(kind="http", service="mail", snapshot="/dump", restore="/restore")
    return Parts(driver_of(sandbox, spec), change, driver_of(sandbox, other), kill=kill)


async def command_world(sandbox: Sandbox) -> Parts:
    await sh(sandbox, 'mkdir -p /srv/c; printf 1 > /srv/c/count; printf x > "/srv/c/it\'s"')

    async def change(number: int) -> None:
        await sh(sandbox, f"printf {number} >> /srv/c/count; printf n > /srv/c/new{number}")

    spec = StateSpec(
        kind="command",
        snapshot='cp -R /srv/c/. "$RAMIFY_STATE_DIR"',
        restore='rm -rf /srv/c/* && cp -R "$RAMIFY_STATE_DIR"/. /srv/c',
    )
    other = StateSpec(kind="command", name="other", snapshot="true", restore="true")
    return Parts(driver_of(sandbox, spec), change, driver_of(sandbox, other))


WORLDS = {
    "sqlite": sqlite_world,
    "sqlite-rollback": lambda sandbox: sqlite_world(sandbox, "DELETE"),
    "files": files_world,
    "postgres": postgres_world,
    "redis": redis_world,
    "http": http_world,
    "command": command_world,
}


@asynccontextmanager
async def live(kind: str, sandbox: Sandbox) -> AsyncGenerator[Parts]:
    """A world of a kind in a sandbox, which ends with it."""
    try:
        yield await WORLDS[kind](sandbox)
    finally:
        await sandbox.teardown()
