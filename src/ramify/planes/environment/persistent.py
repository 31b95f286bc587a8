"""State that goes on from one episode to the next, on the host, one episode at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from pathlib import Path

import msgspec

from ramify.contracts.errors import EnvironmentFailed
from ramify.planes.environment.parts import Parts

_AGAIN_SEC = 0.1
_STATE, _FRESH, _OLD = "state", ".fresh", ".old"


class _Saved(msgspec.Struct, frozen=True):
    digest: str


_decoder = msgspec.json.Decoder(_Saved)


class PersistentState:
    """The state of a persistent world between episodes, below a directory of its own.

    Args:
        place: where it is kept.
        name: of the world, for messages.
        wait_sec: how long an episode waits for the one before it.
    """

    def __init__(self, place: Path, name: str, wait_sec: float) -> None:
        self._place, self._name, self._wait_sec = place, name, wait_sec
        self._lock: int | None = None

    async def claim(self) -> None:
        """Wait until no other episode uses this world, and keep others away until `release`.

        Raises: EnvironmentFailed when that takes too long.
        """
        await asyncio.to_thread(self._place.mkdir, parents=True, exist_ok=True)
        lock = os.open(self._place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async with asyncio.timeout(self._wait_sec):
                while not _locked(lock):  # noqa: ASYNC110  (a lock between processes has no event)
                    await asyncio.sleep(_AGAIN_SEC)
        except TimeoutError:
            os.close(lock)
            raise EnvironmentFailed(
                f"another episode has used the persistent world {self._name!r} for more than "
                f"{self._wait_sec:g} s ({self._place}); run its tasks one after the other (-c 1)"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    async def load(self, parts: Parts) -> bool:
        """Give a world the state that was saved; whether there was any.

        Raises: EnvironmentFailed (what was saved is damaged, or of another manifest).
        """
        state = self._place / _STATE
        old = self._place / _OLD
        if not state.is_dir() and old.is_dir():
            old.rename(state)  # The save before was interrupted between its two renames.
        if not state.is_dir():
            return False
        try:
            saved = _decoder.decode((state / "saved.json").read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise EnvironmentFailed(
                f"the state of the persistent world {self._name!r} in {state} is damaged "
                f"({error}); remove it to begin anew"
            ) from error
        await parts.restore(state, saved.digest)
        return True

    async def save(self, parts: Parts) -> None:
        """Keep the state of a world; what was kept before stays until this is whole.

        Raises: EnvironmentFailed, SandboxError.
        """
        fresh = self._place / _FRESH
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        digest = await parts.snapshot(fresh)
        (fresh / "saved.json").write_bytes(msgspec.json.encode(_Saved(digest)))
        await asyncio.to_thread(self._swap, fresh)

    def release(self) -> None:
        """Let the next episode begin. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _swap(self, fresh: Path) -> None:
        state, old = self._place / _STATE, self._place / _OLD
        if state.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            state.rename(old)
        fresh.rename(state)
        shutil.rmtree(old, ignore_errors=True)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
