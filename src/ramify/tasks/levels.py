"""What `ramify tasks check` found about a task, remembered for each sandbox it was found in."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Hardening, IsolationLevel


class Remembered(msgspec.Struct, frozen=True, omit_defaults=True):
    """The strictest level at which a task's reference solution scores, and the profile with it.

    `provider` is the sandbox provider it was found with; empty where it was found before that was
    written down.
    """

    digest: str
    level: IsolationLevel
    hardening: Hardening = Hardening.PLAIN
    provider: str = ""

    def holds_for(self, provider: str) -> bool:
        """Whether it was found with this provider, as far as that is known."""
        return self.provider in ("", provider)


_decoder = msgspec.json.Decoder(Remembered)


class LevelStore:
    """What was found, by task digest and provider: one small file each, shared by all runs of a
    user. A file without a provider in its name is older than those, and counts for all of them.

    Args:
        home: the directory where Ramify keeps what outlives a job.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "levels"

    def get(self, digest: str, provider: str) -> Remembered | None:
        """What was found with this provider; else what older records say; else what was found
        with another one, which it names. A damaged file counts as nothing remembered.
        """
        own = self._read(self._file(digest, provider), digest)
        if own is not None and own.provider == provider:
            return own
        older = self._folder / f"{digest}.json"
        others = [older, *sorted(self._folder.glob(f"{digest}.*.json"))]
        found = [self._read(path, digest) for path in others]
        return next((one for one in found if one is not None), None)

    def put(
        self,
        digest: str,
        provider: str,
        level: IsolationLevel,
        hardening: Hardening = Hardening.PLAIN,
    ) -> None:
        """Remember what was found. Atomic: a reader sees the old file or the new one."""
        target = self._file(digest, provider)
        with Scratch(self._folder) as scratch:
            draft = scratch / target.name
            draft.write_bytes(msgspec.json.encode(Remembered(digest, level, hardening, provider)))
            draft.replace(target)

    def _read(self, path: Path, digest: str) -> Remembered | None:
        try:
            stored = _decoder.decode(path.read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            # What is remembered can always be found again, so damage is no reason to stop.
            return None
        return stored if stored.digest == digest else None

    def _file(self, digest: str, provider: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{16,128}", digest):
            raise ConfigError(f"{digest!r} is not the digest of a task", field="digest")
        word = provider
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", provider):  # an import path, say
            word = hashlib.blake2b(provider.encode(), digest_size=8).hexdigest()
        return self._folder / f"{digest}.{word}.json"
