"""One verification at a time per repository and artifact directory."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError, InfraError

_POLL_SEC = 0.1
_LARGEST = 4096


class Holder(msgspec.Struct, frozen=True):
    """Who verifies a repository: process, machine, run, and when it began (ISO 8601)."""

    pid: int
    host: str
    run_id: str
    since: str

    def __str__(self) -> str:
        return f"run {self.run_id} of process {self.pid} on {self.host}, since {self.since}"


_decoder = msgspec.json.Decoder(Holder)


@asynccontextmanager
async def repository_lock(
    artifacts: Path,
    repository: Path,
    *,
    run_id: str,
    since: str,
    wait: bool,
    on_wait: Callable[[str], None],
) -> AsyncGenerator[None]:
    """Hold the lock of a repository; a process that dies, however it dies, lets go of it.

    With `wait` it waits for whoever holds it, having told `on_wait` once who that is.

    Raises:
        InfraError: somebody else holds it and `wait` is not set; says who.
        ConfigError: the artifact directory cannot be written.
    """
    descriptor = _open(artifacts, repository)
    try:
        told = False
        while not _try(descriptor):
            holder = _holder(descriptor)
            if not wait:
                raise InfraError(
                    f"{repository} is being verified already ({holder}); --wait waits for it"
                )
            if not told:
                on_wait(f"waiting for {holder}")
                told = True
            await asyncio.sleep(_POLL_SEC)
        mine = Holder(os.getpid(), socket.gethostname(), run_id, since)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(mine), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            # A process that was forked meanwhile has the descriptor too: closing is not enough.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _open(artifacts: Path, repository: Path) -> int:
    name = sha256(os.fsencode(repository.resolve())).hexdigest()[:16]
    path = artifacts / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the artifact directory cannot be written: {error.strerror}; give another with "
            "AGENT_ARTIFACT_DIR",
            str(error.filename or artifacts),
        ) from error


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    """Who holds the lock, as far as it has said so yet."""
    try:
        return str(_decoder.decode(os.pread(descriptor, _LARGEST, 0)))
    except msgspec.MsgspecError:  # between getting the lock and writing its name into it
        return "a run that has just begun"
