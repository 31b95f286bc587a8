"""Find and kill processes: standard library only, Python 3.8 syntax; runs inside sandboxes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_libc: Any = None
try:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):  # a minimal interpreter: descendants are then found by a marker
    _libc = None

KILL_DEADLINE_SEC = 5.0
"""How long killing may take before what is left counts as unkillable."""

MARKER = "RAMIFY_JOB"
"""Name of the environment variable that marks a job where there can be no subreaper."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> bool:
    """Call prctl(2); False when it fails or cannot be called from here."""
    return _libc is not None and _libc.prctl(option, value, 0, 0, 0) == 0


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process. False where that is impossible."""
    return prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int) -> bool:
    """Have the kernel send signal `number` to this process when its parent ends."""
    return prctl(_PR_SET_PDEATHSIG, number)


def process_table(proc: str = "/proc") -> dict[int, tuple[int, str]]:
    """All processes under a /proc: pid to (parent, state letter)."""
    table: dict[int, tuple[int, str]] = {}
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            with open(f"{proc}/{name}/stat", "rb") as file:
                data = file.read(1024)
        except OSError:  # it ended meanwhile
            continue
        fields = data[data.rfind(b")") + 2 :].split(b" ", 2)  # the name may hold anything
        table[int(name)] = (int(fields[1]), fields[0].decode())
    return table


def descendants(roots: Iterable[int], proc: str = "/proc") -> list[int]:
    """Pids of all live (not zombie) processes below `roots`, the roots left out."""
    table = process_table(proc)
    children: dict[int, list[int]] = {}
    for pid, (parent, _state) in table.items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = list(roots)
    while queue:
        below = children.get(queue.pop(), [])
        found.extend(pid for pid in below if table[pid][1] not in "ZX")
        queue.extend(below)
    return found


def children(pid: int, proc: str = "/proc") -> list[int]:
    """Pids of the direct children of a process, zombies included."""
    try:
        with open(f"{proc}/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:  # a kernel without that file
        return [p for p, (parent, _state) in process_table(proc).items() if parent == pid]


def marked(marker: str, proc: str) -> list[int]:
    """Pids whose environment carries `marker`: the way without a subreaper."""
    needle = (f"{MARKER}={marker}\0").encode()
    found: list[int] = []
    for name in os.listdir(proc):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"{proc}/{name}/environ", "rb") as file:
                    data = file.read(1024 * 1024)
            except OSError:
                continue
            if needle in b"\0" + data + b"\0":
                found.append(int(name))
    return found


def send_signal(pid: int, number: int) -> bool:
    """Signal a process; False when it is gone or not ours to signal."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def kill_round(found: list[int], stopped: set[int]) -> None:
    """Stop what is new (a stopped process cannot fork); once nothing is new, kill everything."""
    fresh = [pid for pid in found if pid not in stopped]
    for pid in fresh:
        send_signal(pid, signal.SIGSTOP)
    stopped.update(fresh)
    if not fresh:
        for pid in found:
            send_signal(pid, signal.SIGKILL)


def kill_below(roots: Sequence[int], deadline_sec: float = KILL_DEADLINE_SEC) -> bool:
    """Kill every descendant of `roots`, blocking. False when some outlived the deadline."""
    deadline = time.monotonic() + deadline_sec
    stopped: set[int] = set()
    while True:
        found = descendants(roots)
        if not found:
            return True
        if time.monotonic() > deadline:
            return False
        kill_round(found, stopped)
        time.sleep(0.002)
