"""What the `sqlite` driver runs inside the sandbox: the online backup API, by Python or the CLI.

Both take and give whole databases through SQLite itself, under its own locks, so that servers
which hold the file open see a change like any other. A database file is never copied over.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ramify.contracts.inside import inside
from ramify.planes.environment.state.hands import Hands

_FIND = r"""
for p in python3 /usr/local/bin/python3 /usr/bin/python3; do
  if "$p" -I -c 'import sqlite3; sqlite3.Connection.backup' 2>/dev/null; then
    command -v "$p"; exit 0; fi
done
command -v sqlite3 || true
"""

# Arguments: what to do, seconds. Standard input: NUL-ended paths, in pairs for `out` and `in`.
_PYTHON = r"""
import os, sqlite3, sys, time
doing, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
root = os.fsencode(os.environ.get("RAMIFY_ROOT", ""))
paths = [root + path for path in sys.stdin.buffer.read().split(b"\0")[:-1]]
pairs = list(zip(paths[0::2], paths[1::2]))

def left():
    return max(0.05, end - time.monotonic())

def connect(path):
    if not os.path.exists(path):
        raise sqlite3.OperationalError("it is not there")
    return sqlite3.connect(path, timeout=left(), isolation_level=None)

def tick(status, remaining, total):
    if time.monotonic() > end:
        raise TimeoutError("it stays locked by another connection")

def reading(path):
    live = connect(path)
    live.execute("BEGIN")
    live.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return live

def out():
    global at
    # All are held at once, so that the copies are of one moment.
    sources = []
    for at, _ in pairs:
        sources.append((at, reading(at)))
    for (at, live), (_, copy) in zip(sources, pairs):
        new = sqlite3.connect(copy)
        new.execute("PRAGMA synchronous=OFF")
        live.backup(new, pages=-1, progress=tick)
        new.close()
    for _, live in sources:
        live.close()

def into():
    global at
    for copy, at in pairs:
        old, live = connect(copy), connect(at)
        old.backup(live, pages=-1, progress=tick, sleep=0.01)
        live.close()
        old.close()

def check():
    global at
    for at in paths:
        live = connect(at)
        try:
            said = [row[0] for row in live.execute("PRAGMA integrity_check(3)")]
        except sqlite3.OperationalError as error:
            if not str(error).startswith(("no such collation", "no such module", "unknown func")):
                raise
            said = ["ok"]  # an extension of the service; the pages are as they were all the same
        if said != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, said)))
        live.close()

at = b""
try:
    if doing == "probe":
        for at in paths:
            reading(at).close()
    elif doing == "mutate":
        live = connect(paths[0])
        live.execute("CREATE TABLE IF NOT EXISTS ramify_check (at REAL)")
        live.execute("INSERT INTO ramify_check VALUES (?)", (time.time(),))
    else:
        {"out": out, "in": into, "check": check}[doing]()
except (sqlite3.Error, OSError) as error:
    sys.exit(f"{os.fsdecode(at) or doing}: {error}")
"""


async def find_engine(hands: Hands) -> str | None:
    """The program inside that reaches the backup API: a Python, `sqlite3`, or None."""
    found = (await hands.run(_FIND, "look for python3 or sqlite3")).decode(errors="replace")
    return found.strip() or None


async def call(hands: Hands, engine: str, doing: str, paths: Sequence[str]) -> None:
    """Do `out` (live, copy, ...), `in` (copy, live, ...), `check`, `probe` or `mutate` (live, ...).

    Raises: EnvironmentFailed.
    """
    if not paths:
        return
    seconds = hands.timeout_sec * 0.8
    if not engine.rsplit("/", 1)[-1].startswith("sqlite3"):
        names = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in paths)
        argv = [engine, "-I", "-c", _PYTHON, doing, str(seconds)]
        await hands.run(argv, _SAYS[doing], stdin=names)
        return
    line = {"out": _cli_out, "in": _cli_in}.get(doing)
    lines = line(paths) if line else [_cli(path, _ONE[doing]) for path in paths]
    script = _RETRY.format(engine=shlex.quote(engine), seconds=int(seconds) + 1)
    await hands.run(script + "\n".join(lines), _SAYS[doing])


_SAYS = {
    "out": "copy the databases",
    "in": "put the databases back",
    "check": "prove the databases whole after the restore",
    "probe": "read the databases",
    "mutate": "change a database",
}
_ONE = {
    "check": ("PRAGMA integrity_check(3);",),
    "probe": ("SELECT count(*) FROM sqlite_master;",),
    "mutate": (
        "CREATE TABLE IF NOT EXISTS ramify_check (at REAL);",
        "INSERT INTO ramify_check VALUES (julianday('now') + random());",
    ),
}
_RETRY = """
end=$(($(date +%s) + {seconds}))
db() {{
  if [ ! -e "$1" ]; then echo "it is not there: $1" >&2; exit 1; fi
  while :; do
    said=$({engine} -batch -bail -init /dev/null "$@" 2>&1) && code=0 || code=$?
    case $said in
    *locked*|*busy*) if [ "$(date +%s)" -lt "$end" ]; then sleep 0.05; continue; fi; code=1;;
    *rror*|*malformed*|*" missing from index "*|*"not a database"*) code=1;;
    esac
    if [ "$code" != 0 ]; then printf '%s\\n' "$said" >&2; exit 1; fi
    return 0
  done
}}
"""


def _cli(path: str, commands: Sequence[str]) -> str:
    return " ".join(["db", inside(path), *map(shlex.quote, (".timeout 2000", *commands))])


def _cli_out(paths: Sequence[str]) -> list[str]:
    # The open transaction keeps the copy of one moment, however often the CLI lets go of the lock.
    begin = ("BEGIN;", "SELECT count(*) FROM sqlite_master;")
    return [
        _cli(live, begin) + f' ".backup \\"$RAMIFY_ROOT{copy}\\""'
        for live, copy in zip(paths[0::2], paths[1::2], strict=True)
    ]


def _cli_in(paths: Sequence[str]) -> list[str]:
    return [
        _cli(live, ()) + f' ".restore \\"$RAMIFY_ROOT{copy}\\""'
        for copy, live in zip(paths[0::2], paths[1::2], strict=True)
    ]
