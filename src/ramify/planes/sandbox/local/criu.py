"""Finding CRIU on this machine. Blocking."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from ramify.contracts.config import ramify_home
from ramify.planes.sandbox.local.captor import LOADER

_LEAST, _LEAST_SINCE_6_16 = (4, 1), (4, 2)  # that kernel refuses a question that 4.1 asks sockets
_REMEDY = "run dev/criu (it unpacks CRIU from Debian's packages; nothing is installed)"
_PRELOAD = b"/etc/ld.so.preload"


class Criu(NamedTuple):
    """A directory with CRIU, its loader and its libraries; or, without one, why not."""

    place: Path | None
    problem: str = ""


def find_criu() -> Criu:
    """Look where RAMIFY_CRIU says (a directory made by `dev/criu`), else in RAMIFY_HOME/criu.

    The directory is checked for its parts, nothing is run.
    """
    if platform.machine() != "x86_64":
        return Criu(None, f"live checkpoints need x86-64, this is {platform.machine()}")
    named = os.environ.get("RAMIFY_CRIU")
    place = Path(named) if named else ramify_home() / "criu"
    if not all(os.access(place / name, os.R_OK | os.X_OK) for name in ("criu", LOADER)):
        return Criu(None, f"no CRIU that this user can run in {place}: {_REMEDY}")
    if _PRELOAD in (place / LOADER).read_bytes():
        return Criu(None, f"{place / LOADER} would load what a sandbox names: {_REMEDY}")
    return Criu(place.absolute())


def version_problem(place: Path) -> str:
    """Run it: "" if it is new enough, else what is wrong."""
    argv = [str(place / LOADER), "--library-path", str(place), str(place / "criu"), "--version"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = process.communicate(timeout=20.0)[0].decode(errors="replace")
    found = re.search(r"Version: *(\d+)\.(\d+)", said)
    if found is None:
        return f"{place / 'criu'} does not run: {said.strip()[-200:]}"
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    least = _LEAST_SINCE_6_16 if kernel >= (6, 16) else _LEAST
    if (int(found[1]), int(found[2])) < least:
        needed = ".".join(map(str, least))
        return f"CRIU {found[1]}.{found[2]} in {place} is too old, {needed} is needed: {_REMEDY}"
    return ""
