"""State in files and directories: content, owners, modes and links, put back in place."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.inside import inside
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.state.hands import Hands, tail
from ramify.planes.environment.state.sealed import seal, unseal
from ramify.planes.environment.state.tree_archive import Entry, read_archive, write_archive

_ENTRIES = 100_000
_BLOCKS = 16 * 1024 * 1024  # of 512 bytes: 8 GiB, the largest copy that is made inside


@dataclass(frozen=True, slots=True)
class _Plan:
    """What turns one tree into another: what goes away (deepest first), what is written."""

    remove: list[str]
    write: set[str]


class FilesDriver:
    """Implements `StateDriver` for files and directories (`paths` with globs, less `exclude`).

    The tree crosses as one tar archive that the `tar` inside writes and reads; on the host it is
    only ever read. `restore` changes what differs and nothing else: a file whose content differs
    is written in place, so that a process which has it open goes on with it; what the snapshot has
    not is removed; owners, modes, links and FIFOs are put back. Times are not state. Devices and
    sockets are left out, and so is that two names are one file.

    A database that is in use is refused by name: copying the file of a live SQLite database is
    silently wrong (`kind = "sqlite"` does it right).
    """

    def __init__(self, hands: Hands, paths: Sequence[str], exclude: Sequence[str]) -> None:
        self._hands = hands
        self._paths = tuple(paths)
        self._exclude = tuple(exclude)

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`. Raises UnsupportedError for a live SQLite database."""
        archive = place / "files.tar"
        await self._pack(archive)
        entries = await self._entries(archive)
        for path in entries:
            for end in ("-wal", "-shm"):
                if path.endswith(end) and path.removesuffix(end) in entries:
                    raise UnsupportedError(
                        f"{self.name}: {path.removesuffix(end)} is a SQLite database in use, and a "
                        'copy of its file would be torn: declare it with kind = "sqlite" and '
                        f"leave it and {path} out here (exclude)"
                    )
        await seal(place, "files", self.name, len(entries))

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        count = await unseal(place, "files", self.name, int)
        wanted = await self._entries(place / "files.tar")
        if len(wanted) != count:
            raise self._hands.failed(f"the snapshot has {len(wanted)} entries, not {count}")
        async with Scratch() as folder:
            await self._pack(folder / "now.tar")
            plan = _plan(await self._entries(folder / "now.tar"), wanted)
            await self._clear(plan.remove)
            if not plan.write:
                return
            change = folder / "change.tar"
            await asyncio.to_thread(write_archive, place / "files.tar", change, plan.write)
            async with self._hands.place() as work:
                await self._hands.give(change, f"{work}/change.tar")
                await self._unpack(f"{work}/change.tar")

    async def digest(self) -> str:
        """See `StateDriver`. Over path, kind, owner, mode and content of every entry."""
        entries = await self._now()
        told = json.dumps(sorted((path, str(entry)) for path, entry in entries.items()))
        return hashlib.sha256(told.encode()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. One part: path → kind, mode, owner, size and digest."""
        entries = await self._now()
        if len(entries) > _ENTRIES:
            return {self.name: {"digest": await self.digest()}}
        shown = {
            path.encode("utf-8", "backslashreplace").decode(): e for path, e in entries.items()
        }
        return {self.name: {path: str(entry) for path, entry in shown.items()}}

    async def mutate(self) -> str:
        """Change the first file that is there, or make one in the first directory."""
        entries = await self._now()
        for path, entry in sorted(entries.items()):
            if entry.kind == "file":
                await self._hands.run(f"echo ramify-check >> {inside(path)}", f"change {path}")
                return f"a line more in {path}"
        for path, entry in sorted(entries.items()):
            if entry.kind == "dir":
                made = f"{path.rstrip('/')}/ramify-check"
                await self._hands.run(f": > {inside(made)}", f"make {made}")
                return f"a new file {made}"
        raise UnsupportedError(f"{self.name}: there is no file or directory to change")

    async def _now(self) -> dict[str, Entry]:
        async with Scratch() as folder:
            await self._pack(folder / "now.tar")
            return await self._entries(folder / "now.tar")

    async def _pack(self, archive: Path) -> None:
        """Copy the tree out of the sandbox as an archive."""
        found = list(await self._hands.expand(self._paths))
        roots = [p for p in found if not any(p.startswith(f"{o.rstrip('/')}/") for o in found)]
        words = " ".join(inside(path).replace('"$RAMIFY_ROOT"/', "./", 1) for path in roots)
        excluded = " ".join(f"--exclude={_word(pattern)}" for pattern in self._exclude)
        async with self._hands.place() as work:
            target = inside(f"{work}/now.tar")
            # With no path at all an archive of nothing: two empty blocks.
            pack = f"tar {excluded} --numeric-owner -cf {target} {words}"
            empty = f"head -c 1024 /dev/zero > {target}"
            line = f'cd "$RAMIFY_ROOT"/ && ulimit -f {_BLOCKS} && {pack if words else empty}'
            result = await self._hands.ask(
                ["/bin/sh", "-s"], stdin=line.encode(errors="surrogateescape")
            )
            if result.exit_code not in (0, 1):  # 1: something changed while it was read
                raise self._hands.failed(f"cannot pack the files: {tail(result)}")
            await self._hands.take(f"{work}/now.tar", archive)

    async def _unpack(self, archive: str) -> None:
        """Extract in place; what cannot be written in place (a running program) is replaced."""
        extract = f'cd "$RAMIFY_ROOT"/ && tar --numeric-owner -xpf {inside(archive)}'
        if (await self._hands.ask(f"{extract} --overwrite")).ok:
            return
        await self._hands.run(extract, "put the files back")

    async def _clear(self, paths: Sequence[str]) -> None:
        lines = [
            f"if [ -d {p} ] && [ ! -L {p} ]; then rmdir {p}; else rm -f {p}; fi"
            for p in map(inside, paths)
        ]
        if not lines:
            return
        # A directory in which something excluded lies stays.
        script = "\n".join(lines if not self._exclude else [f"{line} || :" for line in lines])
        await self._hands.run(
            ["/bin/sh", "-es"],
            "remove files made since",
            stdin=script.encode(errors="surrogateescape"),
        )

    async def _entries(self, archive: Path) -> dict[str, Entry]:
        try:
            return await asyncio.to_thread(read_archive, archive, self._exclude)
        except EnvironmentFailed as error:
            raise self._hands.failed(str(error)) from error


def _word(text: str) -> str:
    return inside(text).removeprefix('"$RAMIFY_ROOT"')


def _plan(now: dict[str, Entry], wanted: dict[str, Entry]) -> _Plan:
    remove = [
        path
        for path, entry in now.items()
        if path not in wanted
        or (entry != wanted[path] and not entry.kind == wanted[path].kind in ("file", "dir"))
    ]
    gone = set(remove)
    # What lies below something that goes away goes first, and is written again if it is wanted.
    below = [p for p in now if any(p.startswith(f"{g}/") for g in gone)] if gone else []
    remove = sorted({*remove, *below}, key=lambda path: (-path.count("/"), path))
    away = set(remove)
    write = {path for path, entry in wanted.items() if path in away or now.get(path) != entry}
    return _Plan(remove, write)
