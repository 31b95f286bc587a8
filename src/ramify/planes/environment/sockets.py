"""Who listens on which port of a sandbox, read from its /proc."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ramify.contracts.sandbox import Sandbox

_LISTEN = "0A"
_FDS = re.compile(r"^/proc/(\d+)/fd:$")
_SOCKET = re.compile(r"-> socket:\[(\d+)\]$")
_MARK = "@@ramify@@"
_LOOK_SEC = 20.0
_LOOK = (
    f"cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; echo {_MARK}; "
    f"cat /proc/[0-9]*/stat 2>/dev/null; echo {_MARK}; "
    f"ls -l /proc/[0-9]*/fd 2>/dev/null; echo {_MARK}"
)


@dataclass(frozen=True, slots=True)
class Listeners:
    """A look at the listening sockets of a sandbox.

    Attributes:
        holders: port → ids of the processes that hold a socket that listens on it; empty where
            none of them could be seen.
        names: process id → its program.
        parents, sessions: process id → that of its parent, of its session's leader.
    """

    holders: Mapping[int, frozenset[int]]
    names: Mapping[int, str]
    parents: Mapping[int, int]
    sessions: Mapping[int, int]

    def belongs(self, pid: int, root: int) -> bool:
        """Whether `pid` is `root`, a descendant of it, or in a session that one of them leads."""
        seen: set[int] = set()
        todo = [pid]
        while todo:
            each = todo.pop()
            if each == root:
                return True
            if each in seen or each <= 1:
                continue
            seen.add(each)
            todo += [self.parents.get(each, 0), self.sessions.get(each, 0)]
        return False

    def named(self, pids: Iterable[int]) -> str:
        """Processes, for a person: `python3 (pid 12)`."""
        return ", ".join(f"{self.names.get(pid, 'a process')} (pid {pid})" for pid in sorted(pids))


async def listeners(sandbox: Sandbox) -> Listeners | None:
    """Look at the sockets of a sandbox now; None where it lacks `cat`, `ls` or /proc.

    Trust it only as far as the programs of the inside: before an agent has been there.
    Raises SandboxError.
    """
    said = await sandbox.exec(_LOOK, user="root", cwd="/", timeout_sec=_LOOK_SEC)
    parts = said.stdout.decode(errors="replace").split(f"{_MARK}\n")
    if said.timed_out or len(parts) < 3 or "local_address" not in parts[0]:
        return None
    holders = _holders(parts[2])
    ports: dict[int, set[int]] = {}
    for port, inode in _listening(parts[0].splitlines()):
        ports.setdefault(port, set()).update(holders.get(inode, ()))
    names, parents, sessions = _processes(parts[1].splitlines())
    frozen = {port: frozenset(pids) for port, pids in ports.items()}
    return Listeners(frozen, names, parents, sessions)


def _listening(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            yield int(fields[1].rpartition(":")[2], 16), fields[9]


def _holders(listing: str) -> dict[str, set[int]]:
    """Inode of a socket → processes that have it open."""
    found: dict[str, set[int]] = {}
    pid = 0
    for line in listing.splitlines():
        if (head := _FDS.match(line)) is not None:
            pid = int(head[1])
        elif pid and (socket := _SOCKET.search(line)) is not None:
            found.setdefault(socket[1], set()).add(pid)
    return found


def _processes(
    lines: Sequence[str],
) -> tuple[dict[int, str], dict[int, int], dict[int, int]]:
    """Names, parents and sessions by process id."""
    names: dict[int, str] = {}
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for line in lines:
        before, _, after = line.rpartition(")")
        pid, _, name = before.partition(" (")
        fields = after.split()
        if pid.isdigit() and len(fields) > 3:
            names[int(pid)] = name
            parents[int(pid)], sessions[int(pid)] = int(fields[1]), int(fields[3])
    return names, parents, sessions
