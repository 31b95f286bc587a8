"""Users and groups as a sandbox's own files tell them: standard library only, Python 3.8 syntax.

The files are hostile: they may be huge, broken, or no files at all. Never the C library's lookup,
which would load modules that the sandbox names.
"""

from __future__ import annotations

import os
from typing import NamedTuple

_MAX_ACCOUNT_FILE = 4 * 1024 * 1024


class User(NamedTuple):
    """Who a command runs as, read from the sandbox's own account files."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str


def _account_lines(path: str) -> list[list[str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(fd, "rb") as file:
        text = (file.read(_MAX_ACCOUNT_FILE) or b"").decode("utf-8", "replace")
    return [line.split(":") for line in text.split("\n") if line and not line.startswith("#")]


def find_user(user: str, etc: str = "/etc") -> User:
    """Resolve `name`, `uid`, `name:group` or `uid:gid` from `passwd` and `group` under `etc`.

    A number needs no entry (its group is then 0 and its home `/`). Raises LookupError.
    """
    who, _, group = user.partition(":")
    entry = None
    for row in _account_lines(os.path.join(etc, "passwd")):
        if len(row) >= 6 and row[2].isdigit() and row[3].isdigit() and who in (row[0], row[2]):
            entry = row
            break
    if entry is None and who == "root":
        entry = ["root", "x", "0", "0", "", "/root"]
    if entry is not None:
        name, uid, gid, home = entry[0], int(entry[2]), int(entry[3]), entry[5] or "/"
    elif who.isdigit():
        name, uid, gid, home = who, int(who), 0, "/"
    else:
        raise LookupError(f"no user {who!r} in the sandbox")
    rows = [r for r in _account_lines(os.path.join(etc, "group")) if len(r) >= 4 and r[2].isdigit()]
    if group:
        known = [int(r[2]) for r in rows if r[0] == group]
        if not known and not group.isdigit():
            raise LookupError(f"no group {group!r} in the sandbox")
        gid = known[0] if known else int(group)
        return User(name, uid, gid, [gid], home)
    extra = [int(r[2]) for r in rows if name in r[3].split(",")]
    return User(name, uid, gid, sorted({gid, *extra})[:1024], home)
