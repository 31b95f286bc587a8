"""State in the memory of processes: named and compared here, carried by a live checkpoint only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.errors import UnsupportedError
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.sealed import seal, unseal

# Fields are hexadecimal, as their bytes are the processes' own. Our own shell and what it comes
# from, up to the supervisor, are left out: they are there only while we look.
_LOOK = r"""
hex() { od -An -v -tx1 | tr -d ' \n'; }
own=" "; p=$$
while [ "${p:-0}" -gt 0 ]; do own="$own$p "
  p=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$p/status" 2>/dev/null); done
# The inode of a listening socket is the tenth field; in a line of `fd` it is in brackets.
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ at _ state _ _ _ _ _ inode _; do
  [ "$state" != 0A ] || echo "port ${at##*:} $inode"; done
for d in /proc/[0-9]*; do
  p=${d#/proc/}
  case $own in *" $p "*) continue;; esac
  parent=$(sed -n 's/^PPid:[[:space:]]*//p' "$d/status" 2>/dev/null) || continue
  [ "$parent" != $$ ] || continue
  argv=$(hex 2>/dev/null < "$d/cmdline") || continue
  [ -n "$argv" ] || continue
  uid=$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "$d/status" 2>/dev/null)
  exe=$(readlink "$d/exe" 2>/dev/null | hex); cwd=$(readlink "$d/cwd" 2>/dev/null | hex)
  open=$(for f in "$d"/fd/*; do readlink "$f" 2>/dev/null; done |
    sed -n 's/^socket:.\([0-9]*\).$/\1/p' | tr '\n' ',')
  echo "process $p $parent ${uid:-?} ${exe:--} ${cwd:--} $argv ${open:--}"
done
"""
_ENTRIES = 10_000
_OURS = "ramify-sandbox"  # the last word of each supervisor's command line


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    exe: str
    argv: tuple[str, ...]
    cwd: str
    uid: str
    ports: tuple[int, ...]

    def shown(self) -> str:
        return json.dumps(
            {
                "argv": self.argv,
                "exe": self.exe,
                "cwd": self.cwd,
                "uid": self.uid,
                "ports": self.ports,
            }
        )


class ProcessDriver:
    """Implements `StateDriver` for what runs in the sandbox: program, arguments, user, ports.

    What a process holds in memory comes through a live checkpoint of the sandbox or not at all.
    So `snapshot` only writes down what runs, and `restore` refuses with UnsupportedError unless
    the same still does: it does not pretend to have put a memory back.
    """

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`. Writes down what runs."""
        await seal(place, "process", self.name, await self._entries())

    async def restore(self, place: Path) -> None:
        """See `StateDriver`. Raises UnsupportedError unless the same processes run."""
        wanted = await unseal(place, "process", self.name, dict[str, str])
        found = await self._entries()
        if found == wanted:
            return
        changed = [pid for pid in {**wanted, **found} if wanted.get(pid) != found.get(pid)]
        told = ", ".join(
            f"{pid} ({'gone' if pid not in found else found[pid][:120]})" for pid in changed[:5]
        )
        raise UnsupportedError(
            f"{self.name}: processes are not what they were, and only a live checkpoint of the "
            f'sandbox brings them back (or a service with on_branch = "restart"): {told}'
        )

    async def digest(self) -> str:
        """See `StateDriver`. Over the list of processes, not their memory."""
        told = json.dumps(sorted((await self._entries()).items()))
        return hashlib.sha256(told.encode()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. Process id → program, arguments, work directory, user, ports."""
        return {self.name: await self._entries()}

    async def mutate(self) -> str:
        """Always raises UnsupportedError: a changed memory could not be put back."""
        raise UnsupportedError(f"{self.name}: the memory of processes is not changed for a check")

    async def _entries(self) -> dict[str, str]:
        told = await self._hands.run(["/bin/sh", "-s"], "list processes", stdin=_LOOK.encode())
        ports: dict[str, int] = {}
        found: list[_Process] = []
        for line in told.decode("ascii", "replace").splitlines():
            kind, *fields = line.split(" ")
            if kind == "port" and len(fields) == 2:
                ports[fields[1]] = int(fields[0], 16)
            elif kind == "process" and len(fields) == 7 and len(found) < _ENTRIES:
                process = _process(fields, ports)
                if process.argv[-1:] != (_OURS,):
                    found.append(process)
        return {f"{process.pid}": process.shown() for process in found}


def _process(fields: list[str], ports: dict[str, int]) -> _Process:
    pid, _, uid, exe, cwd, argv, sockets = fields
    words = _text(argv).rstrip("\0").split("\0")  # a renamed one has its old place, emptied
    listening = {ports[inode] for inode in sockets.split(",") if inode in ports}
    return _Process(
        int(pid), _text(exe).rstrip("\n"), tuple(words),
        _text(cwd).rstrip("\n"), uid, tuple(sorted(listening)),
    )  # fmt: skip


def _text(data: str) -> str:
    return "" if data == "-" else bytes.fromhex(data).decode("utf-8", "backslashreplace")
