"""A snapshot on the host: its files, and a seal by which a foreign or damaged one is refused."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ramify.contracts.errors import EnvironmentFailed

_SEAL = "snapshot.json"
_FORMAT = 1
T = TypeVar("T")


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `snapshot.json` holds: whose it is, what is in it, and what the driver wrote down."""

    format: int
    kind: str
    of: str
    files: dict[str, str]
    about: Any


_decoder = msgspec.json.Decoder(_Seal)


async def seal(place: Path, kind: str, of: str, about: object) -> None:
    """Close a snapshot. `of` names whose state it is; `about` comes back from `unseal`."""
    await asyncio.to_thread(_seal, place, kind, of, about)


async def unseal(place: Path, kind: str, of: str, about: type[T]) -> T:
    """What was written down with a snapshot.

    Raises: EnvironmentFailed (it is not one, of another kind or part, or damaged).
    """
    return await asyncio.to_thread(_unseal, place, kind, of, about)


def _seal(place: Path, kind: str, of: str, about: object) -> None:
    record = msgspec.json.encode(_Seal(_FORMAT, kind, of, _digests(place), about))
    (place / _SEAL).write_bytes(hashlib.sha256(record).hexdigest().encode() + b"\n" + record)


def _unseal(place: Path, kind: str, of: str, about: type[T]) -> T:
    try:
        digest, _, data = (place / _SEAL).read_bytes().partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() != digest:
            raise EnvironmentFailed(f"{of}: the snapshot in {place} is damaged; take another")
        record = _decoder.decode(data)
        found = msgspec.convert(record.about, about)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFailed(f"{of}: {place} is not a snapshot of it: {error}") from error
    if (record.format, record.kind, record.of) != (_FORMAT, kind, of):
        raise EnvironmentFailed(
            f"{of}: {place} is a snapshot of something else: {record.kind} {record.of!r} "
            f"(format {record.format})"
        )
    if record.files != _digests(place):
        raise EnvironmentFailed(f"{of}: the snapshot in {place} is damaged; take another")
    return found


def _digests(place: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not path.is_symlink() and name != _SEAL:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
