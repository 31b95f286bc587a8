"""Removing what dead engines left: processes, cgroups, directories. Blocking."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ramify.planes.sandbox.descent import remove
from ramify.planes.sandbox.local import cgroups
from ramify.planes.sandbox.local.process import dead_engines
from ramify.planes.sandbox.processes import send_signal

_DEADLINE_SEC = 5.0


def sweep(runs: Path, layout: cgroups.Layout) -> int:
    """Remove all that belongs to engines of `runs` that are dead; returns how many things.

    An engine is known by its directory, and dead when nobody holds the lock in it.
    """
    removed = 0
    for place in dead_engines(runs):
        groups = cgroups.leftovers(layout, f"ramify-{place.name}-")
        deadline = time.monotonic() + _DEADLINE_SEC
        busy = groups
        while busy and time.monotonic() < deadline:
            for group in busy:
                for pid in cgroups.members(group):
                    send_signal(pid, signal.SIGKILL)
            busy = cgroups.remove(busy)
            if busy:
                time.sleep(0.01)
        removed += len(groups) - len(busy)
        fd = os.open(runs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            remove(fd, os.fsencode(place.name))
        except FileNotFoundError:
            continue  # its spawner, or another sweep, removes it at the same time
        finally:
            os.close(fd)
        removed += 1
    return removed
