"""Who owns what on a daemon: engines hold a lock while they live, and label what they make."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from pathlib import Path

from ramify.contracts.errors import SandboxStartError
from ramify.planes.sandbox.docker.client import Json

ENGINE_LABEL = "ramify.engine"
WORLD_LABEL = "ramify.world"
"""Label of what belongs to one sandbox or Compose project alone, and goes with it: its name."""

_LOCK_LABEL = "ramify.lock"
_HOST_LABEL = "ramify.host"
_ENGINE = re.compile(r"[0-9a-f]{12}")


class Owner:
    """This engine. The lock is taken when it is made and freed by `close` or by its death."""

    def __init__(self, home: Path) -> None:
        self.id = secrets.token_hex(6)
        self._path = _lock_path(home, self.id)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SandboxStartError(
                f"cannot write {self._path.parent}: {error.strerror}; set RAMIFY_HOME to a "
                "directory that can be written"
            ) from error

    @property
    def labels(self) -> dict[str, str]:
        """What marks a thing as this engine's."""
        return {
            "ramify": "1",
            ENGINE_LABEL: self.id,
            _LOCK_LABEL: str(self._path),
            _HOST_LABEL: socket.gethostname(),
        }

    def close(self) -> None:
        """Nothing of this engine is left. Idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def is_orphan(labels: Json, home: Path) -> bool:
    """Whether a thing with these labels belongs to an engine of this home that died.

    What cannot be known (an engine of another machine or home, or whose lock file is gone) counts
    as alive. The label's own path is never opened: whoever builds an image writes its labels.
    """
    path = _lock_of(labels, home)
    if path is None or labels.get(_HOST_LABEL) != socket.gethostname():
        return False
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def forget_orphan(labels: Json, home: Path) -> None:
    """Remove the lock of a dead engine of this home, once nothing of it is left."""
    if (path := _lock_of(labels, home)) is not None:
        path.unlink(missing_ok=True)


def _lock_of(labels: Json, home: Path) -> Path | None:
    """Where an engine of this home keeps the lock that labels speak of; None: another home's."""
    engine = labels.get(ENGINE_LABEL)
    if not isinstance(engine, str) or not _ENGINE.fullmatch(engine):
        return None
    path = _lock_path(home, engine)
    return path if labels.get(_LOCK_LABEL) == str(path) else None


def _lock_path(home: Path, engine: str) -> Path:
    return home.absolute() / "engines" / f"{engine}.lock"
