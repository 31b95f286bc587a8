"""State in SQLite files: whole databases, through SQLite's own backup, under live servers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import posixpath
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.inside import inside
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.state import sqlite_reader
from ramify.planes.environment.state.hands import Hands, Owner
from ramify.planes.environment.state.sealed import seal, unseal
from ramify.planes.environment.state.sqlite_inside import call, find_engine

_SIDECARS = ("-wal", "-shm", "-journal")


class _File(msgspec.Struct, frozen=True):
    """One database of a snapshot: its copy, where it lives inside, and to whom it belongs."""

    copy: str
    path: str
    uid: int
    gid: int
    mode: str


class SqliteDriver:
    """Implements `StateDriver` for any number of SQLite files, in any journal mode.

    A snapshot is of one moment for all files together where Python is inside (all are held by read
    transactions while they are copied), for each file by itself where only the `sqlite3` program
    is. `restore` writes through SQLite into the live files, so that open connections see the old
    content with their next statement; a transaction that is open is waited for, then the restore
    fails and says so. Files that the snapshot has not are removed, missing ones made again;
    owners and modes are put back. What is in the files is read on the host from the copies.

    Raises UnsupportedError where neither Python nor `sqlite3` is inside.
    """

    def __init__(self, hands: Hands, paths: Sequence[str]) -> None:
        self._hands = hands
        self._paths = tuple(paths)
        self._engine: str | None = None

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`. Every copy is read once, so that a damaged one is noticed now."""
        files = await self._copy(place / "files")
        await _read(self._hands, "digest", [place / "files" / file.copy for file in files])
        await seal(place, "sqlite", self.name, files)

    async def restore(self, place: Path) -> None:
        """See `StateDriver`. Ends with SQLite's integrity check of the live files."""
        files = await unseal(place, "sqlite", self.name, list[_File])
        engine, hands = await self._program(), self._hands
        live = await self._live()
        await call(hands, engine, "probe", list(live))
        async with hands.place() as work:
            await hands.give(place / "files", f"{work}/files")
            await self._make([file for file in files if file.path not in live])
            pairs = [(f"{work}/files/{file.copy}", file.path) for file in files]
            await call(hands, engine, "in", [path for pair in pairs for path in pair])
        await hands.own({file.path: Owner(file.uid, file.gid, file.mode) for file in files})
        await self._remove(set(live) - {file.path for file in files})
        await call(hands, engine, "check", [file.path for file in files])

    async def digest(self) -> str:
        """See `StateDriver`. Schema, rows, owners and modes; not the layout of the files."""
        async with self._copies() as (folder, files):
            digests = await _read(self._hands, "digest", [folder / file.copy for file in files])
        told = [
            [f.path, f.uid, f.gid, f.mode, digest] for f, digest in zip(files, digests, strict=True)
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. One part for each file; rows by primary key, else by rowid."""
        async with self._copies() as (folder, files):
            copies = [folder / file.copy for file in files]
            found: dict[str, dict[str, str]] = {}
            for file, copy in zip(files, copies, strict=True):
                (entries,) = await _read(self._hands, "describe", [copy])
                if entries is None:
                    (digest,) = await _read(self._hands, "digest", [copy])
                    entries = {"digest": str(digest)}
                entries = msgspec.convert(entries, dict[str, str])
                part = f"sqlite {file.path.encode('utf-8', 'backslashreplace').decode()}"
                found[part] = {"file": f"{file.mode} {file.uid}:{file.gid}", **entries}
        return found

    async def mutate(self) -> str:
        """Make a table in the first database and write a row into it."""
        engine = await self._program()
        paths = list(await self._live())
        if not paths:
            raise UnsupportedError(f"{self.name}: there is no database to change")
        await call(self._hands, engine, "mutate", paths[:1])
        return f"a row of a new table ramify_check in {paths[0]}"

    @asynccontextmanager
    async def _copies(self) -> AsyncGenerator[tuple[Path, list[_File]]]:
        async with Scratch() as place:
            yield place / "files", await self._copy(place / "files")

    async def _copy(self, folder: Path) -> list[_File]:
        """Copy the live databases into `folder` of the host, as of now."""
        engine, hands = await self._program(), self._hands
        live = await self._live()
        files = [
            _File(f"{number}.db", path, owner.uid, owner.gid, owner.mode)
            for number, (path, owner) in enumerate(live.items())
        ]
        await asyncio.to_thread(folder.mkdir, parents=True)
        if files:
            async with hands.place() as work:
                pairs = [(file.path, f"{work}/{file.copy}") for file in files]
                await call(hands, engine, "out", [path for pair in pairs for path in pair])
                await hands.take(work, folder)
        return files

    async def _program(self) -> str:
        if self._engine is None:
            self._engine = await find_engine(self._hands)
        if self._engine is None:
            raise UnsupportedError(
                f"{self.name}: a live SQLite database can only be copied by SQLite, and the image "
                "has neither python3 (with its sqlite3 module) nor the sqlite3 program: install "
                "one of them, or declare the state as `command` or `files` of a stopped service"
            )
        return self._engine

    async def _live(self) -> dict[str, Owner]:
        """The databases that are there: regular files behind the names, each once."""
        found = await self._hands.expand(self._paths)
        names = [
            path
            for path in found
            if not any(path.endswith(end) and path[: -len(end)] in found for end in _SIDECARS)
        ]
        lines = "".join(
            f"[ -f {inside(p)} ] && {{ readlink -f {inside(p)} || exit; }}; printf '\\0'\n"
            for p in names
        )
        told = await self._hands.run(f"printf '%s\\0' \"$RAMIFY_ROOT\"\n{lines}", "find the files")
        root, *real = told.split(b"\0")[:-1]
        paths = [p.removesuffix(b"\n")[len(root) :] for p in real if p]
        unique = {path.decode("utf-8", "surrogateescape") for path in paths}
        if unique == set(names):
            return {path: found[path] for path in sorted(unique)}
        patterns = [_literal(path) for path in sorted(unique)]
        return await self._hands.expand(patterns) if patterns else {}

    async def _make(self, files: Sequence[_File]) -> None:
        """Make empty files where databases were; what is left of their journals is not theirs."""
        lines = [
            f"mkdir -p {inside(posixpath.dirname(file.path))} && "
            + "rm -f " + " ".join(inside(file.path + end) for end in _SIDECARS)
            + f" && : > {inside(file.path)}"
            for file in files
        ]  # fmt: skip
        if lines:
            await self._hands.run("set -e\n" + "\n".join(lines), "make the missing databases")
            owners = {file.path: Owner(file.uid, file.gid, file.mode) for file in files}
            await self._hands.own(owners)

    async def _remove(self, paths: set[str]) -> None:
        """Remove databases that the snapshot has not."""
        words = [inside(path + end) for path in sorted(paths) for end in ("", *_SIDECARS)]
        if words:
            await self._hands.run(f"rm -f {' '.join(words)}", "remove databases made since")


def _literal(path: str) -> str:
    """A pattern that matches one path only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


async def _read(hands: Hands, doing: str, copies: Sequence[Path]) -> list[object]:
    """What the reader says of each copy. Raises EnvironmentFailed where one cannot be read."""
    if not copies:
        return []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", sqlite_reader.__file__, doing, str(hands.timeout_sec),
        *map(str, copies),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(hands.timeout_sec):
            out, err = await process.communicate()
    except TimeoutError:
        raise hands.failed("the databases could not be read in time") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err[-1000:].decode(errors="replace").strip() or "its reader died"
        raise hands.failed(f"a copy is not a readable SQLite database: {said}")
    return [msgspec.json.decode(line) for line in out.splitlines()]
