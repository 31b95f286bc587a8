"""Remembered isolation levels: the strictest at which a task's reference solution scores 1."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.task import Hardening, IsolationLevel


class _Level(msgspec.Struct, frozen=True):
    digest: str
    level: IsolationLevel
    hardening: Hardening = Hardening.PLAIN


_decoder = msgspec.json.Decoder(_Level)


class LevelStore:
    """Isolation levels by task digest, one small file each, shared by all runs of a user.

    Args:
        home: the directory where Ramify keeps what outlives a job.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "levels"

    def get(self, digest: str) -> IsolationLevel | None:
        """The remembered level, or None. A damaged file counts as nothing remembered."""
        stored = self._stored(digest)
        return stored.level if stored else None

    def hardening(self, digest: str) -> Hardening | None:
        """The profile remembered beside the level; plain where a record is older than profiles."""
        stored = self._stored(digest)
        return stored.hardening if stored else None

    def _stored(self, digest: str) -> _Level | None:
        try:
            stored = _decoder.decode(self._file(digest).read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            # What is remembered can always be found again, so damage is no reason to stop.
            return None
        return stored if stored.digest == digest else None

    def put(
        self, digest: str, level: IsolationLevel, hardening: Hardening = Hardening.PLAIN
    ) -> None:
        """Remember a level and a profile. Atomic: a reader sees the old file or the new one."""
        target = self._file(digest)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{digest}.", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(_Level(digest, level, hardening)))
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _file(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{16,128}", digest):
            raise ConfigError(f"{digest!r} is not the digest of a task", field="digest")
        return self._folder / f"{digest}.json"
