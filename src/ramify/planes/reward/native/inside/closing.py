"""Gives the root directory and those for temporary files their usual owner and mode.

Standard library, Python 3.8 syntax. Runs as root in an agent's frozen file system, on a Python that
the agent had no hand in, before any code of the agent's. The argument is the user id of that code.
Exit code 3: it could still exchange what lies in one of them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

_MODES = (("/", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777))
_OPEN = 3


def _open(path: str) -> int:
    """A directory that stands here; what leads elsewhere goes."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        os.unlink(path)
        os.mkdir(path)
        return os.open(path, flags)


def _is_closed(path: str, mode: int, user: int) -> bool:
    try:
        fd = _open(path)
    except OSError:  # no directory is there, so nothing lies in it
        return True
    try:
        for change in (lambda: os.fchown(fd, 0, 0), lambda: os.fchmod(fd, mode)):
            try:
                change()
            except PermissionError:  # root of a locked-down sandbox may do so only to its own
                continue
        info = os.fstat(fd)
    finally:
        os.close(fd)
    shared = info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX
    return info.st_uid != user and not shared


def main() -> int:
    """Close them all."""
    closed = [_is_closed(path, mode, int(sys.argv[1])) for path, mode in _MODES]
    return 0 if all(closed) else _OPEN


if __name__ == "__main__":
    sys.exit(main())
