"""The parts of the state drivers on their own: what is read of hostile copies, and refusals."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sqlite3
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, EnvironmentFailed
from ramify.contracts.sandbox import Endpoint
from ramify.planes.environment.parts import Parts
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.state import sqlite_reader
from ramify.planes.environment.state.make import make_driver, state_name
from ramify.planes.environment.state.postgres_rows import entries, rows_digest, schema_text
from ramify.planes.environment.state.resp import ReplyError, RespClient
from ramify.planes.environment.state.sealed import seal, unseal
from ramify.planes.environment.state.tree_archive import read_archive, write_archive

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.binary(max_size=300),
)


def read(doing: str, path: Path) -> Any:
    """What the reader says, in a process of its own as the driver runs it."""
    import subprocess

    command = [sys.executable, "-I", sqlite_reader.__file__, doing, "20", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace"))
    return json.loads(done.stdout)


def database(path: Path, rows: list[tuple[object, ...]]) -> Path:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        db.executemany("INSERT INTO t VALUES (?, ?)", rows)
    db.close()
    return path


@settings(max_examples=12, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), VALUES)
def test_values_are_told_apart(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], other: object
) -> None:
    folder = tmp_path_factory.mktemp("values")
    rows = list(enumerate(values))
    one = database(folder / "one.db", rows)
    same = database(folder / "same.db", list(reversed(rows)))
    assert read("digest", one) == read("digest", same)
    assert read("describe", one) == read("describe", same)
    changed = database(folder / "changed.db", [(0, other), *rows[1:]])
    equal = type(other) is type(values[0]) and (
        other == values[0]
        and not (
            isinstance(other, float) and math.copysign(1, other) != math.copysign(1, values[0])
        )  # type: ignore[arg-type]
    )
    assert (read("digest", one) == read("digest", changed)) == equal
    assert (read("describe", one) == read("describe", changed)) == equal


def test_names_and_keys_of_every_sort(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    db = sqlite3.connect(path)
    db.create_collation("OURS", lambda a, b: (a > b) - (a < b))
    db.create_function("mine", 1, lambda x: x, deterministic=True)
    db.executescript(
        """
        CREATE TABLE "a ""b'\n-" (rowid TEXT, _rowid_ TEXT, oid TEXT);
        INSERT INTO "a ""b'\n-" VALUES ('r', NULL, x'00'), ('r', NULL, x'00');
        CREATE TABLE pair (a, b, PRIMARY KEY (b, a)) WITHOUT ROWID;
        INSERT INTO pair VALUES (1, 'x'), (2, 'x');
        CREATE TABLE maybe (k TEXT PRIMARY KEY); INSERT INTO maybe VALUES (NULL), (NULL), ('k');
        CREATE TABLE odd (c TEXT COLLATE OURS PRIMARY KEY) WITHOUT ROWID;
        INSERT INTO odd VALUES ('b'), ('a');
        CREATE TABLE made (a, twice AS (a * 2), kept AS (a * 3) STORED);
        INSERT INTO made VALUES (4);
        CREATE TABLE indexed (a); CREATE INDEX i ON indexed (mine(a));
        INSERT INTO indexed VALUES (1);
        CREATE VIEW boom AS SELECT zeroblob(1000000000) FROM t;
        CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES ('find me');
        """
    )
    db.execute("INSERT INTO maybe VALUES (CAST(x'ff' AS TEXT))")
    db.commit()
    db.close()
    told = read("describe", path)
    assert told['pair[["x", 1]]'] == '{"a": 1, "b": "x"}'
    assert told["maybe[rowid 1]"] == told["maybe[rowid 2]"] == '{"k": null}'
    assert told["made[rowid 1]"] == '{"a": 4}'
    assert set(told) >= {'odd["a"]', 'odd["b"]', "CREATE table words", "indexed[rowid 1]"}
    odd = json.dumps("a \"b'\n-")
    assert {f"{odd}[rowid None]", f"{odd}[rowid None] #2", f"CREATE table {odd}"} <= set(told)
    assert any("find me" in text for text in told.values())  # in the table behind the virtual one
    assert len(read("digest", path)) == 64


@pytest.mark.parametrize("damage", ["text", "cut", "zeros", "pages"])
def test_a_damaged_copy_is_said(tmp_path: Path, damage: str) -> None:
    path = database(tmp_path / "x.db", [(n, "x" * 3000) for n in range(50)])
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"not a database at all" * 100)
    elif damage == "cut":
        del data[5000:]
    elif damage == "zeros":
        data[4096:] = bytes(len(data) - 4096)
    else:
        data[4096 * 3 :] = b"\xff" * (len(data) - 4096 * 3)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.db: "):
        read("digest", path)


def test_many_rows_are_a_digest(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", [(n, n) for n in range(100_001)])
    assert read("describe", path) is None
    assert len(read("digest", path)) == 64


# ---- archives of trees


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, link, 0o640
    return found


def test_an_archive_is_read_and_never_extracted(tmp_path: Path) -> None:
    tar = archive(
        tmp_path / "x.tar",
        [
            (member("./srv/../../../etc/evil"), b"x"),
            (member("srv/f"), b"content"),
            (member("srv/l", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("srv/h", tarfile.LNKTYPE, "srv/f"), b""),
            (member("srv/dev", tarfile.CHRTYPE), b""),
            (member("srv/cache/deep/x"), b"y"),
        ],
    )
    found = read_archive(tar, ["cache"])
    assert sorted(found) == ["/srv/../../../etc/evil", "/srv/f", "/srv/h", "/srv/l"]
    assert found["/srv/h"] == found["/srv/f"]
    assert str(found["/srv/l"]) == "link 777 0:0 -> /etc/passwd"
    some = tmp_path / "some.tar"
    write_archive(tar, some, {"/srv/h", "/srv/l"})
    again = read_archive(some, [])
    assert again == {path: found[path] for path in ("/srv/h", "/srv/l")}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_hostile_archive_is_an_error_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    archive(path, [(member("a/b"), b"content"), (member("a/l", tarfile.SYMTYPE, "b"), b"")])
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, 2047))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), 700, 1600]))])
    try:
        read_archive(path, [])
    except EnvironmentFailed:
        return


def test_a_sparse_bomb_is_refused(tmp_path: Path) -> None:
    huge = member("bomb", tarfile.GNUTYPE_SPARSE)
    huge.size = 1 << 60
    path = tmp_path / "x.tar"
    path.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(EnvironmentFailed):
        read_archive(path, [])


# ---- the Redis protocol


async def answer(
    data: bytes, *commands: tuple[bytes | str | int, ...], largest: int = 10_000
) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        async with RespClient(Endpoint(host, port), largest) as client:
            return await client.pipeline(commands or [("PING",)])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-12\r\n", -12),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"$5\r\na\r\nb\xff\r\n", b"a\r\nb\xff"),
        (b"*3\r\n$1\r\nx\r\n*0\r\n*1\r\n:7\r\n", [b"x", [], [7]]),
    ],
)
async def test_replies(data: bytes, expected: object) -> None:
    assert await answer(data) == [expected]


async def test_an_error_is_a_reply_of_its_own() -> None:
    first, second = await answer(b"-NOPERM no\r\n+OK\r\n", ("A",), ("B",))
    assert isinstance(first, ReplyError)
    assert str(first) == "NOPERM no"
    assert second == b"OK"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"+OK", b"HTTP/1.1 400 Bad\r\n", b"$5\r\nabc", b"$x\r\n", b"$99999999999\r\n",
        b"*99999999999\r\n", b"*1\r\n" * 40 + b":1\r\n", b"+" + b"x" * 200_000,
        b"*4000\r\n" + b"$10\r\n0123456789\r\n" * 4000,
    ],
)  # fmt: skip
async def test_what_is_not_redis_is_an_os_error(data: bytes) -> None:
    with pytest.raises(OSError, match=r"not Redis|hung up|reset"):
        await answer(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_reply_or_an_os_error(data: bytes) -> None:
    try:
        asyncio.run(answer(data))
    except OSError:
        return


# ---- PostgreSQL's text


def test_rows_of_copy(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(
        'public.t\t1\t{"a": "x\\\\n\\ty"}\npublic.n\t\\N\t{"a":1}\npublic.n\t\\N\t{"a":1}\n'
        f"public.t\t2\t{'x' * 10_000}\n"
    )
    found = entries(path, 100)
    assert found is not None
    assert found["public.t[1]"] == '{"a": "x\\n\ty"}'
    assert len([key for key in found if key.startswith("public.n[row ")]) == 2
    assert len(found["public.t[2]"]) < 400
    assert entries(path, 2) is None
    lines = path.read_bytes().splitlines(keepends=True)
    other = tmp_path / "other"
    other.write_bytes(b"".join(reversed(lines)))
    assert rows_digest(path) == rows_digest(other)
    other.write_bytes(b"".join(lines[:-1]))
    assert rows_digest(path) != rows_digest(other)


def test_schemas_are_compared_without_noise() -> None:
    one = (
        b"--\n-- Dumped by 15.1\n\\restrict abc\nSET statement_timeout = 0;\nCREATE TABLE t (a);\n"
    )
    two = b"-- Dumped by 15.2\n\\restrict xyz\n\nCREATE TABLE t (a);\n"
    assert schema_text(one) == schema_text(two)
    assert schema_text(one) != schema_text(two.replace(b"(a)", b"(b)"))


# ---- seals and specs


async def test_a_seal_is_of_one_part_and_kind(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    await seal(tmp_path, "sqlite", "sqlite /a", {"n": 1})
    assert await unseal(tmp_path, "sqlite", "sqlite /a", dict[str, int]) == {"n": 1}
    for kind, of, about in (
        ("files", "sqlite /a", dict[str, int]),
        ("sqlite", "sqlite /b", dict[str, int]),
        ("sqlite", "sqlite /a", list[str]),
    ):
        with pytest.raises(EnvironmentFailed, match=of):
            await unseal(tmp_path, kind, of, about)
    (tmp_path / "more").write_bytes(b"")
    with pytest.raises(EnvironmentFailed, match="damaged"):
        await unseal(tmp_path, "sqlite", "sqlite /a", dict[str, int])


@pytest.mark.parametrize(
    "spec",
    [
        StateSpec(kind="sqlite"),
        StateSpec(kind="files", paths=["relative"]),
        StateSpec(kind="command", snapshot="x"),
        StateSpec(kind="http", snapshot="/x", restore="/y"),
        StateSpec(kind="redis", url="redis://elsewhere:6379"),
        StateSpec(kind="redis", url="redis://127.0.0.1:6379/x"),
        StateSpec(kind="redis", url="rediss://127.0.0.1"),
        StateSpec(kind="postgres", url="postgresql://u@example.org/db"),
        StateSpec(kind="postgres", url="postgresql://127.0.0.1/"),
    ],
)
def test_a_spec_that_cannot_be_served_is_refused(spec: StateSpec) -> None:
    with pytest.raises(ConfigError):
        make_driver(spec, None, None)  # type: ignore[arg-type]  # nothing is touched


def test_names_tell_no_passwords() -> None:
    spec = StateSpec(kind="postgres", url="postgresql://joe:secret@127.0.0.1:5432/shop")
    assert state_name(spec) == "postgres 127.0.0.1:5432/shop"
    assert state_name(StateSpec(kind="sqlite", paths=["/a", "/b*"])) == "sqlite /a /b*"
    assert state_name(StateSpec(kind="files", paths=["/a"], name="mine")) == "mine"


async def test_a_world_without_state_has_a_snapshot(tmp_path: Path) -> None:
    parts = Parts(())
    digest = await parts.snapshot(tmp_path)
    await parts.restore(tmp_path, digest)
    assert await parts.digest() == digest
