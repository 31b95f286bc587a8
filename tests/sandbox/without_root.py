"""Runs a program as a user without privileges, who can reach this interpreter all the same."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534


async def run_without_root(
    program: str, home: Path, stash: Path, mounts: Sequence[str] = ()
) -> tuple[list[str], str]:
    """Its lines of output, and its errors.

    Args:
        program: Python; `sys.argv[1]` is `home`.
        home: a directory that becomes that user's.
        stash: an empty directory, for mounts that only the program sees.
        mounts: lines of shell that root runs before, for more of those.
    """
    os.chown(home, NOBODY, NOBODY)
    hidden = [p for p in (Path.home(), *Path.home().parents) if p.stat().st_mode & 0o005 != 0o005]
    before, after = ["mount --make-rprivate /", *mounts], list[str]()
    paths = [*sys.path, str(Path(__file__).parent)]
    needed = sorted({sys.base_prefix, sys.prefix, *filter(os.path.isdir, paths)})
    for number, place in enumerate(needed):
        if hidden and Path(place).is_relative_to(hidden[0]):
            kept = stash / str(number)
            kept.mkdir()
            before.append(f"mount --bind {place} {kept}")
            after.append(f"mkdir -p {place}; mount --bind {kept} {place}")
    if hidden:
        before.append(f"mount -t tmpfs -o mode=755 tmpfs {hidden[0]}")
    start = (
        f"exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups env HOME={home}"
        f" RAMIFY_HOME={home}/ramify PYTHONPATH={':'.join(p for p in paths if p)}"
        f' {sys.executable} -c "$CODE" {home}'
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", "\n".join([*before, *after, start])),
        env={**os.environ, "CODE": program},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    return out.decode().splitlines(), errors.decode()
