"""What the pod root has to know of a command, and what it says when that cannot be started.

Runs in the supervisor: standard library only. The form is that of pod.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ramify.planes.sandbox.accounts import User
from ramify.planes.sandbox.nanny import CANNOT_RUN, NOT_FOUND, Command, environment, places

_HEADER = struct.Struct("10I")
_TTY, _IDS, _ANNOUNCE = 1, 2, 4
_STEP_CWD, _STEP_USER, _STEP_EXEC = 2, 3, 4


def write_plan(command: Command, user: User | None, size: Sequence[int] | None) -> int:
    """An anonymous file with it; `size` (rows, columns) is that of its terminal.

    Raises: ValueError (a zero byte in it).
    """
    name, home = ("root", "/root") if user is None else (user.name, user.home)
    env = environment(command, name, home)
    groups = user.groups if user else []
    flags = (_TTY if size else 0) | (_IDS if user else 0) | (_ANNOUNCE if command.announce else 0)
    where = places(command.argv, env)
    rows, cols = size or (0, 0)
    parts = [
        _HEADER.pack(
            flags,
            user.uid if user else 0,
            user.gid if user else 0,
            len(groups),
            len(command.limits),
            len(command.argv),
            len(env),
            len(where),
            rows,
            cols,
        ),
        struct.pack(f"{len(groups) + len(groups) % 2}I", *groups, *[0] * (len(groups) % 2)),
    ]
    parts += [struct.pack("2Q", kind, value) for kind, value in command.limits]
    pairs = [f"{key}={value}" for key, value in env.items()]
    strings = [os.fsencode(text) for text in (command.cwd, *command.argv, *pairs, *where)]
    if any(b"\0" in text for text in strings):
        raise ValueError("a command cannot hold a zero byte")
    parts += [text + b"\0" for text in strings]
    fd = os.memfd_create("plan")
    view = memoryview(b"".join(parts))
    while view:
        view = view[os.write(fd, view) :]
    return fd


def explain(command: Command | None, step: int, code: int) -> tuple[int, str]:
    """Exit code and reason of a command that could not be started."""
    why = os.strerror(code)
    if command is None:
        return CANNOT_RUN, why
    if step == _STEP_EXEC:
        name = command.argv[0]
        return (CANNOT_RUN, f"{name}: {why}") if code else (NOT_FOUND, f"{name}: not found")
    if step == _STEP_CWD:
        return CANNOT_RUN, f"{command.cwd}: {why}"
    if step == _STEP_USER:
        return CANNOT_RUN, f"cannot become user {command.user} here: {why}"
    return CANNOT_RUN, f"no process can be started in the sandbox: {why}"
